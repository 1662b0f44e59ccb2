"""What every reference solver shares: the door to it, its statuses, and drawn orders.

The door mirrors ``solve<>`` of ``csrc/solvers/solver.h``: an input that holds NaN or Inf gives NaN
weights and changes nothing; a Gramian is scaled by an exact power of two before the solver sees it.
Reference solvers run on the CPU in float64, wherever their input lives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

OK = 0
DEGENERATE = 1
NOT_CONVERGED = 2
NON_FINITE = 3

EPSILON = torch.finfo(torch.float64).eps
_MASK = 2**64 - 1


@dataclass(frozen=True)
class Problem:
    """One call of a solver, every tensor on the CPU.

    Attributes:
        num_tasks: K.
        gramian: ``[K, K]`` float64, scaled so that its largest diagonal entry is in (1/4, 1]; zeros
            where none was given.
        scale: power of two; the norm of task gradient ``i`` is ``scale * sqrt(gramian[i, i])``.
        options: the method's numbers, in the order of its C++ header.
        losses: ``[K]`` float64, or None.
        inputs: ``[K]`` float64, the method's own numbers of this call, or None.
        order: ``[K, K]`` int64, or None.
        rng: ``[2]`` int64, (seed, counter), or None; a solver that draws advances the counter.
        state: float64 state of the method, changed in place, or None.
    """

    num_tasks: int
    gramian: Tensor
    scale: float
    options: Sequence[float]
    losses: Tensor | None
    inputs: Tensor | None
    order: Tensor | None
    rng: Tensor | None
    state: Tensor | None


class Solver(Protocol):
    """A solver of a raw Gramian; see :func:`door`."""

    def __call__(
        self,
        gramian: Tensor | None,
        options: Sequence[float],
        losses: Tensor | None,
        inputs: Tensor | None,
        order: Tensor | None,
        rng: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, int]:
        """Weights ``[K]`` and a status."""


def door(solver: Callable[[Problem], tuple[Tensor, int]]) -> Solver:
    """Turns a function of a :class:`Problem` into a solver of a raw Gramian.

    Returns:
        A function ``(gramian, options, losses, inputs, order, rng, state) -> (weights, status)``
        whose weights ``[K]`` are float64 on the device of the Gramian, or of the losses where there
        is none, and which changes ``rng`` and ``state`` in place.
    """

    @functools.wraps(solver)
    def solve(
        gramian: Tensor | None,
        options: Sequence[float],
        losses: Tensor | None,
        inputs: Tensor | None,
        order: Tensor | None,
        rng: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, int]:
        given = losses if gramian is None else gramian
        if given is None:
            raise ValueError("gramian: expected [K, K], or losses [K] instead, found None")
        num_tasks = len(given)
        raw, rates, numbers = (_float64(x) for x in (gramian, losses, inputs))
        if any(x is not None and not bool(x.isfinite().all()) for x in (raw, rates, numbers)):
            unknown = torch.full((num_tasks,), math.nan, dtype=torch.float64)
            return unknown.to(given.device), NON_FINITE
        scale = 1.0 if raw is None else _power_of_two(float(raw.diagonal().max()))
        if raw is None:
            raw = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
        problem = Problem(
            num_tasks=num_tasks,
            gramian=raw / scale / scale,
            scale=scale,
            options=options,
            losses=rates,
            inputs=numbers,
            order=None if order is None else order.cpu(),
            rng=None if rng is None else rng.cpu().clone(),
            state=None if state is None else state.cpu().clone(),
        )
        weights, status = solver(problem)
        if rng is not None and problem.rng is not None:
            rng.copy_(problem.rng)
        if state is not None and problem.state is not None:
            state.copy_(problem.state)
        return weights.to(given.device), status

    return solve


def _float64(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to("cpu", torch.float64)


def _power_of_two(largest: float) -> float:
    """The power of two s for which largest / s^2 is in (1/4, 1]; 1 where nothing is positive."""
    if largest <= 0.0:
        return 1.0
    mantissa, exponent = math.frexp(largest)
    if mantissa == 0.5:
        exponent -= 1
    return math.ldexp(1.0, math.ceil(exponent / 2))


def _mix(x: int) -> int:
    """The splitmix64 step on 64-bit integers."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def random_bits(seed: int, counter: int, row: int, position: int) -> int:
    """A hash of its arguments, uniform over 64 bits, as in ``csrc/solvers/random.h``."""
    call = _mix(_mix(seed & _MASK) ^ (counter & _MASK))
    return _mix(_mix(call ^ row) ^ position)


def meetings(problem: Problem) -> Tensor:
    """``[K, K]`` int64: whom each task meets; as given, drawn (``rng`` advances), or 0 .. K-1."""
    if problem.order is not None:
        return problem.order
    if problem.rng is None:
        return torch.arange(problem.num_tasks).expand(problem.num_tasks, problem.num_tasks)
    seed, counter = problem.rng.tolist()
    problem.rng[1] = counter + 1
    return draw_orders(seed, counter, problem.num_tasks)


def draw_orders(seed: int, counter: int, num_tasks: int) -> Tensor:
    """The orders that a solver draws without ``order``, one permutation of the tasks per row.

    They are a pure function of their arguments, the same integers as in ``csrc/solvers/random.h``.

    Args:
        seed: 64-bit integer, from the method's rng.
        counter: number of calls that have drawn from this seed before.
        num_tasks: K.

    Returns:
        ``[K, K]`` int64.
    """
    rows = []
    for row in range(num_tasks):
        order = list(range(num_tasks))
        for position in range(num_tasks - 1, 0, -1):
            bits = random_bits(seed, counter, row, position) >> 32
            other = (bits * (position + 1)) >> 32
            order[position], order[other] = order[other], order[position]
        rows.append(order)
    return torch.tensor(rows, dtype=torch.int64).reshape(num_tasks, num_tasks)


def draw_normals(seed: int, counter: int, num_tasks: int) -> Tensor:
    """The ``[K]`` standard normal float64 numbers that a solver draws without any given.

    They are a pure function of the arguments of :func:`draw_orders`, by Box and Muller's formula as
    in ``csrc/solvers/random.h``.
    """
    call = _mix(_mix(seed & _MASK) ^ (counter & _MASK))
    numbers = []
    for position in range(num_tasks):
        # Two uniform numbers, multiples of 2^-53 in (0, 1].
        one, other = (((_mix(_mix(call ^ row) ^ position) >> 11) + 1) * 2.0**-53 for row in (0, 1))
        numbers.append(math.sqrt(-2.0 * math.log(one)) * math.cos(2.0 * math.pi * other))
    return torch.tensor(numbers, dtype=torch.float64)
