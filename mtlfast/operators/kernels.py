"""What runs where a graph has an operator: the doors that eager calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast import column_ops, ops
from mtlfast.operators.fakes import LIBRARY, split, spread


def gramian(task_grads: Sequence[Tensor | None], num_tasks: int) -> Tensor:
    """Runs :func:`mtlfast.ops.gramian`."""
    return ops.gramian(split(task_grads, num_tasks))


def combine(task_grads: Sequence[Tensor | None], num_tasks: int, weights: Tensor) -> list[Tensor]:
    """Runs :func:`mtlfast.ops.combine`."""
    combined = ops.combine(split(task_grads, num_tasks), weights)
    return [tensor for tensor in combined if tensor is not None]


def combine_out(
    task_grads: Sequence[Tensor | None], num_tasks: int, weights: Tensor, out: Sequence[Tensor]
) -> None:
    """Runs :func:`mtlfast.ops.combine`."""
    rows = split(task_grads, num_tasks)
    ops.combine(rows, weights, spread(rows, out))


def graddrop_out(
    task_grads: Sequence[Tensor | None],
    num_tasks: int,
    leak: Tensor | None,
    uniform: Tensor | None,
    rng: Tensor | None,
    out: Sequence[Tensor],
) -> None:
    """Runs :func:`mtlfast.column_ops.graddrop`."""
    rows = split(task_grads, num_tasks)
    column_ops.graddrop(rows, leak=leak, uniform=uniform, rng=rng, out=spread(rows, out))


def trimmed_mean_out(
    task_grads: Sequence[Tensor | None], num_tasks: int, trim_number: int, out: Sequence[Tensor]
) -> None:
    """Runs :func:`mtlfast.column_ops.trimmed_mean`."""
    rows = split(task_grads, num_tasks)
    column_ops.trimmed_mean(rows, trim_number, out=spread(rows, out))


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
    """Runs :func:`mtlfast.ops.solve`."""
    return ops.solve(
        name,
        gramian,
        options=options,
        losses=losses,
        inputs=inputs,
        order=order,
        rng=rng,
        state=state,
        status=status,
    )


for _kernel in (gramian, combine, combine_out, graddrop_out, trimmed_mean_out, solve):
    LIBRARY.impl(_kernel.__name__, _kernel, "CompositeExplicitAutograd")
    # Past autograd: results require no grad, as in eager, and nothing warns of it.
    LIBRARY.impl(_kernel.__name__, torch.library.fallthrough_kernel, "Autograd")
