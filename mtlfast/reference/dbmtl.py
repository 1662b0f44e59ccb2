"""DB-MTL in plain torch (Lin et al., 2023, arXiv 2308.12029)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of DB-MTL: the longest log-loss gradient over the length of each compared gradient.

    Options: ``buffered`` (0: the Gramian is that of the raw gradients, 1: of buffers of log-loss
    gradients). State ``[1]`` or None: calls so far. Zero gradients and tasks without a positive
    loss get weight 0. Degenerate: there is such a loss, or all gradients are zero.
    """
    (buffered,) = problem.options
    losses = problem.losses
    if losses is None:
        return torch.full((problem.num_tasks,), math.nan, dtype=torch.float64), scaffold.NON_FINITE
    if problem.state is not None:
        problem.state[0] += 1
    positive = losses > 0
    norms = torch.where(positive, problem.gramian.diagonal().clamp(min=0).sqrt(), 0.0)
    lengths = norms if buffered else torch.where(positive, norms / (losses + 1e-8), 0.0)
    longest = lengths.max()
    weights = torch.where(norms > 0, longest / norms, 0.0)
    proper = bool(positive.all()) and bool(longest > 0)
    return weights, scaffold.OK if proper else scaffold.DEGENERATE
