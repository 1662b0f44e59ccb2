"""What a run of the benchmarks is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from mtlfast.bench.allocator import keep_freed_memory
from mtlfast.bench.bandwidth import Bandwidth, CopyBandwidth

__all__ = ["QUICK_BUDGET", "Setting"]

QUICK_BUDGET = 100.0  # seconds; what a suite needs beside its measurements fits in two minutes


@dataclass(frozen=True)
class Setting:
    """The options of a run.

    Attributes:
        tasks: Numbers of tasks K in place of each figure's own; None leaves those.
        params: Numbers of shared parameters P in place of each figure's own; None leaves those.
        dtype: Of parameters and gradients.
        device: Where they are.
        threads: CPU threads of torch.
        peers: Names of the peers to compare with; None for all of them.
        quick: Fewer cases.
        budget: Seconds for a suite; None for as many rounds as its cases ask for.
        passes: How often cases are visited, each time with data made anew, for part of the rounds:
            a slow phase of the machine then hits none of them alone. Those whose ratios differ from
            pass to pass are visited more often.
        only: Cases whose ``figure: name`` this regular expression finds; empty for all.
        malloc: ``"keep"``: of memory that is freed, see :func:`keep_freed_memory`.
    """

    tasks: tuple[int, ...] | None = None
    params: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = field(default_factory=torch.get_num_threads)
    peers: tuple[str, ...] | None = None
    quick: bool = False
    budget: float | None = None
    passes: int = 5
    only: str = ""
    malloc: str = "default"

    def prepare(self) -> None:
        """Sets what holds for the whole process."""
        if self.malloc == "keep":
            keep_freed_memory()

    def wants(self, peer: str) -> bool:
        """Whether a peer is to be compared with."""
        return self.peers is None or peer in self.peers

    def choose_tasks(self, *usual: int, quick: tuple[int, ...] = (4,)) -> tuple[int, ...]:
        """The numbers of tasks: those that were asked for, else those of the figure."""
        return self.tasks or (quick if self.quick else usual)

    def choose_params(self, *usual: int, quick: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The numbers of shared parameters: asked for, else those of the figure."""
        return self.params or (quick if self.quick and quick else usual)

    @cached_property
    def memory(self) -> Bandwidth | CopyBandwidth:
        """What measures the floor of the device; made once, since its arrays are large."""
        return Bandwidth() if self.device.type == "cpu" else CopyBandwidth(self.device)

    def describe(self) -> dict[str, Any]:
        """For the file of results."""
        return {
            "tasks": self.tasks,
            "params": self.params,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": self.threads,
            "peers": self.peers,
            "quick": self.quick,
            "budget_seconds": self.budget,
            "passes": self.passes,
            "only": self.only,
            "malloc": self.malloc,
        }
