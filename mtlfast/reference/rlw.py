"""RLW in plain torch (Lin et al., TMLR 2022, arXiv 2111.10603)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of RLW, the softmax of ``inputs``; without them of normal numbers from ``rng``."""
    normal = problem.inputs
    if normal is None and problem.rng is not None:
        seed, counter = problem.rng.tolist()
        normal = scaffold.draw_normals(seed, counter, problem.num_tasks)
        problem.rng[1] = counter + 1
    if normal is None:
        normal = torch.zeros(problem.num_tasks, dtype=torch.float64)
    return normal.softmax(0), scaffold.OK
