"""ConFIG in plain torch (Liu et al., ICLR 2025, arXiv 2408.11104)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold, spectral
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of ConFIG: a direction with cosines in proportion to p, as long as the projections.

    Inputs: the preference p, or None for ones. Tasks with a zero gradient get 0. Where no direction
    has such cosines, all weights are 0 (degenerate).
    """
    weights = torch.zeros(problem.num_tasks, dtype=torch.float64)
    alive = problem.gramian.diagonal() > 0
    if not bool(alive.any()):
        return weights, scaffold.DEGENERATE
    target = torch.ones_like(weights) if problem.inputs is None else problem.inputs
    gramian = problem.gramian[alive][:, alive]
    coefficients, reached, _ = spectral.common_cosines(gramian, target[alive])
    energy = coefficients @ reached  # squared length of sum_i coefficients_i u_i
    if not energy > 0:
        return weights, scaffold.DEGENERATE
    norms = gramian.diagonal().sqrt()
    weights[alive] = (norms @ reached) / energy * coefficients / norms
    return weights, scaffold.OK
