"""The doors of :mod:`mtlfast.ops` and :mod:`mtlfast.column_ops` while a graph is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from mtlfast.reference.multi_tensor import Rows, likes


def is_traced(tensors: Iterable[object]) -> bool:
    """Whether these are stand-ins of a graph in the making, while one is made in some thread."""
    return is_dynamo_compiling() or any(
        isinstance(tensor, Tensor) and type(tensor) not in (Tensor, Parameter) for tensor in tensors
    )


def rows_are_traced(task_grads: Rows) -> bool:
    """:func:`is_traced` of the tensors of K rows."""
    return is_dynamo_compiling() or any(is_traced(row) for row in task_grads)


def gramian(task_grads: Rows) -> Tensor:
    """:func:`mtlfast.ops.gramian` in a graph."""
    found: Tensor = torch.ops.mtlfast.gramian(_flat(task_grads), len(task_grads))
    return found


def combine(
    task_grads: Rows, weights: Tensor, out: list[Tensor | None] | None
) -> list[Tensor | None]:
    """:func:`mtlfast.ops.combine` in a graph."""
    flat, num_tasks = _flat(task_grads), len(task_grads)
    if out is not None:
        torch.ops.mtlfast.combine_out(flat, num_tasks, weights, _reached(task_grads, out))
        return out
    found = iter(torch.ops.mtlfast.combine(flat, num_tasks, weights))
    return [None if like is None else next(found) for like in likes(task_grads)]


def graddrop(
    task_grads: Rows,
    leak: Tensor | None,
    uniform: Tensor | None,
    rng: Tensor | None,
    out: list[Tensor | None] | None,
) -> list[Tensor | None]:
    """:func:`mtlfast.column_ops.graddrop` in a graph."""
    flat, num_tasks = _flat(task_grads), len(task_grads)
    written = _new(task_grads) if out is None else out
    targets = _reached(task_grads, written)
    torch.ops.mtlfast.graddrop_out(flat, num_tasks, leak, uniform, rng, targets)
    return written


def trimmed_mean(
    task_grads: Rows, trim_number: int, out: list[Tensor | None] | None
) -> list[Tensor | None]:
    """:func:`mtlfast.column_ops.trimmed_mean` in a graph."""
    flat, num_tasks = _flat(task_grads), len(task_grads)
    written = _new(task_grads) if out is None else out
    targets = _reached(task_grads, written)
    torch.ops.mtlfast.trimmed_mean_out(flat, num_tasks, trim_number, targets)
    return written


def solve(
    name: str,
    gramian: Tensor | None,
    options: Sequence[float],
    losses: Tensor | None,
    inputs: Tensor | None,
    order: Tensor | None,
    rng: Tensor | None,
    state: Tensor | None,
    status: Tensor | None,
) -> Tensor:
    """:func:`mtlfast.ops.solve` in a graph; one that is exported keeps no status."""
    if not is_dynamo_compiling():
        status = None  # it could not leave the graph, and may stem from another export
    numbers = [float(option) for option in options]
    found: Tensor = torch.ops.mtlfast.solve(
        name, gramian, numbers, losses, inputs, order, rng, state, status
    )
    return found


def _flat(task_grads: Rows) -> list[Tensor | None]:
    """The rows one after another; unequal ones could not be told apart later."""
    if len(task_grads) == 0:
        raise ValueError("task_grads: expected at least one task, found none")
    for k, row in enumerate(task_grads):
        if len(row) != len(task_grads[0]):
            raise ValueError(
                f"task_grads[{k}]: expected {len(task_grads[0])} entries, as in task_grads[0], "
                f"found {len(row)}"
            )
    return [grad for row in task_grads for grad in row]


def _reached(task_grads: Rows, out: Sequence[Tensor | None]) -> list[Tensor]:
    """Those of ``out`` that are written to."""
    wanted = likes(task_grads)
    if len(out) != len(wanted):
        raise ValueError(
            f"out: expected {len(wanted)} entries, as in task_grads[0], found {len(out)}"
        )
    targets = []
    for t, (like, target) in enumerate(zip(wanted, out, strict=True)):
        if like is None:
            continue
        if target is None:
            raise TypeError(f"out[{t}]: expected a tensor, found NoneType")
        targets.append(target)
    return targets


def _new(task_grads: Rows) -> list[Tensor | None]:
    return [
        None if like is None else torch.empty_like(like, requires_grad=False)
        for like in likes(task_grads)
    ]
