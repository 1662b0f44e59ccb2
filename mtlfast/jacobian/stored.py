"""The engine "stored": one backward per loss through the same graph; all K gradients are kept."""

from __future__ import annotations

import torch

from mtlfast.jacobian.gradients import Jacobian, TaskGradients
from mtlfast.jacobian.request import DONATED, UNREACHED, Request


def stored(request: Request) -> Jacobian:
    """One backward per loss.

    Returns:
        K rows of T gradients. The graph is freed by the last backward.

    Raises:
        RuntimeError: the graph is that of a compiled model with donated buffers.
        ValueError: no loss reaches any parameter.
    """
    if not request.params:
        raise ValueError(UNREACHED)
    try:
        rows = _rows(request)
    except RuntimeError as error:
        if "donated buffers" in str(error):
            raise RuntimeError(DONATED) from error
        if "use_reentrant" not in str(error):
            raise
        rows = _through_grad(request)
    reach = [
        sum(1 << k for k, grad in enumerate(column) if grad is not None)
        for column in zip(*rows, strict=True)
    ]
    if not any(reach):
        raise ValueError(UNREACHED)
    return Jacobian(request.params, rows, reach, "stored")


def _rows(request: Request) -> TaskGradients:
    tasks = request.tasks
    last = len(tasks.roots) - 1
    return [
        list(
            torch.autograd.grad(
                root,
                request.params,
                (seed,),
                retain_graph=request.retain_graph or k < last,
                allow_unused=True,
            )
        )
        for k, (root, seed) in enumerate(zip(tasks.roots, tasks.seeds(), strict=True))
    ]


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
