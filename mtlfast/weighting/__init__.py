"""The methods: each maps the Gramian of the task gradients, or the losses, to task weights."""

from mtlfast.weighting.base import REGISTRY, Weighting, get
from mtlfast.weighting.cagrad import CAGrad
from mtlfast.weighting.column_wise import ColumnWise
from mtlfast.weighting.constant import Constant
from mtlfast.weighting.dualproj import DualProj
from mtlfast.weighting.gradnorm import GradNorm
from mtlfast.weighting.mean import Mean
from mtlfast.weighting.mgda import MGDA
from mtlfast.weighting.pcd import PCD
from mtlfast.weighting.pcgrad import PCGrad
from mtlfast.weighting.sum import Sum
from mtlfast.weighting.upgrad import UPGrad

__all__ = [
    "MGDA",
    "PCD",
    "REGISTRY",
    "CAGrad",
    "ColumnWise",
    "Constant",
    "DualProj",
    "GradNorm",
    "Mean",
    "PCGrad",
    "Sum",
    "UPGrad",
    "Weighting",
    "get",
]
