"""Every Gramian method, as the benchmarks call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mtlfast
from mtlfast.bench import workloads
from mtlfast.weighting import REGISTRY, Weighting

ARGUMENTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "crmogm": lambda: (mtlfast.CAGrad(),),
    "trimmed_mean": lambda: (1,),
}
"""For the methods that cannot be made without."""


def names() -> list[str]:
    """All methods of the Gramian family, and those of several batches' Gramian."""
    return sorted(
        name
        for name, method in REGISTRY.items()
        if method.family == "gramian" or method.num_batches > 1
    )


def make(name: str, **options: Any) -> Weighting:
    """The method with its defaults but for ``options``."""
    return mtlfast.weighting.REGISTRY[name](*ARGUMENTS.get(name, tuple)(), **options)


def gramians(method: Weighting, num_tasks: int) -> list[Tensor]:
    """What the method is called with; of B batches where it compares B."""
    return workloads.gramians(num_tasks * method.num_batches)


def weights_of(
    method: Weighting, num_tasks: int, device: torch.device | None = None
) -> Callable[[Tensor], Tensor]:
    """A function of the Gramian; losses, where the method needs them, are the same every time."""
    losses = torch.linspace(1.0, 2.0, num_tasks, dtype=torch.float64, device=device)
    if method.needs_losses:
        return lambda gramian: method(gramian, losses)
    return method
