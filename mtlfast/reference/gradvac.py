"""GradVac in plain torch (Wang et al., ICLR 2021, arXiv 2010.05874)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import EPSILON, Problem

_VANISHED = 64 * EPSILON  # of |v|^2, relative to (sum |c_k| n_k)^2
_HIGHEST_GOAL = 1 - 64 * EPSILON  # no share of g_j lifts v to a cosine of 1
_LONGEST = 1e100  # of v, whose square must be finite


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of GradVac; all K running gradients advance together, one meeting at a time.

    Options: ``beta``, ``mean`` (0: sum over the tasks, 1: divided by K). State ``[K, K]``: the
    goals phi, row i those of task i. Without ``order`` the meetings are drawn from ``rng``; without
    either, task i meets 0, 1, ..., K-1. Zero gradients, and running ones that have vanished, meet
    nobody. Goals near 1 may ask for more than float64 holds: such a lift is left out (degenerate).
    """
    beta, mean = problem.options
    gramian, num_tasks, state = problem.gramian, problem.num_tasks, problem.state
    assert state is not None
    goals = state.view(num_tasks, num_tasks)
    order = scaffold.meetings(problem)

    rows = torch.arange(num_tasks)
    norms = gramian.diagonal().clamp(min=0).sqrt()
    shares = torch.eye(num_tasks, dtype=torch.float64)  # row i: the coefficients c of task i
    status = scaffold.OK
    for met in order.unbind(1):  # [K]: whom each task meets now
        spread = shares.abs() @ norms
        lengths2 = ((shares @ gramian) * shares).sum(1)  # |v|^2
        meets = (met != rows) & (norms[met] > 0) & (lengths2 > _VANISHED * spread**2)
        lengths = lengths2.clamp(min=0).sqrt()
        products = (shares * gramian[met]).sum(1)  # <v, g_met>
        cosines = (products / (lengths * norms[met])).clamp(-1, 1)
        known = goals[rows, met]
        goal = known.clamp(max=_HIGHEST_GOAL)
        goals[rows, met] = torch.where(meets, (1 - beta) * known + beta * cosines, known)
        sines = _sines(goal)
        lifted = meets & (cosines < goal) & (sines > 0)
        lifts = lengths * (goal * _sines(cosines) - cosines * sines) / sines
        held = lifted & (spread + lifts < _LONGEST)
        if bool((lifted & ~held).any()):
            status = scaffold.DEGENERATE
        shares[rows, met] += torch.where(held, lifts / norms[met], 0.0)
    weights = shares.sum(0)
    return (weights / num_tasks if mean else weights), status


def _sines(cosines: Tensor) -> Tensor:
    squared = (1 - cosines) * (1 + cosines)
    return torch.where(squared > 8 * EPSILON, squared, 0.0).sqrt()  # less is the cosine's rounding
