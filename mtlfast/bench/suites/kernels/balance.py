"""What the kernels' cases share: sizes, the floor around what is timed, and one balancing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import mtlfast
from mtlfast import ops
from mtlfast.bench import workloads
from mtlfast.bench.case import Case, Samples, Variant
from mtlfast.bench.rows import Label, Row
from mtlfast.bench.setting import Setting

__all__ = ["PARTS", "Balance", "Sized", "floor_around", "thread_counts"]

PARTS = ("gramian", "solve", "combine")


class Sized(Case):
    """A case over K task gradients of P elements each, of the setting's dtype on its device.

    Args:
        setting: Of the run.
        num_tasks: K.
        total: P.
        words: What stands before the sizes in the case's name.
        dtype: Another than the setting's.
        threads: Another number than the setting's.
        labels: Beside K, P, dtype, contestant and threads.

    Attributes:
        labels: Of our own rows.
    """

    def __init__(
        self,
        setting: Setting,
        num_tasks: int,
        total: int,
        *words: str,
        dtype: torch.dtype | None = None,
        threads: int | None = None,
        **labels: Label,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.total = total
        self.dtype = dtype or setting.dtype
        self.device = setting.device
        self.threads = threads
        name = str(self.dtype).removeprefix("torch.")
        names = [*words, f"K = {num_tasks}", f"P = {total:.3g}"]
        if self.dtype != torch.float32:
            names.append(name)
        if threads is not None:
            names.append(f"{threads} thread{'s' * (threads > 1)}")
        self.name = ", ".join(names)
        self.labels: dict[str, Label] = {
            "K": num_tasks,
            "P": total,
            "dtype": name,
            "threads": threads or setting.threads,
            "contestant": "mtlfast",
            **labels,
        }

    @property
    def measured_before(self) -> bool:
        """Whether it is of the kind that targets were set for."""
        usual = self.dtype == torch.float32 and self.device.type == "cpu"
        return usual and self.total == workloads.LARGE

    def gradients(self, num_tensors: int = workloads.NUM_TENSORS) -> list[list[Tensor]]:
        """K rows of tensors, the same numbers every time."""
        return workloads.task_gradients(
            self.num_tasks,
            self.total,
            num_tensors=num_tensors,
            dtype=self.dtype,
            device=self.device,
        )

    def bytes_of(self, passes: int) -> int:
        """Of so many passes over P elements."""
        return passes * self.total * self.dtype.itemsize

    def over_floor(
        self, name: str, samples: Samples, bytes_: int, label: str = "", **more: Any
    ) -> Row:
        """A kernel's time over that of as many bytes, at the rates on both sides of it."""
        around = (f"before {name}", f"after {name}")

        def rates() -> str:
            seconds = statistics.median(samples[name])
            best = statistics.median((samples[around[0]] + samples[around[1]]) / 2)
            return f"{bytes_ / seconds / 1e9:.1f} of {best / 1e9:.1f} GB/s"

        return self.row(
            label,
            samples,
            (name, *around),
            lambda ours, before, after: ours * (before + after) / 2 / bytes_,
            detail=rates,
            **more,
        )

    def duration(
        self, name: str, samples: Samples, figure: str, label: str, unit: str = "ms", **more: Any
    ) -> Row:
        """A time as a row of its own."""
        scale = {"ms": 1e3, "us": 1e6}[unit]
        return self.row(
            label,
            samples,
            (name,),
            lambda seconds: seconds * scale,
            unit=unit,
            figure=figure,
            **more,
        )


def floor_around(rate: Callable[[], float], kernels: Mapping[str, Variant]) -> dict[str, Variant]:
    """The kernels with the memory's rate before and after each of them.

    So a drift within the round favours neither. Between two kernels it is measured once.

    Args:
        rate: Bytes per second, now.
        kernels: By name, what is timed.
    """
    latest = [0.0]

    def measure() -> float:
        latest[0] = rate()
        return latest[0]

    found: dict[str, Variant] = {}
    for name, kernel in kernels.items():
        found[f"before {name}"] = (lambda: latest[0]) if found else measure
        found[name] = kernel
        found[f"after {name}"] = measure
    return found


def thread_counts(setting: Setting) -> list[int | None]:
    """One thread and all; only all in a quick run or on a GPU (None: as the setting has it)."""
    if setting.quick or setting.device.type != "cpu" or setting.threads == 1:
        return [None]
    return [1, None]


class Balance:
    """One balancing of K task gradients into given tensors, with the time of each part.

    Args:
        task_grads: K rows of tensors.
        weighting: The method.
        calls: How many make a sample, their mean.

    """

    def __init__(
        self, task_grads: list[list[Tensor]], weighting: mtlfast.Weighting, calls: int = 1
    ) -> None:
        self.task_grads = task_grads
        self.weighting = weighting
        self.calls = calls
        self.out: list[Tensor | None] = [torch.empty_like(g) for g in task_grads[0]]
        self.parts: dict[str, float] = {}
        self.watch = _events if task_grads[0][0].is_cuda else _clock

    def __call__(self) -> float:
        """Seconds of the whole."""
        sums = [0.0] * len(PARTS)
        for _ in range(self.calls):
            sums = [a + b for a, b in zip(sums, self.watch(*self._steps()), strict=True)]
        self.parts = {name: s / self.calls for name, s in zip(PARTS, sums, strict=True)}
        return sum(sums) / self.calls

    def variants(self) -> dict[str, Variant]:
        """What a case adds to have the parts, too."""
        return {name: partial(self.part, name) for name in PARTS}

    def part(self, name: str) -> float:
        """Seconds of a part, of the last sample."""
        return self.parts[name]

    def _steps(self) -> tuple[Callable[[], object], ...]:
        found: dict[str, Tensor] = {}

        def gramian() -> None:
            found["gramian"] = ops.gramian(self.task_grads)

        def solve() -> None:
            found["weights"] = self.weighting(found["gramian"])

        def combine() -> None:
            ops.combine(self.task_grads, found["weights"], self.out)

        return gramian, solve, combine


def _clock(*steps: Callable[[], object]) -> list[float]:
    marks = [time.perf_counter()]
    for step in steps:
        step()
        marks.append(time.perf_counter())
    return [b - a for a, b in pairwise(marks)]


def _events(*steps: Callable[[], object]) -> list[float]:
    """On a GPU: by its own events, from an idle device, so that no step waits for another."""
    torch.cuda.synchronize()
    marks: list[Any] = [torch.cuda.Event(True) for _ in range(len(steps) + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for step, mark in zip(steps, marks[1:], strict=True):
        step()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
