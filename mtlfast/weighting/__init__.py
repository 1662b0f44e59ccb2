"""The methods: each maps the Gramian of the task gradients, or the losses, to task weights."""

from mtlfast.weighting.base import REGISTRY, Weighting, get
from mtlfast.weighting.cagrad import CAGrad
from mtlfast.weighting.column_wise import ColumnWise
from mtlfast.weighting.constant import Constant
from mtlfast.weighting.crmogm import CRMOGM
from mtlfast.weighting.dbmtl import DBMTL
from mtlfast.weighting.gradnorm import GradNorm
from mtlfast.weighting.mean import Mean
from mtlfast.weighting.moco import MoCo
from mtlfast.weighting.modo import MoDo
from mtlfast.weighting.pcgrad import PCGrad
from mtlfast.weighting.sdmgrad import SDMGrad
from mtlfast.weighting.sum import Sum

__all__ = [
    "CRMOGM",
    "DBMTL",
    "REGISTRY",
    "CAGrad",
    "ColumnWise",
    "Constant",
    "GradNorm",
    "Mean",
    "MoCo",
    "MoDo",
    "PCGrad",
    "SDMGrad",
    "Sum",
    "Weighting",
    "get",
]
