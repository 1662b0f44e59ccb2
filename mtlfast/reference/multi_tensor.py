"""Gramian and combination of task gradients in plain torch, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Rows = Sequence[Sequence["Tensor | None"]]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def gramian(task_grads: Rows) -> Tensor:
    """``G[i, j] = Σ_t <g_it, g_jt>`` in float64, ``[K, K]``; see :func:`mtlfast.ops.gramian`."""
    _check(task_grads)
    num_tasks = len(task_grads)
    total = torch.zeros(num_tasks, num_tasks, dtype=torch.float64, device=_device(task_grads))
    for block in zip(*task_grads, strict=True):  # K gradients of one tensor
        for i, first in enumerate(block):
            for j, second in enumerate(block[: i + 1]):
                if first is not None and second is not None:
                    total[i, j] += (first.detach().double() * second.detach().double()).sum()
    return total.tril() + total.tril(-1).T


def combine(
    task_grads: Rows, weights: Tensor, out: list[Tensor | None] | None = None
) -> list[Tensor | None]:
    """``d_t = Σ_k w_k g_kt``, rounded as torch rounds; see :func:`mtlfast.ops.combine`."""
    _check(task_grads)
    weights = weights.detach()
    _check_weights(weights, len(task_grads))
    num_tensors = len(task_grads[0])
    if out is not None and len(out) != num_tensors:
        raise ValueError(
            f"out: expected {num_tensors} entries, as in task_grads[0], found {len(out)}"
        )
    blocks = list(zip(*task_grads, strict=True))
    likes = [next((g for g in block if g is not None), None) for block in blocks]
    for t, like in enumerate(likes):
        if out is not None and like is not None:
            _checked_target(out[t], like, f"out[{t}]")
    combined: list[Tensor | None] = []
    for t, (block, like) in enumerate(zip(blocks, likes, strict=True)):
        if like is None:
            combined.append(None)
            continue
        total = torch.zeros_like(like, dtype=torch.float64)
        for weight, gradient in zip(weights, block, strict=True):
            if gradient is not None:
                # Where a weight is zero its gradient does not count, not even its NaN.
                term = torch.where(weight == 0, 0.0, weight * gradient.detach().double())
                total = total + term
        total = total.to(like.dtype)
        if out is None:
            combined.append(total)
        else:
            target = _checked_target(out[t], like, f"out[{t}]")
            with torch.no_grad():
                combined.append(target.copy_(total))
    return combined if out is None else out


def combine_(
    params: list[Tensor], task_grads: Rows, weights: Tensor, *, accumulate: bool = False
) -> None:
    """Writes :func:`combine` into ``p.grad``; see :func:`mtlfast.ops.combine_`."""
    _check(task_grads)
    _check_weights(weights, len(task_grads))
    if len(params) != len(task_grads[0]):
        raise ValueError(
            f"params: expected {len(task_grads[0])} entries, as in task_grads[0], "
            f"found {len(params)}"
        )
    for t, (param, block) in enumerate(zip(params, zip(*task_grads, strict=True), strict=True)):
        like = next((gradient for gradient in block if gradient is not None), None)
        if like is not None:
            _check_fits(param, like, f"params[{t}]")
            if param.grad is not None:
                _checked_target(param.grad, like, f"params[{t}].grad")
    rows = [list(row) for row in task_grads]
    factors = weights
    if accumulate:
        rows.append([param.grad for param in params])
        factors = torch.cat([weights, weights.new_ones(1)])
    reached = [any(row[t] is not None for row in task_grads) for t in range(len(params))]
    for param, reach, total in zip(params, reached, combine(rows, factors), strict=True):
        if not reach or total is None:
            continue
        if param.grad is None:
            param.grad = torch.empty_like(param).copy_(total)
        else:
            param.grad.copy_(total)


def _check(task_grads: Rows) -> None:
    """The native code's checks, with its messages."""
    if not task_grads:
        raise ValueError("task_grads: expected at least one task, found none")
    for k, row in enumerate(task_grads):
        if len(row) != len(task_grads[0]):
            raise ValueError(
                f"task_grads[{k}]: expected {len(task_grads[0])} entries, as in task_grads[0], "
                f"found {len(row)}"
            )
    device = _device(task_grads)
    for t in range(len(task_grads[0])):
        like: Tensor | None = None
        for k, row in enumerate(task_grads):
            gradient = row[t]
            if gradient is None:
                continue
            name = f"task_grads[{k}][{t}]"
            if not isinstance(gradient, Tensor):
                raise TypeError(
                    f"{name}: expected a tensor or None, found {type(gradient).__name__}"
                )
            if gradient.layout is not torch.strided:
                raise TypeError(f"{name}: expected a dense tensor, found layout {gradient.layout}")
            if gradient.dtype not in _DTYPES:
                raise TypeError(
                    f"{name}: expected float32, float64, bfloat16 or float16, "
                    f"found {gradient.dtype}"
                )
            if gradient.device != device:
                raise ValueError(f"{name}: expected a tensor on {device}, found {gradient.device}")
            if like is None:
                like = gradient
            elif gradient.dtype != like.dtype:
                raise TypeError(
                    f"{name}: expected {like.dtype}, as for the other tasks, found {gradient.dtype}"
                )
            elif gradient.shape != like.shape:
                raise ValueError(
                    f"{name}: expected shape {list(like.shape)}, as for the other tasks, "
                    f"found {list(gradient.shape)}"
                )


def _check_weights(weights: Tensor, num_tasks: int) -> None:
    if weights.shape != (num_tasks,) or weights.dtype != torch.float64:
        raise ValueError(
            f"weights: expected [{num_tasks}] of torch.float64, found {list(weights.shape)} of "
            f"{weights.dtype}"
        )


def _checked_target(target: Tensor | None, like: Tensor, name: str) -> Tensor:
    _check_fits(target, like, name)
    assert target is not None
    if target.numel() > 0 and any(
        stride == 0 and size > 1 for stride, size in zip(target.stride(), target.shape, strict=True)
    ):
        raise ValueError(
            f"{name}: expected memory of its own for each element, found a tensor whose elements "
            f"overlap (expand?)"
        )
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name}: expected a tensor to write in place, found one that requires grad"
        )
    if target.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{name}: expected a tensor to write in place, found an inference tensor")
    return target


def _check_fits(tensor: object, like: Tensor, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    if (tensor.shape, tensor.dtype, tensor.device) != (like.shape, like.dtype, like.device):
        raise ValueError(
            f"{name}: expected a tensor {list(like.shape)} of {like.dtype} on {like.device}, as "
            f"the task gradients, found {list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        )


def _device(task_grads: Rows) -> torch.device:
    for row in task_grads:
        for gradient in row:
            if isinstance(gradient, Tensor):
                return gradient.device
    return torch.device("cpu")
