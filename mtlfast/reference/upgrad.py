"""UPGrad in plain torch (Quinton and Rey 2024, arXiv 2406.16232)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import nnls, scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of UPGrad: p_i e_i + z, summed over the tasks, z >= 0 with the shortest update.

    Inputs: the preferences p, or None for 1 / K each. A task with a zero gradient has weight p_i.
    """
    num_tasks = problem.num_tasks
    preference = problem.inputs
    if preference is None:
        preference = torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)
    weights = preference.clone()
    alive = (problem.gramian.diagonal() > 0).nonzero()[:, 0]
    if len(alive) == 0:
        return weights, scaffold.OK

    norms, rows = nnls.unit_rows(problem.gramian[alive][:, alive])
    status = scaffold.OK
    for own, task in enumerate(alive.tolist()):
        added, reached = nnls.solve(rows.T, -rows[own])
        weights[alive] += preference[task] * norms[own] * added / norms
        if not reached:
            status = scaffold.NOT_CONVERGED
    return weights, status
