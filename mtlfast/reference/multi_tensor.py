"""Gramian and combination of task gradients in plain torch, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Rows = Sequence[Sequence["Tensor | None"]]
Block = tuple["Tensor | None", ...]
"""The K gradients of one tensor."""
Result = Callable[[int, Block, Tensor], Tensor]
"""From the tensor's number, its block and one gradient of it to the result in float64."""

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def gramian(task_grads: Rows) -> Tensor:
    """``G[i, j] = Σ_t <g_it, g_jt>`` in float64, ``[K, K]``; see :func:`mtlfast.ops.gramian`."""
    check(task_grads)
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
    check(task_grads)
    return write_list(task_grads, out, weighted(task_grads, weights))


def combine_(
    params: list[Tensor], task_grads: Rows, weights: Tensor, *, accumulate: bool = False
) -> None:
    """Writes :func:`combine` into ``p.grad``; see :func:`mtlfast.ops.combine_`."""
    check(task_grads)
    write_grads(params, task_grads, accumulate, weighted(task_grads, weights))


def weighted(task_grads: Rows, weights: Tensor) -> Result:
    """What :func:`combine` writes."""
    weights = weights.detach()
    check_weights(weights, len(task_grads))

    def result(t: int, block: Block, like: Tensor) -> Tensor:
        del t
        total = torch.zeros_like(like, dtype=torch.float64)
        for weight, gradient in zip(weights, block, strict=True):
            if gradient is not None:
                # Where a weight is zero its gradient does not count, not even its NaN.
                term = torch.where(weight == 0, 0.0, weight * gradient.detach().double())
                total = total + term
        return total

    return result


def write_list(
    task_grads: Rows, out: list[Tensor | None] | None, result: Result
) -> list[Tensor | None]:
    """A result in T tensors: those of ``out``, or new ones; all or nothing is written."""
    num_tensors = len(task_grads[0])
    if out is not None and len(out) != num_tensors:
        raise ValueError(
            f"out: expected {num_tensors} entries, as in task_grads[0], found {len(out)}"
        )
    firsts = likes(task_grads)
    for t, like in enumerate(firsts):
        if out is not None and like is not None:
            checked_target(out[t], like, f"out[{t}]")
    written: list[Tensor | None] = []
    for t, total in enumerate(_results(task_grads, result)):
        like = firsts[t]
        if total is None or like is None:
            written.append(None)
        elif out is None:
            written.append(total.to(like.dtype))
        else:
            target = checked_target(out[t], like, f"out[{t}]")
            with torch.no_grad():
                written.append(target.copy_(total.to(like.dtype)))
    return written if out is None else out


def write_grads(params: list[Tensor], task_grads: Rows, accumulate: bool, result: Result) -> None:
    """A result in the parameters' gradients; all or nothing is written."""
    if len(params) != len(task_grads[0]):
        raise ValueError(
            f"params: expected {len(task_grads[0])} entries, as in task_grads[0], "
            f"found {len(params)}"
        )
    for t, (param, like) in enumerate(zip(params, likes(task_grads), strict=True)):
        if like is not None:
            _check_fits(param, like, f"params[{t}]")
            if param.grad is not None:
                checked_target(param.grad, like, f"params[{t}].grad")
    for param, total in zip(params, _results(task_grads, result), strict=True):
        if total is None:
            continue
        if param.grad is None:
            param.grad = torch.empty_like(param).copy_(total)
        else:
            if accumulate:
                total = total + param.grad.detach().double()
            param.grad.copy_(total)


def likes(task_grads: Rows) -> list[Tensor | None]:
    """The first gradient of each tensor; None where no task reaches it."""
    blocks = zip(*task_grads, strict=True)
    return [next((grad for grad in block if grad is not None), None) for block in blocks]


def _results(task_grads: Rows, result: Result) -> list[Tensor | None]:
    """The float64 result of every tensor, before any is written: targets may be among the rows."""
    blocks = enumerate(zip(likes(task_grads), zip(*task_grads, strict=True), strict=True))
    return [None if like is None else result(t, block, like) for t, (like, block) in blocks]


def check(task_grads: Rows) -> None:
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


def check_weights(weights: Tensor, num_tasks: int) -> None:
    """Raises ValueError unless they are ``[K]`` float64."""
    if weights.shape != (num_tasks,) or weights.dtype != torch.float64:
        raise ValueError(
            f"weights: expected [{num_tasks}] of torch.float64, found {list(weights.shape)} of "
            f"{weights.dtype}"
        )


def checked_target(target: Tensor | None, like: Tensor, name: str) -> Tensor:
    """A tensor that a result of the form of ``like`` can be written to, or an error."""
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
