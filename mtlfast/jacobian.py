"""Where the K task gradients come from.

An engine leaves them as autograd made them: no flat copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast.losses import TaskLosses
from mtlfast.ops import TaskGrads

TaskGradients = list[list["Tensor | None"]]
"""K rows of T gradients, one per parameter; None where a task does not reach a parameter."""

ENGINES = ("auto", "stored")

UNREACHED = (
    "losses: expected losses that depend on parameters of the optimizer that require a gradient, "
    "found that none reaches any of them"
)


def stored(tasks: TaskLosses, params: Sequence[Tensor]) -> TaskGradients:
    """One backward per loss through the same graph; all K gradients are kept.

    Args:
        tasks: K losses.
        params: T parameters.

    Returns:
        K rows of T gradients. The graph is freed by the last backward.

    Raises:
        ValueError: no loss reaches any parameter.
    """
    if not params:
        raise ValueError(UNREACHED)
    last = len(tasks.losses) - 1
    task_grads: TaskGradients = [
        list(
            torch.autograd.grad(
                root,
                params,
                (torch.ones_like(loss),),
                retain_graph=k < last,
                allow_unused=True,
            )
        )
        for k, (root, loss) in enumerate(zip(tasks.roots, tasks.losses, strict=True))
    ]
    if all(gradient is None for row in task_grads for gradient in row):
        raise ValueError(UNREACHED)
    return task_grads


def weighted_(losses: Sequence[Tensor], weights: Tensor, params: Sequence[Tensor]) -> None:
    """One joint backward of ``Σ_k w_k L_k`` into ``.grad``, for weights that need no Gramian.

    Args:
        losses: K scalars.
        weights: ``[K]``.
        params: T parameters. A gradient that is there is added to, as ``backward`` does; after an
            error every ``.grad`` is as it was.

    Raises:
        ValueError: the losses reach no parameter.
    """
    if not params:
        raise ValueError(UNREACHED)
    before = [param.grad for param in params]
    factors = [
        weight.to(loss.dtype).reshape(loss.shape)
        for weight, loss in zip(weights, losses, strict=True)
    ]
    try:
        for param in params:
            param.grad = None
        torch.autograd.backward(losses, factors, inputs=list(params))
        if all(param.grad is None for param in params):
            raise ValueError(UNREACHED)
    except BaseException:
        for param, grad in zip(params, before, strict=True):
            param.grad = grad
        raise
    for param, grad in zip(params, before, strict=True):
        if grad is not None:
            param.grad = grad if param.grad is None else grad.add_(param.grad)


def summed(total: TaskGradients, more: TaskGradients) -> TaskGradients:
    """``total + more``, one tensor at a time, emptying ``more`` on the way.

    Every sum is a new tensor: what autograd returns may share memory with other tensors.
    """
    result: TaskGradients = []
    for kept_row, new_row in zip(total, more, strict=True):
        row: list[Tensor | None] = []
        for t, (kept, new) in enumerate(zip(kept_row, new_row, strict=True)):
            row.append(new if kept is None else kept if new is None else kept + new)
            new_row[t] = None
        result.append(row)
    return result


def masked(task_grads: TaskGrads, kept: Tensor) -> TaskGradients:
    """The task gradients with zeros for every task that is not kept; ``kept`` is [K] bool."""
    return [
        [None if grad is None else torch.where(keep, grad, 0.0) for grad in row]
        for keep, row in zip(kept, task_grads, strict=True)
    ]
