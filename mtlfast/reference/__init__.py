"""The truth in tests: every operation in plain torch, written to be read, not to be fast."""

from mtlfast.reference import (
    aligned_mtl,
    cagrad,
    config,
    gradnorm,
    imtl,
    imtlg,
    krum,
    pcgrad,
)
from mtlfast.reference.multi_tensor import combine, combine_, gramian
from mtlfast.reference.scaffold import Solver

SOLVERS: dict[str, Solver] = {
    "aligned_mtl": aligned_mtl.solve,
    "cagrad": cagrad.solve,
    "config": config.solve,
    "gradnorm": gradnorm.solve,
    "imtl": imtl.solve,
    "imtlg": imtlg.solve,
    "krum": krum.solve,
    "pcgrad": pcgrad.solve,
}

__all__ = ["SOLVERS", "combine", "combine_", "gramian"]
