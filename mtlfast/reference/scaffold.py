"""What every reference solver shares: the door to it, its statuses, and drawn orders.

The door mirrors ``solve<>`` of ``csrc/solvers/solver.h``: a Gramian that holds NaN or Inf gives NaN
weights and changes nothing; any other is scaled by an exact power of two before the solver sees it.
Reference solvers run on the CPU in float64, wherever their input lives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        gramian: ``[K, K]`` float64, scaled so that its largest diagonal entry is in (1/4, 1].
        scale: power of two; the norm of task gradient ``i`` is ``scale * sqrt(gramian[i, i])``.
        options: the method's numbers, in the order of its C++ header.
        losses: ``[K]`` float64, or None.
        order: ``[K, K]`` int64, or None.
        rng: ``[2]`` int64, (seed, counter), or None; a solver that draws advances the counter.
        state: float64 state of the method, changed in place, or None.
    """

    gramian: Tensor
    scale: float
    options: Sequence[float]
    losses: Tensor | None
    order: Tensor | None
    rng: Tensor | None
    state: Tensor | None

    @property
    def num_tasks(self) -> int:
        """K."""
        return self.gramian.shape[0]


Solver = Callable[
    [Tensor, Sequence[float], "Tensor | None", "Tensor | None", "Tensor | None", "Tensor | None"],
    tuple[Tensor, int],
]


def door(solver: Callable[[Problem], tuple[Tensor, int]]) -> Solver:
    """Turns a function of a :class:`Problem` into a solver of a raw Gramian.

    Returns:
        A function ``(gramian, options, losses, order, rng, state) -> (weights, status)`` whose
        weights ``[K]`` are float64 on the Gramian's device, and which changes ``rng`` and ``state``
        in place.
    """

    @functools.wraps(solver)
    def solve(
        gramian: Tensor,
        options: Sequence[float],
        losses: Tensor | None,
        order: Tensor | None,
        rng: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, int]:
        raw = gramian.detach().to("cpu", torch.float64)
        if not bool(raw.isfinite().all()):
            unknown = torch.full((len(raw),), math.nan, dtype=torch.float64)
            return unknown.to(gramian.device), NON_FINITE
        scale = _power_of_two(float(raw.diagonal().max()))
        problem = Problem(
            gramian=raw / scale / scale,
            scale=scale,
            options=options,
            losses=None if losses is None else losses.detach().to("cpu", torch.float64),
            order=None if order is None else order.cpu(),
            rng=None if rng is None else rng.cpu().clone(),
            state=None if state is None else state.cpu().clone(),
        )
        weights, status = solver(problem)
        if rng is not None and problem.rng is not None:
            rng.copy_(problem.rng)
        if state is not None and problem.state is not None:
            state.copy_(problem.state)
        return weights.to(gramian.device), status

    return solve


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
    call = _mix(_mix(seed & _MASK) ^ (counter & _MASK))
    rows = []
    for row in range(num_tasks):
        own = _mix(call ^ row)
        order = list(range(num_tasks))
        for position in range(num_tasks - 1, 0, -1):
            other = ((_mix(own ^ position) >> 32) * (position + 1)) >> 32
            order[position], order[other] = order[other], order[position]
        rows.append(order)
    return torch.tensor(rows, dtype=torch.int64).reshape(num_tasks, num_tasks)
