"""Aligned-MTL in plain torch (Senushkin et al., CVPR 2023, arXiv 2305.19000)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold, spectral
from mtlfast.reference.scaffold import EPSILON, Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of Aligned-MTL: sqrt(level) G^(-1/2) p on the rank of the Gramian.

    Options: ``scale`` of the level (0: smallest eigenvalue, 1: lower median, 2: mean). Inputs: the
    preference p, or None for 1/K each. Without any gradient the weights are p (degenerate).
    """
    (scale,) = problem.options
    num_tasks = problem.num_tasks
    preference = problem.inputs
    if preference is None:
        preference = torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)
    alive = problem.gramian.diagonal() > 0
    if not bool(alive.any()):
        return preference.clone(), scaffold.DEGENERATE

    values, vectors = spectral.eigenpairs(problem.gramian[alive][:, alive])
    kept = values > num_tasks * EPSILON * values.max()
    values, vectors = values[kept], vectors[:, kept]
    level = (values.min(), values.median(), values.mean())[int(scale)]
    weights = torch.zeros(num_tasks, dtype=torch.float64)
    weights[alive] = vectors @ ((vectors.T @ preference[alive]) * (level / values).sqrt())
    return weights, scaffold.OK
