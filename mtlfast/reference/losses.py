"""What the references of the loss family share: their door, positive losses, softmax, Adam."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import Problem, Solver

_TINY = torch.finfo(torch.float64).tiny


def door(solver: Callable[[Problem, Tensor], tuple[Tensor, int]]) -> Solver:
    """As :func:`scaffold.door`, for a function of a problem and its losses ``[K]``."""

    @scaffold.door
    @functools.wraps(solver)
    def solve(problem: Problem) -> tuple[Tensor, int]:
        if problem.losses is None:
            unknown = torch.full((problem.num_tasks,), math.nan, dtype=torch.float64)
            return unknown, scaffold.NON_FINITE
        return solver(problem, problem.losses)

    return solve


def positive(values: Tensor) -> Tensor:
    """``[K]`` bool: where ``log`` and ``1 / x`` mean anything; what is smaller counts as zero."""
    return values >= _TINY


def softmax(values: Tensor, members: Tensor) -> Tensor:
    """``[K]`` softmax over the members; the others get 0, as all do where there is no member."""
    if not bool(members.any()):
        return torch.zeros_like(values)
    return torch.where(members, values, -math.inf).softmax(0)


def adam(slope: Tensor, first: Tensor, second: Tensor, count: Tensor, members: Tensor) -> Tensor:
    """``[K]`` steps of torch's Adam before the learning rate; zero for others than the members.

    Args:
        slope: ``[K]``.
        first: ``[K]`` first moments, advanced in place for the members.
        second: ``[K]`` second moments, likewise.
        count: updates done, this one included.
        members: ``[K]`` bool.
    """
    first.copy_(torch.where(members, 0.9 * first + 0.1 * slope, first))
    second.copy_(torch.where(members, 0.999 * second + 0.001 * slope**2, second))
    step = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
    return torch.where(members, step, 0.0)


def orthogonal_part(unit: Tensor, other: Tensor) -> Tensor:
    """The part of a unit vector ``[K]`` orthogonal to another; zero where it is but rounding."""
    part = unit - (unit @ other) * other
    noise = (4 + len(unit)) * torch.finfo(torch.float64).eps
    return part if bool(part.norm() > noise) else torch.zeros_like(part)


def normalized(values: Tensor) -> tuple[Tensor, float]:
    """``values / |values|`` (zeros for zeros) and ``|values|``, which may be Inf."""
    largest = values.abs().max()
    if not bool(largest > 0):
        return torch.zeros_like(values), 0.0
    scaled = values / largest  # its squares neither overflow nor vanish
    return scaled / scaled.norm(), float(largest * scaled.norm())
