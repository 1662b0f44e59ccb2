"""PCGrad in plain torch (Yu et al., NeurIPS 2020, arXiv 2001.06782)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of PCGrad; all K projected gradients advance together, one meeting at a time.

    Options: ``include_self`` (0, 1), ``mean`` (0: sum over the tasks, 1: divided by K). Without
    ``order`` the meetings are drawn from ``rng``; without either, task i meets 0, 1, ..., K-1.
    """
    include_self, mean = problem.options
    gramian, num_tasks = problem.gramian, problem.num_tasks
    order = scaffold.meetings(problem)

    rows = torch.arange(num_tasks)
    coefficients = torch.eye(num_tasks, dtype=torch.float64)  # row i: the gradient of task i
    for met in order.unbind(1):  # [K]: whom each task meets now
        product = (coefficients * gramian[met]).sum(1)  # <running gradient of i, g_met>
        conflict = product < 0
        if not include_self:
            conflict &= met != rows
        share = product / gramian[met, met]
        coefficients[rows, met] -= torch.where(conflict, share, 0.0)
    weights = coefficients.sum(0)
    return (weights / num_tasks if mean else weights), scaffold.OK
