"""The methods: each maps the Gramian of the task gradients, or the losses, to task weights."""

from mtlfast.weighting.aligned_mtl import AlignedMTL
from mtlfast.weighting.base import REGISTRY, Weighting, get
from mtlfast.weighting.cagrad import CAGrad
from mtlfast.weighting.column_wise import ColumnWise
from mtlfast.weighting.config import ConFIG
from mtlfast.weighting.constant import Constant
from mtlfast.weighting.gradnorm import GradNorm
from mtlfast.weighting.imtl import IMTL
from mtlfast.weighting.imtlg import IMTLG
from mtlfast.weighting.krum import Krum
from mtlfast.weighting.mean import Mean
from mtlfast.weighting.pcgrad import PCGrad
from mtlfast.weighting.sum import Sum

__all__ = [
    "IMTL",
    "IMTLG",
    "REGISTRY",
    "AlignedMTL",
    "CAGrad",
    "ColumnWise",
    "ConFIG",
    "Constant",
    "GradNorm",
    "Krum",
    "Mean",
    "PCGrad",
    "Sum",
    "Weighting",
    "get",
]
