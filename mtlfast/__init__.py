"""Gradient balancing for multi-task learning: native kernels behind any PyTorch optimizer."""

from mtlfast.functional import aggregate, combine, gramian
from mtlfast.operators import kernels as _kernels  # noqa: F401 (registers the operators)
from mtlfast.ops import describe, version
from mtlfast.optim import MultiTaskOptimizer
from mtlfast.weighting import *  # noqa: F403
from mtlfast.weighting import __all__ as _weightings

__version__ = version()

__all__ = [*_weightings, "MultiTaskOptimizer", "aggregate", "combine", "describe", "gramian"]
