"""DualProj in plain torch (Lopez-Paz and Ranzato, NIPS 2017, arXiv 1706.08840)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import nnls, scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of DualProj: p + z, z >= 0 with the shortest update.

    Inputs: the preferences p, or None for 1 / K each. A task with a zero gradient has weight p_i.
    """
    num_tasks = problem.num_tasks
    preference = problem.inputs
    if preference is None:
        preference = torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)
    weights = preference.clone()
    alive = problem.gramian.diagonal() > 0
    if not bool(alive.any()):
        return weights, scaffold.OK
    norms, rows = nnls.unit_rows(problem.gramian[alive][:, alive])
    added, reached = nnls.solve(rows.T, -(preference[alive] * norms) @ rows)
    weights[alive] += added / norms
    return weights, scaffold.OK if reached else scaffold.NOT_CONVERGED
