"""The truth in tests: every operation in plain torch, written to be read, not to be fast."""

from mtlfast.reference import (
    aligned_mtl,
    cagrad,
    config,
    cosmos,
    dtp,
    dualproj,
    dwa,
    famo,
    gls,
    gradnorm,
    imtl,
    imtlg,
    krum,
    lbtw,
    learned_scales,
    mgda,
    pbi,
    pcd,
    pcgrad,
    rlw,
    si,
    stch,
    upgrad,
)
from mtlfast.reference.multi_tensor import combine, combine_, gramian
from mtlfast.reference.scaffold import Solver

SOLVERS: dict[str, Solver] = {
    "aligned_mtl": aligned_mtl.solve,
    "cagrad": cagrad.solve,
    "config": config.solve,
    "cosmos": cosmos.solve,
    "dtp": dtp.solve,
    "dualproj": dualproj.solve,
    "dwa": dwa.solve,
    "famo": famo.solve,
    "gls": gls.solve,
    "gradnorm": gradnorm.solve,
    "imtl": imtl.solve,
    "imtlg": imtlg.solve,
    "imtll": learned_scales.imtll,
    "krum": krum.solve,
    "lbtw": lbtw.solve,
    "mgda": mgda.solve,
    "pbi": pbi.solve,
    "pcd": pcd.solve,
    "pcgrad": pcgrad.solve,
    "random": rlw.solve,
    "rlw": rlw.solve,
    "si": si.solve,
    "stch": stch.solve,
    "upgrad": upgrad.solve,
    "uw": learned_scales.uw,
}

__all__ = ["SOLVERS", "combine", "combine_", "gramian"]
