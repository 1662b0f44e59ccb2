"""Every Gramian method, and what TorchJD has for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mtlfast
from mtlfast.bench import workloads
from mtlfast.weighting import REGISTRY, Weighting

PEER_TASKS = 8  # K of the comparisons with TorchJD

ARGUMENTS: dict[str, Callable[[], tuple[Any, ...]]] = {"crmogm": lambda: (mtlfast.CAGrad(),)}
"""For the methods that cannot be made without."""

SLOW_PEERS: dict[str, Callable[[Any], Any]] = {
    "pcgrad": lambda torchjd: torchjd.PCGradWeighting(),
    "gradvac": lambda torchjd: torchjd.GradVacWeighting(),
    "mgda": lambda torchjd: torchjd.MGDAWeighting(),
    "upgrad": lambda torchjd: torchjd.UPGradWeighting(),
    "dualproj": lambda torchjd: torchjd.DualProjWeighting(),
    "cagrad": lambda torchjd: torchjd.CAGradWeighting(c=0.5),
    "nash_mtl": lambda torchjd: torchjd.NashMTL(n_tasks=PEER_TASKS).weighting,
    "fairgrad": lambda torchjd: torchjd.FairGradWeighting(alpha=2.0),
    "pcd": lambda torchjd: torchjd.PCDWeighting(),
}
"""TorchJD's weightings that call quadprog, cvxpy or scipy, or loop in Python."""

OTHER_PEERS: dict[str, Callable[[Any], Any]] = {
    "aligned_mtl": lambda torchjd: torchjd.AlignedMTLWeighting(),
    "imtlg": lambda torchjd: torchjd.IMTLGWeighting(),
    "krum": lambda torchjd: torchjd.KrumWeighting(n_byzantine=1),
}
"""TorchJD's weightings that are a few calls of torch."""

TAKES_JACOBIAN = ("nash_mtl",)
"""Peers that make the Gramian themselves."""


def names() -> list[str]:
    """All methods of the Gramian family, and those of several batches' Gramian."""
    return sorted(
        name
        for name, method in REGISTRY.items()
        if method.family == "gramian" or method.num_batches > 1
    )


def make(name: str) -> Weighting:
    """The method with its defaults."""
    return mtlfast.weighting.REGISTRY[name](*ARGUMENTS.get(name, tuple)())


def gramians(method: Weighting, num_tasks: int) -> list[Tensor]:
    """What the method is called with; of B batches where it compares B."""
    return workloads.gramians(num_tasks * method.num_batches)


def weights_of(method: Weighting, num_tasks: int) -> Callable[[Tensor], Tensor]:
    """A function of the Gramian; losses, where the method needs them, are the same every time."""
    losses = torch.linspace(1.0, 2.0, num_tasks, dtype=torch.float64)
    if method.needs_losses:
        return lambda gramian: method(gramian, losses)
    return method
