"""Other libraries' methods as functions of one step, for tests that compare with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pytest
import torch
from cases import random_jacobian
from torch import Tensor

from mtlfast import Weighting

VERSIONS = {"torchjd": "0.18.0", "conflictfree": "0.1.8"}


class Modules:
    """The peers' modules; asking for one that is not installed skips the test."""

    @property
    def jd(self) -> Any:
        """TorchJD's aggregators and weightings."""
        return _module("torchjd", "torchjd.aggregation")

    @property
    def scalar(self) -> Any:
        """TorchJD's scalarizers."""
        return _module("torchjd", "torchjd.scalarization")

    @property
    def exact(self) -> Any:
        """TorchJD's projector, almost without regularisation."""
        linalg = _module("torchjd", "torchjd.linalg")
        return linalg.QuadprogProjector(norm_eps=0.0, reg_eps=1e-13)

    @property
    def cf(self) -> Any:
        """conflictfree's operators."""
        return _module("conflictfree", "conflictfree.grad_operator")


def _module(package: str, module: str) -> Any:
    found = pytest.importorskip(module, reason=f"{package} is not installed")
    version = metadata.version(package)
    if version != VERSIONS[package]:
        pytest.skip(f"{package} {version} is installed, the table is for {VERSIONS[package]}")
    return found


@dataclass(frozen=True)
class Step:
    """What one step of training shows to a method.

    Attributes:
        jacobian: ``[B K, P]``, the rows of B batches.
        losses: ``[K]``, and after the step of the wrapped optimizer ``next_losses``.
        inputs: the random numbers of the step, by the names of our calls' arguments.
        seed: of torch's global generator, at which the peer draws the same numbers.
    """

    jacobian: Tensor
    losses: Tensor
    next_losses: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)
    seed: int = 0


Peer = Callable[[Step], Tensor]
"""From a step to the combined gradient ``[P]``; what it closes over may have a state."""


def aggregator(method: Any) -> Peer:
    """A function of the Jacobian, such as TorchJD's aggregators."""
    return lambda step: torch.as_tensor(method(step.jacobian))


def gramian_weighting(method: Any) -> Peer:
    """A function of the Gramian that gives weights, such as TorchJD's weightings."""
    return lambda step: method(step.jacobian @ step.jacobian.T) @ step.jacobian


def scalarizer(method: Any, after: Callable[[Any, Step], object] | None = None) -> Peer:
    """A function of the losses whose derivatives are the weights.

    Args:
        method: the scalarizer.
        after: called after the step, where the method learns.
    """

    def peer(step: Step) -> Tensor:
        losses = step.losses.clone().requires_grad_()
        value = method(losses)
        value.backward()
        assert losses.grad is not None
        if after is not None:
            after(method, step)
        return losses.grad @ step.jacobian

    return peer


def learned(method: Any, lr: float) -> Peer:
    """A scalarizer with parameters that plain SGD moves, as the model's own optimizer would."""
    sgd = torch.optim.SGD(method.parameters(), lr=lr)

    def after(_: Any, __: Step) -> None:
        sgd.step()
        sgd.zero_grad()

    return scalarizer(method, after)


def two_batches(method: Any) -> Peer:
    """TorchJD's MoDo: weights of the products of two batches, applied to their mean."""

    def peer(step: Step) -> Tensor:
        first, second = step.jacobian.chunk(2)
        return torch.as_tensor(method(first @ second.T)) @ (first + second) / 2

    return peer


def three_batches(method: Any) -> Peer:
    """TorchJD's SDMGrad: weights of the products of two batches, applied to a third."""

    def peer(step: Step) -> Tensor:
        first, second, third = step.jacobian.chunk(3)
        return torch.as_tensor(method(first @ second.T) @ third)

    return peer


def full_orders(num_tasks: int) -> Tensor:
    """``[K, K]``: a permutation of all tasks for each task."""
    return torch.stack([torch.randperm(num_tasks) for _ in range(num_tasks)])


def orders_of_others(num_tasks: int) -> Tensor:
    """``[K, K]``: the task itself, which is skipped, then a permutation of the others."""
    rows = []
    for i in range(num_tasks):
        others = torch.tensor([j for j in range(num_tasks) if j != i], dtype=torch.int64)
        rows.append(torch.cat([torch.tensor([i]), others[torch.randperm(num_tasks - 1)]]))
    return torch.stack(rows)


# ---- rows of the tables --------------------------------------------------------------------------

PREFERENCE = [0.5, 1.0, 0.25, 2.0, 1.5, 0.75, 1.25, 0.6]


@dataclass(frozen=True)
class Row:
    """One of our methods, a peer's with the same meaning, and how close they should be."""

    id: str
    ours: Callable[[int], Weighting]  # from K
    theirs: Callable[[Modules, int], Peer]  # from K
    tolerance: float = 1e-12  # of the combined gradient, relative
    note: str = ""  # why the tolerance is not the default one, and other conditions
    data: Callable[[int, int], Tensor] = random_jacobian  # from K and a seed, [K, P]
    steps: int = 1
    dtype: torch.dtype = torch.float64
    draw: Callable[[int, int], dict[str, Tensor]] = lambda k, p: {}  # from K and P, our inputs
    after: Callable[[Weighting, Step], object] = lambda weighting, step: None
    tasks: tuple[int, ...] = (2, 3, 8)

    def __str__(self) -> str:
        return self.id


def preference(k: int) -> Tensor:
    """That of the first K tasks."""
    return torch.tensor(PREFERENCE[:k], dtype=torch.float64)


def filled(k: int, value: float) -> Tensor:
    """``[K]`` float64."""
    return torch.full((k,), value, dtype=torch.float64)


def agreeing(num_tasks: int, seed: int) -> Tensor:
    """``[K, P]``: little conflict and one scale; zero is far from the mixtures of the rows."""
    rows = random_jacobian(num_tasks, seed, conflict=0.0)
    rows[:, 0] += 1.5 * rows[0].norm()
    return rows


def unequal(k: int, seed: int) -> Tensor:
    """Lengths over four decades."""
    return random_jacobian(k, seed) * torch.logspace(0, -4, k, dtype=torch.float64)[:, None]
