"""ExcessMTL in plain torch (He et al., ICML 2024, arXiv 2402.02009)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.multi_tensor import Rows, check
from mtlfast.reference.scaffold import Problem

_LARGEST = 1e300


def excess(
    task_grads: Rows, squares: list[list[Tensor | None]] | None
) -> tuple[Tensor, list[list[Tensor | None]]]:
    """See :func:`mtlfast.column_ops.excess`."""
    check(task_grads)
    num_tensors = len(task_grads[0])
    known = squares
    if known is None:
        known = [[None] * num_tensors for _ in task_grads]
    _check_list("squares", known, len(task_grads))
    for k, known_row in enumerate(known):
        _check_list(f"squares[{k}]", known_row, num_tensors)
    device = next((g.device for row in task_grads for g in row if g is not None), None)
    total = torch.zeros(len(task_grads), dtype=torch.float64, device=device)
    sums: list[list[Tensor | None]] = []
    for k, (row, old_row) in enumerate(zip(task_grads, known, strict=True)):
        new_row: list[Tensor | None] = []
        for t, (gradient, old) in enumerate(zip(row, old_row, strict=True)):
            if gradient is None or gradient.numel() == 0:
                new_row.append(old)
                continue
            wide = gradient.dtype == torch.float64
            dtype = torch.float64 if wide else torch.float32
            square = gradient.detach().double().square()
            if old is None:
                new = square
            else:
                _check_sums(f"squares[{k}][{t}]", old, gradient, dtype)
                new = old.double() + square
            total[k] += (square / (new + 1e-7).sqrt()).sum()
            new_row.append(new.clamp(max=torch.finfo(dtype).max).to(dtype))
        sums.append(new_row)
    return total, sums


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of ExcessMTL; ``losses`` are the excesses e.

    Options: ``lr``, ``num_warmup_steps``, ``sum`` (0: the weights sum to 1, 1: to K). State
    ``[1 + 2 K]``: calls done, logarithms of the weights, the excesses of the beginning.
    """
    lr, num_warmup, to_sum = problem.options
    excesses, state, num_tasks = problem.losses, problem.state, problem.num_tasks
    if excesses is None or state is None:
        return torch.full((num_tasks,), math.nan, dtype=torch.float64), scaffold.NON_FINITE
    logs, initial = state[1:].view(2, num_tasks)
    scale = num_tasks if to_sum else 1.0
    calls = float(state[0])
    state[0] = calls + 1
    if calls < num_warmup:
        initial += excesses / num_warmup
    else:
        # The first call without a warm-up has nothing to compare with: e itself moves the weights.
        rates = excesses
        if calls > 0:
            rates = torch.where(initial > 0, excesses / (initial + 1e-7), 0.0)
        initial.copy_(torch.where(initial > 0, initial, excesses))
        moved = logs + (lr * rates).clamp(max=_LARGEST)
        logs.copy_((moved - moved.max()).clamp(min=-_LARGEST))
    status = scaffold.OK if bool((excesses > 0).any()) else scaffold.DEGENERATE
    return scale * logs.softmax(0), status


def _check_list(name: str, found: object, expected: int) -> None:
    if not isinstance(found, list) or len(found) != expected:
        kind = len(found) if isinstance(found, list) else type(found).__name__
        raise ValueError(
            f"{name}: expected a list of {expected} entries, as the task gradients, found {kind}"
        )


def _check_sums(name: str, old: object, gradient: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(old, Tensor):
        raise TypeError(f"{name}: expected a tensor or None, found {type(old).__name__}")
    if old.shape != gradient.shape or old.dtype != dtype or old.device != gradient.device:
        raise ValueError(
            f"{name}: expected {list(gradient.shape)} of {dtype} on {gradient.device}, found "
            f"{list(old.shape)} of {old.dtype} on {old.device}"
        )
