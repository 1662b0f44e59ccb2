"""What a careful user writes in torch: our solvers, and nothing else of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtlfast.bench import methods
from mtlfast.bench.models import EngineModel
from mtlfast.bench.peers import given
from mtlfast.bench.peers.base import Into, Modes, Peer
from mtlfast.bench.steps import Step, sgd
from mtlfast.weighting import REGISTRY

__all__ = ["PEER", "Plain"]


class Plain(Peer):
    """A matrix of all gradients and two products; or lists of tensors; or a compiled function."""

    name = "torch"

    def balances(self, method: str, into: Into) -> Modes:
        """Three ways, for what needs a Gramian and no more."""
        if REGISTRY[method].family != "gramian":
            return {}
        return {name: (into.clear, way(method, into)) for name, way in given.WAYS.items()}

    def steps(self, method: str, model: EngineModel) -> Mapping[str, Callable[[], Step]]:
        """K backwards to a matrix, for what needs a Gramian and no more."""
        if REGISTRY[method].family != "gramian":
            return {}
        return {"stack + matmul": partial(stacked_step, method, model)}


def stacked_step(method: str, model: EngineModel) -> Step:
    """K backwards to the rows of one matrix, two products, and parts of the sum to ``.grad``."""
    weighting = methods.make(method)
    shared = model.shared_params()
    sizes = [param.numel() for param in shared]

    def fill(order: Tensor | None) -> None:
        losses = model.losses()
        jacobian = shared[0].new_empty(len(losses), sum(sizes))
        for k, (loss, head) in enumerate(zip(losses, model.heads, strict=True)):
            own = list(head.parameters())
            more = k < len(losses) - 1
            grads = torch.autograd.grad(loss, [*shared, *own], retain_graph=more)
            torch.cat([grad.flatten() for grad in grads[: len(shared)]], out=jacobian[k])
            for param, grad in zip(own, grads[len(shared) :], strict=True):
                param.grad = grad
        seen = torch.stack([loss.detach() for loss in losses])
        ordered = order is not None and "order" in weighting.inputs
        inputs: dict[str, Any] = {"order": order} if ordered else {}
        weights = weighting(jacobian @ jacobian.T, seen, **inputs)
        combined = weights.to(jacobian.dtype) @ jacobian
        for param, part in zip(shared, torch.split(combined, sizes), strict=True):
            param.grad = part.view_as(param)

    return Step(model, fill, sgd(model))


PEER = Plain()
