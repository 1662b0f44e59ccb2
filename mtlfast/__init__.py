"""Gradient balancing for multi-task learning: native kernels behind any PyTorch optimizer."""

import sys
from pathlib import Path

try:
    from mtlfast import ops
except ImportError as error:
    # The package is imported before its command line is read, and a doctor answers in sentences.
    if sys.argv[1:2] != ["doctor"] or Path(sys.argv[0]).stem not in ("mtlfast", "-m", "__main__"):
        raise
    raise SystemExit(f"mtlfast doctor: {error}") from None

from mtlfast.functional import aggregate, combine, gramian
from mtlfast.operators import kernels as _kernels  # noqa: F401 (registers the operators)
from mtlfast.optim import MultiTaskOptimizer
from mtlfast.weighting import *  # noqa: F403
from mtlfast.weighting import __all__ as _weightings

describe = ops.describe
__version__ = ops.version()

__all__ = [*_weightings, "MultiTaskOptimizer", "aggregate", "combine", "describe", "gramian"]
