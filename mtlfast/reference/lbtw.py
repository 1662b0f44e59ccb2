"""LBTW in plain torch (Liu et al., AAAI 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.losses import door, positive
from mtlfast.reference.scaffold import Problem


@door
def solve(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of LBTW, ``(L / F) ** alpha`` with F the losses of the epoch's first batch.

    Options: ``alpha``. State ``[1 + K]``: batches of this epoch, then F. A task without a positive
    loss in this epoch gets weight 1, one whose loss has turned negative 0 (both degenerate).
    """
    (alpha,) = problem.options
    assert problem.state is not None
    batches, first = problem.state[0], problem.state[1:]
    if batches == 0:
        first.zero_()
    batches += 1
    first.copy_(torch.where((first == 0) & positive(losses), losses, first))
    rates = (losses / first).clamp(min=0) ** alpha
    weights = torch.where(first > 0, rates.clamp(max=torch.finfo(torch.float64).max), 1.0)
    proper = bool(((first > 0) & (losses >= 0)).all())
    return weights, scaffold.OK if proper else scaffold.DEGENERATE
