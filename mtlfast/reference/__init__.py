"""The truth in tests: every operation in plain torch, written to be read, not to be fast."""

from mtlfast.reference import cagrad, crmogm, dbmtl, gradnorm, moco, modo, pcgrad, sdmgrad
from mtlfast.reference.multi_tensor import combine, combine_, gramian
from mtlfast.reference.scaffold import Solver

SOLVERS: dict[str, Solver] = {
    "cagrad": cagrad.solve,
    "crmogm": crmogm.solve,
    "dbmtl": dbmtl.solve,
    "gradnorm": gradnorm.solve,
    "moco": moco.solve,
    "modo": modo.solve,
    "pcgrad": pcgrad.solve,
    "sdmgrad": sdmgrad.solve,
}

__all__ = ["SOLVERS", "combine", "combine_", "gramian"]
