"""MoDo in plain torch (Chen, Fernando et al., NeurIPS 2023, arXiv 2305.20057)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold, simplex
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of MoDo after one projected step along ``A lambda + rho lambda``, ``A = J1 J2ᵀ``.

    Options: ``gamma``, ``rho``, ``mean`` (0: the weights are lambda for both batches, 1: half of
    it). The Gramian is ``[2K, 2K]``, and so are there 2 K weights. State ``[K]``: lambda.
    """
    gamma, rho, mean = problem.options
    num_tasks, weights = problem.num_tasks // 2, problem.state
    if weights is None or problem.num_tasks % 2:
        return torch.full((problem.num_tasks,), math.nan, dtype=torch.float64), scaffold.NON_FINITE
    across = problem.gramian[:num_tasks, num_tasks:]
    simplex.started(weights)
    weights.copy_(simplex.descended(weights, across, problem.scale, gamma, rho))
    return weights.repeat(2) / (2 if mean else 1), scaffold.OK
