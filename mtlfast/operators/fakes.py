"""Schemas of the operators, and what a graph is made with: checks, and results without memory.

The checks are those of eager, with its messages, as far as tensors without memory can be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlfast.reference import columns, multi_tensor
from mtlfast.reference.multi_tensor import Rows, likes


def split(flat: Sequence[Tensor | None], num_tasks: int) -> list[list[Tensor | None]]:
    """The rows of the K tasks, which stand one after another."""
    size = len(flat) // max(num_tasks, 1)
    if len(flat) != size * num_tasks:
        raise ValueError(
            f"task_grads: expected {num_tasks} rows of one length, found {len(flat)} entries"
        )
    return [list(flat[k * size : (k + 1) * size]) for k in range(num_tasks)]


def spread(rows: Rows, out: Sequence[Tensor]) -> list[Tensor | None]:
    """The written tensors in the places of all."""
    places = likes(rows)
    wanted = sum(like is not None for like in places)
    if len(out) != wanted:
        raise ValueError(f"out: expected the {wanted} tensors that are reached, found {len(out)}")
    targets = iter(out)
    return [None if like is None else next(targets) for like in places]


def gramian(task_grads: Sequence[Tensor | None], num_tasks: int) -> Tensor:
    """The checks and the result of :func:`mtlfast.ops.gramian`."""
    rows = _checked(task_grads, num_tasks)
    first = next((grad for row in rows for grad in row if grad is not None), None)
    device = torch.device("cpu") if first is None else first.device
    return torch.empty(num_tasks, num_tasks, dtype=torch.float64, device=device)


def combine(task_grads: Sequence[Tensor | None], num_tasks: int, weights: Tensor) -> list[Tensor]:
    """The checks and the result of :func:`mtlfast.ops.combine`."""
    rows = _checked(task_grads, num_tasks)
    multi_tensor.check_weights(weights, num_tasks)
    return [_laid_out_as(like) for like in likes(rows) if like is not None]


def combine_out(
    task_grads: Sequence[Tensor | None], num_tasks: int, weights: Tensor, out: Sequence[Tensor]
) -> None:
    """The checks and the result of :func:`mtlfast.ops.combine`."""
    _check_targets(_checked(task_grads, num_tasks), out)
    multi_tensor.check_weights(weights, num_tasks)


def graddrop_out(
    task_grads: Sequence[Tensor | None],
    num_tasks: int,
    leak: Tensor | None,
    uniform: Tensor | None,
    rng: Tensor | None,
    out: Sequence[Tensor],
) -> None:
    """The checks and the result of :func:`mtlfast.column_ops.graddrop`."""
    rows = _checked(task_grads, num_tasks)
    _check_targets(rows, out)
    if uniform is None and rng is None:
        raise ValueError("rng: expected [2] where uniform is None, found None")
    if leak is not None:
        _check("leak", leak, torch.float64, (num_tasks,))
    if uniform is not None:
        size = sum(like.numel() for like in likes(rows) if like is not None)
        _check("uniform", uniform, torch.float64, (size,))
    if rng is not None:
        _check("rng", rng, torch.int64, (2,))


def trimmed_mean_out(
    task_grads: Sequence[Tensor | None], num_tasks: int, trim_number: int, out: Sequence[Tensor]
) -> None:
    """The checks and the result of :func:`mtlfast.column_ops.trimmed_mean`."""
    _check_targets(_checked(task_grads, num_tasks), out)
    columns.check_trim_number(trim_number, num_tasks)


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
    """The checks and the result of :func:`mtlfast.ops.solve`."""
    del options, state  # only the solver knows how long these are
    given = losses if gramian is None else gramian
    if given is None:
        raise ValueError("gramian: expected [K, K], or losses [K] instead, found None")
    size = given.shape[0] if given.dim() > 0 else 0
    if size == 0:
        key, shape = ("losses", "[K]") if gramian is None else ("gramian", "[K, K]")
        raise ValueError(f"{key}: expected shape {shape}, found {list(given.shape)}")
    matrix, vector = (size, size), (size,)
    numbers, counts = torch.float64, torch.int64
    for name, tensor, dtype, wanted in (
        ("gramian", gramian, numbers, matrix),
        ("losses", losses, numbers, vector),
        ("inputs", inputs, numbers, vector),
        ("order", order, counts, matrix),
        ("rng", rng, counts, (2,)),
        ("status", status, torch.int32, ()),
    ):
        if tensor is not None:
            _check(name, tensor, dtype, wanted)
    return torch.empty(size, dtype=torch.float64, device=given.device)


def _checked(flat: Sequence[Tensor | None], num_tasks: int) -> list[list[Tensor | None]]:
    rows = split(flat, num_tasks)
    multi_tensor.check(rows)
    return rows


def _check(key: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(
            f"{key}: expected {list(shape)} of {dtype}, found {list(tensor.shape)} of "
            f"{tensor.dtype}"
        )


def _check_targets(rows: Rows, out: Sequence[Tensor]) -> None:
    for t, (like, target) in enumerate(zip(likes(rows), spread(rows, out), strict=True)):
        if like is not None:
            multi_tensor.checked_target(target, like, f"out[{t}]")


def _laid_out_as(like: Tensor) -> Tensor:
    """As the kernels lay out the combination of gradients of which this is the first."""
    dense = not like.is_neg() and _is_dense(like)
    strides = (
        like.stride()
        if dense
        else torch.empty_like(like, memory_format=torch.contiguous_format).stride()
    )
    return torch.empty_strided(like.shape, strides, dtype=like.dtype, device=like.device)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill their memory, each once."""
    if tensor.is_contiguous():
        return True
    sides = sorted(
        (stride, size)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size != 1
    )
    expected = 1
    for stride, size in sides:
        if stride != expected:
            return False
        expected *= size
    return True


_ROWS = "Tensor?[] task_grads, int num_tasks"
_DRAWN = "Tensor? leak, Tensor? uniform, Tensor(a!)? rng"
_READ = "Tensor? losses, Tensor? inputs, Tensor? order"
_WRITTEN = "Tensor(a!)? rng, Tensor(b!)? state, Tensor(c!)? status"
_OPERATORS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (f"gramian({_ROWS}) -> Tensor", gramian),
    (f"combine({_ROWS}, Tensor weights) -> Tensor[]", combine),
    (f"combine_out({_ROWS}, Tensor weights, Tensor(a!)[] out) -> ()", combine_out),
    (
        f"graddrop_out({_ROWS}, {_DRAWN}, Tensor(b!)[] out) -> ()",
        graddrop_out,
    ),
    (f"trimmed_mean_out({_ROWS}, int trim_number, Tensor(a!)[] out) -> ()", trimmed_mean_out),
    (
        f"solve(str name, Tensor? gramian, float[] options, {_READ}, {_WRITTEN}) -> Tensor",
        solve,
    ),
)

_new_library: Any = torch.library.Library  # torch has no types for it
LIBRARY = _new_library("mtlfast", "DEF")
for _schema, _fake in _OPERATORS:
    LIBRARY.define(_schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.register_fake(f"mtlfast::{_fake.__name__}", _fake, lib=LIBRARY)
