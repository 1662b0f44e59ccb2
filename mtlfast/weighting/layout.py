"""The parts of a state vector: names and shapes, to and from the tensors of a ``state_dict``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtlfast.weighting import checks

Layout = tuple[tuple[str, str], ...]
"""Name and shape of each part, in order; a shape is "1" (a scalar), "K" or "KK"."""


def size(layout: Layout, num_tasks: int) -> int:
    """How many numbers the state of ``num_tasks`` tasks has."""
    return sum(num_tasks ** _dims(shape) for _, shape in layout)


def split(layout: Layout, state: Tensor, num_tasks: int) -> dict[str, Tensor]:
    """The parts of a state vector, as views."""
    shapes = [(num_tasks,) * _dims(shape) for _, shape in layout]
    parts = torch.split_with_sizes(state, [math.prod(shape) for shape in shapes])
    names = [name for name, _ in layout]
    return {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}


def join(layout: Layout, entries: Mapping[str, Any]) -> tuple[Tensor, int]:
    """The state vector made of checked entries, and its K.

    Raises:
        ValueError: an entry has another dtype or shape than the layout, or holds NaN or Inf.
    """
    num_tasks = -1
    parts = []
    for name, shape in layout:
        part = checks.entry(entries, name, torch.float64, (num_tasks,) * _dims(shape))
        if part.dim() > 0 and num_tasks < 0:
            num_tasks = len(part)
            part = checks.entry(entries, name, torch.float64, (num_tasks,) * part.dim())
        parts.append(part.reshape(-1))
    return torch.cat(parts), num_tasks


def _dims(shape: str) -> int:
    return 0 if shape == "1" else len(shape)
