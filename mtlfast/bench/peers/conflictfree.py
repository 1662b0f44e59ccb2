"""conflictfree 0.1.8 (Liu et al. 2025, arXiv 2408.11104): ConFIG by its authors, and two others.

For more than two tasks its ConFIG calls ``torch.linalg.lstsq``, whose default driver on the CPU
reads pivots that nobody set: it then takes the first columns as they are, and where those are zero
or dependent, as below a dead unit, the direction is zero or wrong.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtlfast.bench.models import EngineModel
from mtlfast.bench.peers.base import Into, Modes, Peer
from mtlfast.bench.steps import Step, sgd

__all__ = ["PEER", "ConflictFree"]

PINV = "pseudo-inverse"
OPERATORS = {"config": "ConFIGOperator", "imtlg": "IMTLGOperator", "pcgrad": "PCGradOperator"}
EXACT = {"use_least_square": False, "allow_simplified_model": False}


class ConflictFree(Peer):
    """Its operators take a vector per task; its default makes them with its own helpers."""

    name = "conflictfree"
    package = "conflictfree"
    differs: ClassVar[Mapping[str, str]] = {
        "config": "torch 2.13's least squares lose the rank where the first elements are zero",
        f"config, {PINV}": "",
        "pcgrad": "the tasks always meet in the same order",
    }

    def balances(self, method: str, into: Into) -> Modes:
        """Vectors that are there, or made first; its helper splits the result."""
        if method not in OPERATORS:
            return {}
        operator = self.operator(method)
        apply = _utils().apply_gradient_vector_para_based
        network = SimpleNamespace(parameters=lambda: into.params)
        given = torch.stack([torch.cat([g.flatten() for g in row]) for row in into.task_grads])

        def from_matrix() -> None:
            apply(network, operator.calculate_gradient(given))

        def from_rows() -> None:
            vectors = [torch.cat([g.flatten() for g in row]) for row in into.task_grads]
            apply(network, operator.calculate_gradient(vectors))

        return {"matrix given": (into.clear, from_matrix), "default": (into.clear, from_rows)}

    def steps(self, method: str, model: EngineModel) -> Mapping[str, Callable[[], Step]]:
        """Its helper appends tensor after tensor to a vector; one ``cat`` is its best."""
        if method not in OPERATORS:
            return {}
        found: dict[str, Callable[[], Step]] = {
            "one cat": lambda: _step(model, self.operator(method), _cat),
            "default": lambda: _step(model, self.operator(method), _utils().get_gradient_vector),
        }
        if method == "config":
            found[PINV] = lambda: _step(model, self.operator(method, **EXACT), _cat)
        return found

    def weights(self, method: str, num_tasks: int) -> tuple[str, Callable[[Tensor], Any]] | None:
        """The combined gradient, in float32: ConFIG takes nothing else."""
        del num_tasks
        if method not in OPERATORS:
            return None
        return "direction", self.operator(method).calculate_gradient

    def order(self, method: str, num_tasks: int) -> Tensor | None:
        """Ascending."""
        if method != "pcgrad":
            return None
        tasks = range(num_tasks)
        return torch.tensor([[i, *(j for j in tasks if j != i)] for i in tasks])

    @staticmethod
    def operator(method: str, **options: Any) -> Any:
        """A new one, with equal weights and the length of its projections."""
        module = importlib.import_module("conflictfree.grad_operator")
        return getattr(module, OPERATORS[method])(**options)


def _utils() -> Any:
    return importlib.import_module("conflictfree.utils")


def _cat(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _step(model: EngineModel, operator: Any, vector: Callable[[nn.Module], Tensor]) -> Step:
    """A backward for each task; the heads keep the sum, which is their own gradient."""
    apply: Callable[[Tensor], None] = partial(_utils().apply_gradient_vector, model.trunk)

    def fill(_: Tensor | None) -> None:
        losses = model.losses()
        vectors = []
        for k, loss in enumerate(losses):
            model.trunk.zero_grad()
            torch.autograd.backward(loss, retain_graph=k < len(losses) - 1)
            vectors.append(vector(model.trunk))
        apply(operator.calculate_gradient(vectors))

    return Step(model, fill, sgd(model))


PEER = ConflictFree()
