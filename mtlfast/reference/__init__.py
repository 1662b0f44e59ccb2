"""The truth in tests: every operation in plain torch, written to be read, not to be fast."""

from mtlfast.reference import cagrad, gradnorm, pcgrad
from mtlfast.reference.multi_tensor import combine, combine_, gramian
from mtlfast.reference.scaffold import Solver

SOLVERS: dict[str, Solver] = {
    "cagrad": cagrad.solve,
    "gradnorm": gradnorm.solve,
    "pcgrad": pcgrad.solve,
}

__all__ = ["SOLVERS", "combine", "combine_", "gramian"]
