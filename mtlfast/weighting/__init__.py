"""The methods: each maps the Gramian of the task gradients, or the losses, to task weights."""

from mtlfast.weighting.aligned_mtl import AlignedMTL
from mtlfast.weighting.base import REGISTRY, Weighting, get
from mtlfast.weighting.cagrad import CAGrad
from mtlfast.weighting.column_wise import ColumnWise
from mtlfast.weighting.config import ConFIG
from mtlfast.weighting.constant import Constant
from mtlfast.weighting.cosmos import COSMOS
from mtlfast.weighting.crmogm import CRMOGM
from mtlfast.weighting.dbmtl import DBMTL
from mtlfast.weighting.dtp import DTP
from mtlfast.weighting.dualproj import DualProj
from mtlfast.weighting.dwa import DWA
from mtlfast.weighting.excess_mtl import ExcessMTL
from mtlfast.weighting.fairgrad import FairGrad
from mtlfast.weighting.famo import FAMO
from mtlfast.weighting.gls import GLS
from mtlfast.weighting.graddrop import GradDrop
from mtlfast.weighting.gradnorm import GradNorm
from mtlfast.weighting.gradvac import GradVac
from mtlfast.weighting.imtl import IMTL
from mtlfast.weighting.imtlg import IMTLG
from mtlfast.weighting.imtll import IMTLL
from mtlfast.weighting.krum import Krum
from mtlfast.weighting.lbtw import LBTW
from mtlfast.weighting.mean import Mean
from mtlfast.weighting.mgda import MGDA
from mtlfast.weighting.moco import MoCo
from mtlfast.weighting.modo import MoDo
from mtlfast.weighting.nash import NashMTL
from mtlfast.weighting.pbi import PBI
from mtlfast.weighting.pcd import PCD
from mtlfast.weighting.pcgrad import PCGrad
from mtlfast.weighting.rlw import RLW, Random
from mtlfast.weighting.scalarization import Scalarization
from mtlfast.weighting.sdmgrad import SDMGrad
from mtlfast.weighting.si import SI
from mtlfast.weighting.stch import STCH
from mtlfast.weighting.sum import Sum
from mtlfast.weighting.trimmed_mean import TrimmedMean
from mtlfast.weighting.upgrad import UPGrad
from mtlfast.weighting.uw import UW

__all__ = [
    "COSMOS",
    "CRMOGM",
    "DBMTL",
    "DTP",
    "DWA",
    "FAMO",
    "GLS",
    "IMTL",
    "IMTLG",
    "IMTLL",
    "LBTW",
    "MGDA",
    "PBI",
    "PCD",
    "REGISTRY",
    "RLW",
    "SI",
    "STCH",
    "UW",
    "AlignedMTL",
    "CAGrad",
    "ColumnWise",
    "ConFIG",
    "Constant",
    "DualProj",
    "ExcessMTL",
    "FairGrad",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "Krum",
    "Mean",
    "MoCo",
    "MoDo",
    "NashMTL",
    "PCGrad",
    "Random",
    "SDMGrad",
    "Scalarization",
    "Sum",
    "TrimmedMean",
    "UPGrad",
    "Weighting",
    "get",
]
