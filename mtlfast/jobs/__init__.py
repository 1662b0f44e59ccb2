"""Training problems for ``mtlfast demo``: one file per job.

A new job is a file with a subclass of :class:`Job` and its line here.
"""

from mtlfast.jobs.base import REGISTRY, Job, Metric, Trial, get, require_packages
from mtlfast.jobs.burgers import Burgers
from mtlfast.jobs.multidigits import MultiDigits
from mtlfast.jobs.two_objectives import TwoObjectives, TwoObjectivesCAGrad

__all__ = [
    "REGISTRY",
    "Burgers",
    "Job",
    "Metric",
    "MultiDigits",
    "Trial",
    "TwoObjectives",
    "TwoObjectivesCAGrad",
    "get",
    "require_packages",
]
