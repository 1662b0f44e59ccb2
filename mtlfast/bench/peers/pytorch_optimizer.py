"""pytorch_optimizer 4.1.0: PCGrad around an optimizer, after Pytorch-PCGrad."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlfast.bench.models import EngineModel
from mtlfast.bench.peers.base import Into, Modes, Peer
from mtlfast.bench.steps import LEARNING_RATE, Step, sgd

__all__ = ["PEER", "PytorchOptimizer"]

ALONE = "shared alone"


class PytorchOptimizer(Peer):
    """Its best mode sees the shared parameters and sums; its default all of them, and averages."""

    name = "pytorch_optimizer"
    package = "pytorch_optimizer"
    differs: ClassVar[Mapping[str, str]] = {
        "pcgrad, default": "the mean for shared parameters, over norms that the heads are part of"
    }

    def balances(self, method: str, into: Into) -> Modes:
        """Vectors that are there, or made first; its masks of what has a gradient are not timed."""
        if method != "pcgrad":
            return {}
        module = _module()
        wrapped = module.PCGrad(torch.optim.SGD(into.params, lr=LEARNING_RATE), "sum")
        shapes = [param.shape for param in into.params]
        given = [module.flatten_grad(row) for row in into.task_grads]
        masks = [torch.ones_like(row) for row in given]

        def project(vectors: list[Tensor]) -> None:
            found = wrapped.project_conflicting(vectors, masks)
            wrapped.set_grad(module.un_flatten_grad(found, shapes))

        return {
            "vectors given": (into.clear, lambda: project(list(given))),
            "default": (
                into.clear,
                lambda: project([module.flatten_grad(row) for row in into.task_grads]),
            ),
        }

    def steps(self, method: str, model: EngineModel) -> Mapping[str, Callable[[], Step]]:
        """``pc_backward``."""
        if method != "pcgrad":
            return {}
        return {ALONE: lambda: _step(model, True), "default": lambda: _step(model, False)}

    def weights(self, method: str, num_tasks: int) -> tuple[str, Callable[[Tensor], Any]] | None:
        """The combined gradient."""
        if method != "pcgrad":
            return None
        wrapped = _module().PCGrad(torch.optim.SGD([torch.zeros(1)], lr=LEARNING_RATE), "sum")
        masks = num_tasks * [torch.ones(1)]
        return "direction", lambda jacobian: wrapped.project_conflicting(list(jacobian), masks)

    def order(self, method: str, num_tasks: int) -> Tensor | None:
        """One list that is shuffled again for every task; a task meets its own gradient, too."""
        if method != "pcgrad":
            return None
        self.seed()
        met, rows = list(range(num_tasks)), []
        for _ in range(num_tasks):
            random.shuffle(met)
            rows.append(list(met))
        return torch.tensor(rows)


def _module() -> Any:
    return importlib.import_module("pytorch_optimizer.optimizer.pcgrad")


def _step(model: EngineModel, alone: bool) -> Step:
    """One optimizer steps in any case; alone, the wrapped one only says what is shared."""
    optimizer = sgd(model)
    shared = torch.optim.SGD(model.shared_params(), lr=LEARNING_RATE)
    wrapped = _module().PCGrad(shared if alone else optimizer, "sum" if alone else "mean")

    def fill(_: Tensor | None) -> None:
        wrapped.pc_backward(model.losses())

    return Step(model, fill, optimizer)


PEER = PytorchOptimizer()
