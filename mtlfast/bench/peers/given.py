"""Ways to balance given gradients in torch, with our solvers for the ``K x K`` part alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor

from mtlfast.bench import methods
from mtlfast.bench.peers.base import Into

__all__ = ["WAYS", "Compiled", "Foreach", "Stacked"]

Rows = list[list[Tensor]]


class Stacked:
    """A matrix of all gradients, and two products."""

    def __init__(self, method: str, into: Into) -> None:
        self.weighting = methods.make(method)
        self.into = into

    def __call__(self) -> None:
        """Balances."""
        rows = self.into.task_grads
        jacobian = stack(rows)
        combined = self.weighting(jacobian @ jacobian.T).to(jacobian.dtype) @ jacobian
        parts = torch.split(combined, [g.numel() for g in rows[0]])
        self.into.write([part.view_as(g) for part, g in zip(parts, rows[0], strict=True)])


class Foreach(Stacked):
    """Lists of tensors, nothing flattened: products of all pairs of tasks, then weighted sums."""

    def __call__(self) -> None:
        """Balances."""
        rows = self.into.task_grads
        gramian = rows[0][0].new_empty(len(rows), len(rows))
        for i, j in combinations_with_replacement(range(len(rows)), 2):
            products = torch._foreach_mul(rows[i], rows[j])
            gramian[i, j] = gramian[j, i] = torch.stack([x.sum() for x in products]).sum()
        weights = self.weighting(gramian).tolist()
        combined = torch._foreach_mul(rows[0], weights[0])
        for row, weight in zip(rows[1:], weights[1:], strict=True):
            torch._foreach_add_(combined, row, alpha=weight)
        self.into.write(combined)


class Compiled(Stacked):
    """Stack and product by ``torch.compile``; and weighted sums, which it turns into one pass."""

    def __call__(self) -> None:
        """Balances; compiles where it has not seen the shapes."""
        rows = self.into.task_grads
        weights = self.weighting(compiled(gramian_of)(rows))
        self.into.write(compiled(sums_of)(rows, weights.to(rows[0][0].dtype)))


WAYS: dict[str, type[Stacked]] = {
    "stack + matmul": Stacked,
    "_foreach": Foreach,
    "compiled": Compiled,
}
"""By the name of the mode."""


def stack(rows: Rows) -> Tensor:
    """``[K, P]``."""
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def gramian_of(rows: Rows) -> Tensor:
    """``[K, K]``."""
    jacobian = stack(rows)
    return jacobian @ jacobian.T


def sums_of(rows: Rows, weights: Tensor) -> list[Tensor]:
    """The weighted sum of every tensor over the tasks."""
    found = []
    for column in zip(*rows, strict=True):
        combined = weights[0] * column[0]
        for weight, grad in zip(weights[1:], column[1:], strict=True):
            combined = combined + weight * grad
        found.append(combined)
    return found


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled for the very shapes that it sees, once for all cases of a run.

    ``fullgraph``: it then raises where it would fall back to the interpreter.
    """
    found: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True)
    return found
