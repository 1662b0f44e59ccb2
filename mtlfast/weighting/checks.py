"""Argument checks of the weightings; every message names the argument, the wanted and the found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling


def number(
    key: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    closed_high: bool = False,
) -> float:
    """``value`` as a float in ``[low, high)``; ``open_low`` and ``closed_high`` change the ends."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{key}: expected a number, found {type(value).__name__}")
    above = value > low if open_low else value >= low
    below = value <= high if closed_high else value < high
    if not (math.isfinite(value) and above and below):
        left = "(" if open_low or math.isinf(low) else "["
        right = "]" if closed_high else ")"
        raise ValueError(f"{key}: expected a number in {left}{low}, {high}{right}, found {value}")
    return float(value)


def share(key: str, value: object) -> float:
    """``value`` as a float in ``(0, 1]``."""
    found = number(key, value)
    if not 0.0 < found <= 1.0:
        raise ValueError(f"{key}: expected a number in (0, 1], found {value}")
    return found


def count(key: str, value: object, low: int) -> int:
    """``value`` as an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key}: expected an int, found {type(value).__name__}")
    if value < low:
        raise ValueError(f"{key}: expected an int of at least {low}, found {value}")
    return value


def choice(key: str, value: object, choices: Sequence[str | int]) -> int:
    """Position of ``value`` among ``choices``."""
    for position, known in enumerate(choices):
        if type(value) is type(known) and value == known:
            return position
    raise ValueError(f"{key}: expected one of {list(choices)}, found {value!r}")


def seed(value: object) -> int | None:
    """``value`` as a 64-bit integer, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"seed: expected an int or None, found {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"seed: expected a 64-bit integer, found {value}")
    return value


def floats(key: str, shape: str, value: object) -> None:
    """Raises unless ``value`` is a tensor of real floating numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{key}: expected a tensor {shape}, found {type(value).__name__}")
    if not value.is_floating_point():
        raise ValueError(f"{key}: expected a real floating dtype, found {value.dtype}")


def orders(key: str, value: object, num_tasks: int) -> Tensor:
    """``value`` as ``[K, K]`` int64 whose rows are permutations of the tasks.

    What the rows hold is checked on the CPU only, and not in a graph: elsewhere it would cost a
    synchronisation, and solvers pass over an entry that is no task.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{key}: expected a tensor [K, K], found {type(value).__name__}")
    if value.dtype != torch.int64 or value.shape != (num_tasks, num_tasks):
        raise ValueError(
            f"{key}: expected int64 of shape {[num_tasks, num_tasks]}, "
            f"found {value.dtype} of shape {list(value.shape)}"
        )
    if value.device.type == "cpu" and not is_compiling():
        wrong = (value.sort(dim=1).values != torch.arange(num_tasks)).any(1).nonzero()
        if len(wrong) > 0:
            row = int(wrong[0])
            raise ValueError(
                f"{key}: expected a permutation of 0 .. {num_tasks - 1} in each row, "
                f"found {value[row].tolist()} in row {row}"
            )
    return value.contiguous()


def entries(found: Mapping[str, Any], expected: Sequence[str]) -> None:
    """Raises unless the keys of a state_dict are exactly those expected."""
    names = ", ".join(repr(key) for key in ("method", *expected))
    for key in expected:
        if key not in found:
            raise ValueError(f"state_dict[{key!r}]: expected the keys {names}, found no such key")
    for key in found:
        if key not in expected:
            raise ValueError(f"state_dict[{key!r}]: expected only the keys {names}, found it too")


def entry(found: Mapping[str, Any], key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A copy of the tensor ``found[key]``; -1 in ``shape`` stands for any size above 0."""
    value = found[key]
    wanted = f"{dtype} of shape {['K' if size < 0 else size for size in shape]}"
    if not isinstance(value, Tensor):
        raise ValueError(f"state_dict[{key!r}]: expected {wanted}, found {type(value).__name__}")
    fits = len(shape) == value.dim() and all(
        size == want or (want < 0 and size > 0)
        for size, want in zip(value.shape, shape, strict=True)
    )
    if value.dtype != dtype or not fits:
        raise ValueError(
            f"state_dict[{key!r}]: expected {wanted}, "
            f"found {value.dtype} of shape {list(value.shape)}"
        )
    if not bool(value.isfinite().all()):
        raise ValueError(f"state_dict[{key!r}]: expected finite numbers, found NaN or Inf")
    return value.detach().clone()
