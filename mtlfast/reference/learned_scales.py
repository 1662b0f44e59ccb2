"""UW (Kendall et al., CVPR 2018, arXiv 1705.07115) and IMTL-L (Liu et al., ICLR 2021) in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.losses import adam, door, positive
from mtlfast.reference.scaffold import Problem

_LIMIT = 50.0  # of |s|
_ADAM, _SLOPES = 0, 2  # the optimizers that are not SGD


@door
def uw(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of UW, ``exp(-s) / 2`` before this call's update of s; see :func:`_solve`."""
    return _solve(problem, losses, sign=-1.0, half=0.5)


@door
def imtll(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of IMTL-L, ``exp(s)`` before this call's update of s; see :func:`_solve`."""
    return _solve(problem, losses, sign=1.0, half=1.0)


def _solve(problem: Problem, losses: Tensor, sign: float, half: float) -> tuple[Tensor, int]:
    """Weights ``half exp(sign s)``; s goes down ``half (exp(sign s) L - sign s)``.

    Options: ``lr``, ``optimizer`` (0: Adam on bounded slopes, 1: SGD, 2: none, the slopes are left
    where the first moments would be), first ``s``. Inputs: s, without an optimizer. State
    ``[1 + 3 K]``: calls, then K each of s, first and second moments. A task whose loss is not
    positive keeps its s (degenerate).
    """
    lr, optimizer, initial = problem.options
    assert problem.state is not None
    calls, (scalars, first, second) = problem.state[0], problem.state[1:].view(3, -1)
    if calls == 0:
        scalars.fill_(initial)
    calls += 1
    if optimizer == _SLOPES and problem.inputs is not None:
        scalars.copy_(problem.inputs)
    factor = (sign * scalars.clamp(-_LIMIT, _LIMIT)).exp()
    usable = positive(losses)
    scaled = (factor * losses).clamp(max=torch.finfo(torch.float64).max)
    slope = torch.where(usable, sign * half * (scaled - 1), 0.0)
    if optimizer == _SLOPES:
        first.copy_(slope)
    else:
        if optimizer == _ADAM:
            slope = slope / scaled.clamp(min=1.0)
            slope = adam(slope, first, second, calls, usable)
        scalars.copy_((scalars - lr * slope).clamp(-_LIMIT, _LIMIT))
    return half * factor, scaffold.OK if bool(usable.all()) else scaffold.DEGENERATE
