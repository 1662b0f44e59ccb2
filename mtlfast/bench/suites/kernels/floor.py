"""Gramian, solve and combination against the memory's floor of (2K+1) P elements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import mtlfast
from mtlfast import ops
from mtlfast.bench import workloads
from mtlfast.bench.case import Case, Samples, Variant
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting

__all__ = ["FIGURES", "Balance", "Floor", "cases"]

FIGURES = {
    "kernels/floor": "gramian + solve + combine (CAGrad) over the floor of (2K+1) P elements",
    "kernels/parts": "its parts",
}
TARGETS = {2: 1.15, 4: 1.15, 8: 1.25, 16: 1.45}

clock = time.perf_counter


class Balance:
    """One balancing of K task gradients into given tensors, with the time of each part."""

    def __init__(self, task_grads: list[list[Tensor]], weighting: mtlfast.Weighting) -> None:
        self.task_grads = task_grads
        self.weighting = weighting
        self.out: list[Tensor | None] = [torch.empty_like(g) for g in task_grads[0]]
        self.parts: dict[str, float] = {}

    def __call__(self) -> float:
        """Seconds of the whole."""
        t0 = clock()
        gramian = ops.gramian(self.task_grads)
        t1 = clock()
        weights = self.weighting(gramian)
        t2 = clock()
        ops.combine(self.task_grads, weights, self.out)
        t3 = clock()
        self.parts = {"gramian": t1 - t0, "solve": t2 - t1, "combine": t3 - t2}
        return t3 - t0


class Floor(Case):
    """One number of tasks, float32, on the CPU."""

    figure = "kernels/floor"
    rounds = 40

    def __init__(self, num_tasks: int, total: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.total = total
        self.name = f"K = {num_tasks}, P = {total:.0e}"

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Bandwidth on both sides of ours, so that a drift within the round favours neither."""
        ours = Balance(workloads.task_gradients(self.num_tasks, self.total), mtlfast.CAGrad())
        parts = {
            name: lambda name=name: ours.parts[name] for name in ("gramian", "solve", "combine")
        }
        memory = setting.memory
        return {"before": memory.best, "ours": ours, **parts, "after": memory.best}

    def rows(self, samples: Samples) -> list[Row]:
        """The ratio, and the milliseconds of its parts."""
        labels = {"K": self.num_tasks, "P": self.total, "contestant": "mtlfast"}
        bytes_ = (2 * self.num_tasks + 1) * self.total * 4

        def rates() -> str:
            seconds = statistics.median(samples["ours"])
            best = statistics.median((samples["before"] + samples["after"]) / 2)
            return f"{bytes_ / seconds / 1e9:.1f} of {best / 1e9:.1f} GB/s"

        found = [
            self.row(
                "",
                samples,
                ("ours", "before", "after"),
                lambda ours, before, after: ours * (before + after) / 2 / bytes_,
                target=TARGETS.get(self.num_tasks) if self.total == workloads.LARGE else None,
                detail=rates,
                labels=labels,
            )
        ]
        for part in ("ours", "gramian", "solve", "combine"):
            label = "whole" if part == "ours" else part
            found.append(
                self.row(
                    label,
                    samples,
                    (part,),
                    lambda seconds: seconds * 1e3,
                    unit="ms",
                    figure="kernels/parts",
                    labels={**labels, "part": label},
                )
            )
        return found


def cases(setting: Setting) -> Sequence[Case]:
    """One for every K."""
    return [
        Floor(num_tasks, total)
        for total in setting.choose_params(workloads.LARGE)
        for num_tasks in setting.choose_tasks(2, 4, 8, 16, quick=(4, 8))
    ]
