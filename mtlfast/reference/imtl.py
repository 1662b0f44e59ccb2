"""IMTL in plain torch (Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.imtlg import impartial
from mtlfast.reference.scaffold import Problem

_LIMIT = 50.0  # of |s|


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of IMTL from before this call's update of the scales s, which goes to ``state``.

    Options: ``lr``. State ``[K]``: s. Step by step the s follow the gradient of the sum of
    ``exp(s) L - s``; that of a loss which is not positive stays (degenerate).
    """
    (lr,) = problem.options
    losses, state = problem.losses, problem.state
    if losses is None or state is None:
        return torch.full((problem.num_tasks,), math.nan, dtype=torch.float64), scaffold.NON_FINITE
    ratios = state.exp()
    weights, status = impartial(problem.gramian, ratios)
    step = (lr * (ratios * losses - 1)).clamp(-1, 1)
    positive = losses > 0
    state.copy_(torch.where(positive, (state - step).clamp(-_LIMIT, _LIMIT), state))
    if status == scaffold.OK and not bool(positive.all()):
        status = scaffold.DEGENERATE
    return weights, status
