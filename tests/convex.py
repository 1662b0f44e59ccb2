"""Jacobians that a convex solver may find hard, and what the tests of such solvers share."""

from __future__ import annotations

from typing import Any

import torch
from cases import random_jacobian
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

ANY = settings(max_examples=60, deadline=None, derandomize=True)
KINDS = [
    "plain",
    "conflict",
    "decades",
    "duplicates",
    "opposites",
    "zeros",
    "more tasks than columns",
]


def double(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def jacobian_of(kind: str, num_tasks: int, seed: int) -> Tensor:
    """``[K, P]`` float64 of a kind that a solver may find hard."""
    jacobian = random_jacobian(num_tasks, seed, conflict=0.0 if kind == "plain" else 0.95)
    half = num_tasks // 2
    if kind == "decades":
        return jacobian * 10.0 ** torch.linspace(-4, 0, num_tasks).double()[:, None]
    if kind == "duplicates":
        return jacobian[torch.arange(num_tasks) // 2]
    if kind == "opposites":
        return torch.cat((jacobian[: num_tasks - half], -1.5 * jacobian[:half]))
    if kind == "zeros":
        return jacobian * (torch.arange(num_tasks) % 3 != 1)[:, None]
    if kind == "more tasks than columns":
        return jacobian[:, : max(1, half)]
    return jacobian


def jacobians(least: int = 1) -> Any:
    """A Jacobian of any kind and K."""
    return st.builds(
        jacobian_of, st.sampled_from(KINDS), st.integers(least, 12), st.integers(0, 2**31)
    )


def longest2(jacobian: Tensor) -> float:
    return float(jacobian.square().sum(1).max())
