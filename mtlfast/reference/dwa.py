"""DWA in plain torch (Liu et al., CVPR 2019, arXiv 1803.10704)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.losses import door
from mtlfast.reference.scaffold import Problem


@door
def solve(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of DWA, K times a softmax of the rates of the last two epochs' mean losses.

    Options: ``temperature``. State ``[2 + 3 K]``: batches of this epoch, epochs ended, then K each
    of the mean losses of this epoch, the last one, the one before. A task without a rate (zero
    before, or of another sign) gets rate 1 (degenerate).
    """
    (temperature,) = problem.options
    state, num_tasks = problem.state, problem.num_tasks
    assert state is not None
    batches, epochs = state[:2]
    mean, last, older = state[2:].view(3, num_tasks)
    weights, status = torch.ones(num_tasks, dtype=torch.float64), scaffold.OK
    if epochs >= 2:
        rates = last / older
        known = (older != 0) & (rates >= 0) & rates.isfinite()
        rates = torch.where(known, rates, 1.0)
        weights = num_tasks * (rates / temperature).softmax(0)
        status = scaffold.OK if bool(known.all()) else scaffold.DEGENERATE
    batches += 1
    mean += losses / batches - mean / batches
    return weights, status
