"""SDMGrad in plain torch (Xiao, Ban and Ji, NeurIPS 2023, arXiv 2305.18409)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold, simplex
from mtlfast.reference.scaffold import Problem

_LARGEST = 1e100  # of A over the typical norm, which may be mere noise


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of SDMGrad: zeros for two batches, ``(w + r / K) / (1 + r)`` for the third.

    Options: ``lr``, ``momentum``, ``r``, ``num_steps`` of the projected descent on w. The Gramian
    is ``[3K, 3K]``. State ``[K]``: w. Without any length to compare with, w stays (degenerate).
    """
    lr, momentum, pull, num_steps = problem.options
    num_tasks, point = problem.num_tasks // 3, problem.state
    if point is None or problem.num_tasks % 3:
        return torch.full((problem.num_tasks,), math.nan, dtype=torch.float64), scaffold.NON_FINITE
    simplex.started(point)
    across = problem.gramian[:num_tasks, num_tasks : 2 * num_tasks]
    lengths = problem.gramian.diagonal().clamp(min=0).sqrt()
    unit = across.diagonal().clamp(min=0).sqrt().mean()
    if unit == 0:  # no task agrees with itself
        unit = (lengths[:num_tasks] * lengths[num_tasks : 2 * num_tasks]).sqrt().mean()
    if unit > 0:
        scaled = (across / unit / unit).clamp(-_LARGEST, _LARGEST)
        velocity = torch.zeros_like(point)
        for _ in range(int(num_steps)):
            velocity = momentum * velocity + scaled @ (point + pull / num_tasks)
            point.copy_(simplex.stepped(point, velocity, lr))
    answer = (point + pull / num_tasks) / (1 + pull)
    status = scaffold.OK if unit > 0 else scaffold.DEGENERATE
    return torch.cat([torch.zeros(2 * num_tasks, dtype=torch.float64), answer]), status
