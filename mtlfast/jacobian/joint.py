"""One backward for all losses, where the weights are known before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast.jacobian.compat import Explained, has_reentrant
from mtlfast.jacobian.gradients import Jacobian
from mtlfast.jacobian.graph import Graph
from mtlfast.jacobian.heads import Heads
from mtlfast.jacobian.request import UNREACHED, Request
from mtlfast.jacobian.stored import stored
from mtlfast.losses import TaskLosses


def weighted_(
    tasks: TaskLosses, weights: Tensor, params: Sequence[Tensor], *, retain_graph: bool = False
) -> None:
    """One joint backward of ``Σ_k w_k L_k`` into ``.grad``, for weights that need no Gramian.

    Args:
        tasks: K losses.
        weights: ``[K]``.
        params: T parameters. A gradient that is there is added to, as ``backward`` does; after an
            error every ``.grad`` is as it was.
        retain_graph: whether the graph is needed again.

    Raises:
        RuntimeError: the graph is needed again and is that of a compiled model with donated
            buffers.
        ValueError: the losses reach no parameter.
    """
    if not params:
        raise ValueError(UNREACHED)
    before = [param.grad for param in params]
    factors = [weight.to(seed) * seed for weight, seed in zip(weights, tasks.seeds(), strict=True)]
    try:
        for param in params:
            param.grad = None
        _backward(tasks, factors, params, retain_graph)
        if all(param.grad is None for param in params):
            raise ValueError(UNREACHED)
    except BaseException:
        for param, grad in zip(params, before, strict=True):
            param.grad = grad
        raise
    for param, grad in zip(params, before, strict=True):
        if grad is not None:
            param.grad = grad if param.grad is None else grad.add_(param.grad)


def _backward(
    tasks: TaskLosses, factors: list[Tensor], params: Sequence[Tensor], retain_graph: bool
) -> None:
    # A reentrant checkpoint allows no inputs: other leaves get their gradients as well.
    inputs = None if has_reentrant(tasks) else list(params)
    with Explained():
        torch.autograd.backward(tasks.losses, factors, inputs=inputs, retain_graph=retain_graph)


def reused(request: Request) -> Jacobian:
    """For weights that are known: no task gradient of what is below the heads is ever made.

    Beside a reentrant checkpoint all of them are.
    """
    if request.is_reentrant:
        return stored(request)
    graph = Graph(request.tasks)
    with Explained():
        heads = Heads.differentiate(request, graph, graph.cut())
    return Jacobian(
        request.params, heads.rows, heads.reach, "joint", further=heads.further(heads.below)
    )
