"""DTP in plain torch (Guo et al., ECCV 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of DTP, ``-(1 - k) ** gamma * log(k)``, after taking in new indicators.

    Options: ``gamma``, ``alpha``. Inputs: new indicators in (0, 1], or None. State ``[1 + K]``:
    observations, then the running means k. Before the first observation the weights are 1.
    """
    gamma, alpha = problem.options
    if problem.state is None:
        unknown = torch.full((problem.num_tasks,), math.nan, dtype=torch.float64)
        return unknown, scaffold.NON_FINITE
    observations, means = problem.state[0], problem.state[1:]
    if problem.inputs is not None:
        share = alpha if observations > 0 else 1.0
        means.copy_(share * problem.inputs + (1 - share) * means)
        observations += 1
    if observations == 0:
        return torch.ones_like(means), scaffold.OK
    return (1 - means) ** gamma * (-means.log()).clamp(min=0), scaffold.OK
