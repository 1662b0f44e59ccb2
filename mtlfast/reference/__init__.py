"""The truth in tests: every operation in plain torch, written to be read, not to be fast."""

from mtlfast.reference import cagrad, dualproj, gradnorm, mgda, pcd, pcgrad, upgrad
from mtlfast.reference.multi_tensor import combine, combine_, gramian
from mtlfast.reference.scaffold import Solver

SOLVERS: dict[str, Solver] = {
    "cagrad": cagrad.solve,
    "dualproj": dualproj.solve,
    "gradnorm": gradnorm.solve,
    "mgda": mgda.solve,
    "pcd": pcd.solve,
    "pcgrad": pcgrad.solve,
    "upgrad": upgrad.solve,
}

__all__ = ["SOLVERS", "combine", "combine_", "gramian"]
