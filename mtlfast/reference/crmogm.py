"""CR-MOGM in plain torch (Zhou et al., NeurIPS 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """A moving average of another method's weights, which come as the losses.

    Options: ``alpha``, the share of the former average. State ``[1 + K]``: whether there is one,
    the average. The first is the first weights themselves.
    """
    (alpha,) = problem.options
    fresh, state = problem.losses, problem.state
    if fresh is None or state is None:
        return torch.full((problem.num_tasks,), math.nan, dtype=torch.float64), scaffold.NON_FINITE
    kept = alpha if state[0] else 0.0
    state[0] = 1.0
    state[1:] = kept * state[1:] + (1 - kept) * fresh
    return state[1:].clone(), scaffold.OK
