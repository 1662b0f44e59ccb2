"""Krum and Multi-Krum in plain torch (Blanchard et al., NIPS 2017, arXiv 1703.02757)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of Krum: 1 / num_selected for the tasks nearest to their neighbours, else 0.

    Options: ``num_byzantine``, ``num_selected``, ``norm`` (0: squared distances, 1: distances). Of
    equal scores the lowest index is taken. Tasks too few to have neighbours get 1/K each, which is
    degenerate unless ``num_selected`` is K.
    """
    num_byzantine, num_selected, norm = (int(option) for option in problem.options)
    num_tasks = problem.num_tasks
    num_neighbours = num_tasks - num_byzantine - 2
    if num_neighbours < 1 or not 1 <= num_selected <= num_tasks:
        status = scaffold.OK if num_selected == num_tasks else scaffold.DEGENERATE
        return torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64), status
    squared = problem.gramian.diagonal()
    distances = (squared + squared[:, None] - 2 * problem.gramian).clamp(min=0)
    if norm:
        distances = distances.sqrt()
    distances = distances.triu(1) + distances.triu(1).T
    others = distances[~torch.eye(num_tasks, dtype=torch.bool)].view(num_tasks, num_tasks - 1)
    scores = others.sort(dim=1).values[:, :num_neighbours].sum(1)
    best = scores.sort(stable=True).indices[:num_selected]
    weights = torch.zeros(num_tasks, dtype=torch.float64)
    weights[best] = 1 / num_selected
    return weights, scaffold.OK
