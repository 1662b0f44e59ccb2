"""COSMOS in plain torch (Ruchte and Grabocka, ICDM 2021, arXiv 2103.13392)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.losses import door, normalized, orthogonal_part
from mtlfast.reference.scaffold import Problem


@door
def solve(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of COSMOS, the gradient of ``<r, L> - penalty cos(r, L)``.

    Options: ``penalty``. Inputs: the preference r, or None for 1 / K. Where L has no direction
    w = r (degenerate).
    """
    (penalty,) = problem.options
    preference = problem.inputs
    if preference is None:
        preference = torch.full_like(losses, 1 / problem.num_tasks)
    wanted, _ = normalized(preference)
    found, length = normalized(losses)
    pull = penalty / length if length > 0 else math.inf
    if math.isinf(pull):
        return preference.clone(), scaffold.DEGENERATE
    return preference - pull * orthogonal_part(wanted, found), scaffold.OK
