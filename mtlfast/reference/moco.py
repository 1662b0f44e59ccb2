"""MoCo's task weights in plain torch (Fernando et al., ICLR 2023, arXiv 2210.12624)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold, simplex
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights lambda of MoCo after one projected step along ``G lambda + rho lambda``.

    Options: ``gamma``, ``rho``, ``decay`` (the t-th step has length ``gamma / t^decay``). The
    Gramian is that of the buffers. State ``[1 + K]``: steps so far, lambda.
    """
    gamma, rho, decay = problem.options
    state = problem.state
    if state is None:
        return torch.full((problem.num_tasks,), math.nan, dtype=torch.float64), scaffold.NON_FINITE
    weights = state[1:]
    simplex.started(weights)
    state[0] += 1
    rate = gamma / float(state[0] ** decay)
    weights.copy_(simplex.descended(weights, problem.gramian, problem.scale, rate, rho))
    return weights.clone(), scaffold.OK
