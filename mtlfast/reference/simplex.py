"""The nearest point of the probability simplex, and projected gradient steps on it."""

from __future__ import annotations

import torch
from torch import Tensor

_LONGEST = 1e300  # a step that is longer ends in a corner too


def projected(point: Tensor) -> Tensor:
    """The point of ``{w >= 0, sum w = 1}`` nearest to ``point [K]``, by sorting."""
    shifted = point - point.max()
    falling = shifted.sort(descending=True).values
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype)
    thresholds = (falling.cumsum(0) - 1) / counts
    support = int((falling > thresholds).sum())
    return (shifted - thresholds[support - 1]).clamp(min=0)


def started(point: Tensor) -> None:
    """Makes a fresh state, all zeros, the uniform point."""
    if not point.any():
        point.fill_(1 / len(point))


def stepped(point: Tensor, slope: Tensor, rate: float) -> Tensor:
    """The projection of ``point - rate slope``, finite however long the step is."""
    return projected(point - (rate * slope).clamp(-_LONGEST, _LONGEST))


def descended(point: Tensor, matrix: Tensor, scale: float, rate: float, rho: float) -> Tensor:
    """The projection of ``point - rate (scale² A point + rho point)``, ``A [K, K]``."""
    factor = min(rate * scale * scale, torch.finfo(point.dtype).max)
    step = factor * (matrix @ point) + rate * rho * point
    return projected(point - step.clamp(-_LONGEST, _LONGEST))
