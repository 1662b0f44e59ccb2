"""The combination of task gradients and an optimizer's update, in plain torch, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast.reference.multi_tensor import Rows, check, checked_target, likes, weighted


def sgd_(
    params: list[Tensor],
    task_grads: Rows,
    weights: Tensor,
    momentum_buffers: list[Tensor] | None,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    scale: Tensor | None,
) -> None:
    """See :func:`mtlfast.fused_ops.sgd_`."""
    lists = {"params": params}
    if momentum_buffers is not None:
        lists["momentum_buffers"] = momentum_buffers
    grads = _gradients(lists, task_grads, weights, maximize, scale)
    with torch.no_grad():
        for t, grad in enumerate(grads):
            if grad is None:
                continue
            param = params[t].double()
            if weight_decay != 0:
                grad = grad + weight_decay * param
            if momentum_buffers is not None:
                buffer = momentum_buffers[t].double()
                buffer = grad if first else momentum * buffer + (1 - dampening) * grad
                grad = grad + momentum * buffer if nesterov else buffer
                momentum_buffers[t].copy_(buffer)
            params[t].copy_(param - lr * grad)


def adam_(
    params: list[Tensor],
    task_grads: Rows,
    weights: Tensor,
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor] | None,
    steps: list[Tensor],
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    scale: Tensor | None,
) -> None:
    """See :func:`mtlfast.fused_ops.adam_`."""
    lists = {"params": params, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if max_exp_avg_sqs is not None:
        lists["max_exp_avg_sqs"] = max_exp_avg_sqs
    _check_steps(steps, task_grads)
    grads = _gradients(lists, task_grads, weights, maximize, scale)
    with torch.no_grad():
        for t, grad in enumerate(grads):
            if grad is None:
                continue
            param = params[t].double()
            if decoupled:
                param = (1 - lr * weight_decay) * param
            elif weight_decay != 0:
                grad = grad + weight_decay * param
            steps[t].add_(1)
            count = steps[t].double()
            mean = beta1 * exp_avgs[t].double() + (1 - beta1) * grad
            square = beta2 * exp_avg_sqs[t].double() + (1 - beta2) * grad.square()
            exp_avgs[t].copy_(mean)
            exp_avg_sqs[t].copy_(square)
            if max_exp_avg_sqs is not None:
                square = torch.maximum(max_exp_avg_sqs[t].double(), square)
                max_exp_avg_sqs[t].copy_(square)
            root = (square / (1 - beta2**count)).sqrt()
            params[t].copy_(param - lr / (1 - beta1**count) * mean / (root + eps))


def _gradients(
    lists: dict[str, list[Tensor]],
    task_grads: Rows,
    weights: Tensor,
    maximize: bool,
    scale: Tensor | None,
) -> list[Tensor | None]:
    """The float64 gradients of all tensors; None where no task reaches one. Nothing is written."""
    check(task_grads)
    for name, tensors in lists.items():
        _check_length(name, tensors, task_grads)
        for t, like in enumerate(likes(task_grads)):
            if like is not None:
                with torch.no_grad():
                    checked_target(tensors[t], like, f"{name}[{t}]")
    if scale is not None and (scale.dtype != torch.float64 or scale.dim() != 0):
        raise ValueError(
            f"scale: expected [] of torch.float64, found {list(scale.shape)} of {scale.dtype}"
        )
    combined = weighted(task_grads, weights)
    grads: list[Tensor | None] = []
    for t, (block, like) in enumerate(
        zip(zip(*task_grads, strict=True), likes(task_grads), strict=True)
    ):
        grad = None if like is None else combined(t, block, like)
        if grad is not None and scale is not None:
            grad = scale * grad
        grads.append(-grad if grad is not None and maximize else grad)
    return grads


def _check_steps(steps: list[Tensor], task_grads: Rows) -> None:
    _check_length("steps", steps, task_grads)
    for t, like in enumerate(likes(task_grads)):
        step = steps[t]
        if like is None:
            continue
        if not isinstance(step, Tensor):
            raise TypeError(f"steps[{t}]: expected a tensor, found {type(step).__name__}")
        if step.numel() != 1 or step.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"steps[{t}]: expected one number of torch.float32 or torch.float64, found "
                f"{list(step.shape)} of {step.dtype}"
            )


def _check_length(name: str, tensors: Sequence[Tensor], task_grads: Rows) -> None:
    if len(tensors) != len(task_grads[0]):
        raise ValueError(
            f"{name}: expected {len(task_grads[0])} entries, as in task_grads[0], "
            f"found {len(tensors)}"
        )
