"""Other libraries' methods as functions of one step, for tests that compare with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pytest
import torch
from torch import Tensor

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
