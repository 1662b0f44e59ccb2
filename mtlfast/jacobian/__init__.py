"""Where the K task gradients come from: the engines."""

from __future__ import annotations

from mtlfast.jacobian.choice import ENGINES, GRAMIAN_ONLY, differentiate
from mtlfast.jacobian.gradients import Jacobian, TaskGradients, add, masked
from mtlfast.jacobian.joint import reused, weighted_
from mtlfast.jacobian.notes import Notes
from mtlfast.jacobian.request import Request, Split

__all__ = [
    "ENGINES",
    "GRAMIAN_ONLY",
    "Jacobian",
    "Notes",
    "Request",
    "Split",
    "TaskGradients",
    "add",
    "differentiate",
    "masked",
    "reused",
    "weighted_",
]
