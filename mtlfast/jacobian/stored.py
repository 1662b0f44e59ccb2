"""The engine "stored": one backward per loss through the same graph; all K gradients are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mtlfast.jacobian.gradients import Jacobian, TaskGradients
from mtlfast.jacobian.heads import Inputs
from mtlfast.jacobian.request import UNREACHED, Request


def stored(request: Request) -> Jacobian:
    """One backward per loss.

    Returns:
        K rows of T gradients. The graph is freed by the last backward.

    Raises:
        ValueError: no loss reaches any parameter.
    """
    if not request.params:
        raise ValueError(UNREACHED)
    if request.is_reentrant:
        rows = _through_grad(request)
    else:
        rows = list(backwards(request, request.params))
    reach = [0] * len(request.params)
    for k, row in enumerate(rows):
        for t, grad in enumerate(row):
            if grad is not None:
                reach[t] |= 1 << k
    if not any(reach):
        raise ValueError(UNREACHED)
    return Jacobian(request.params, rows, reach, "stored")


def backwards(request: Request, inputs: Inputs) -> Iterator[list[Tensor | None]]:
    """One backward per loss, the last of which frees the graph.

    Args:
        request: what is asked for.
        inputs: what to differentiate with respect to.

    Yields:
        The gradients of one loss after another; None where it does not reach an input.
    """
    tasks = request.tasks
    last = len(tasks.roots) - 1
    # The ones that a scalar's backward begins with are made by torch, which then checks less.
    plain = tasks.scale is None and tasks.roots is tasks.losses
    seeds: Sequence[Tensor | None] = [None] * len(tasks.roots) if plain else tasks.seeds()
    for k, (root, seed) in enumerate(zip(tasks.roots, seeds, strict=True)):
        found = torch.autograd.grad(
            root,
            inputs,  # type: ignore[arg-type]
            (seed,),
            retain_graph=request.retain_graph or k < last,
            allow_unused=True,
        )
        yield list(found)


def _through_grad(request: Request) -> TaskGradients:
    """By way of ``grad``: a reentrant checkpoint allows no other kind of backward.

    A tensor that is no parameter of the optimizer gets the sum of all losses' gradients added to
    its ``grad``, as from torch's own joint backward.
    """
    tasks, params = request.tasks, request.params
    before = [param.grad for param in params]
    last = len(tasks.roots) - 1
    rows: TaskGradients = []
    try:
        for k, (root, seed) in enumerate(zip(tasks.roots, tasks.seeds(), strict=True)):
            for param in params:
                param.grad = None
            torch.autograd.backward(root, seed, retain_graph=request.retain_graph or k < last)
            rows.append([param.grad for param in params])
    finally:
        for param, grad in zip(params, before, strict=True):
            param.grad = grad
    return rows
