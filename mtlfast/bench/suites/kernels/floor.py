"""Gramian, solve and combination against the memory's floor of (2K+1) P elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mtlfast
from mtlfast.bench import workloads
from mtlfast.bench.case import Case, Samples, Variant
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels.balance import PARTS, Balance, Sized, floor_around

__all__ = ["FIGURES", "Floor", "cases"]

FIGURES = {
    "kernels/floor": "gramian + solve + combine (CAGrad) over the floor of (2K+1) P elements",
    "kernels/parts": "its parts",
}
TARGETS = {2: 1.15, 4: 1.15, 8: 1.25, 16: 1.45}
MANY_TASKS = 16  # beyond, P is smaller: memory and minutes are limited
FEWER_PARAMS = 2_000_000


class Floor(Sized):
    """One number of tasks."""

    figure = "kernels/floor"
    rounds = 40

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Ours between two measurements of the memory."""
        ours = Balance(self.gradients(), mtlfast.CAGrad())
        return {**floor_around(setting.memory.best, {"ours": ours}), **ours.variants()}

    def rows(self, samples: Samples) -> list[Row]:
        """The ratio, and the milliseconds of its parts."""
        target = TARGETS.get(self.num_tasks) if self.measured_before else None
        bytes_ = self.bytes_of(2 * self.num_tasks + 1)
        found = [self.over_floor("ours", samples, bytes_, target=target, labels=self.labels)]
        for part in ("ours", *PARTS):
            label = "whole" if part == "ours" else part
            labels = {**self.labels, "part": label}
            found.append(self.duration(part, samples, "kernels/parts", label, labels=labels))
        return found


def cases(setting: Setting) -> Sequence[Case]:
    """One for every K."""
    return [
        Floor(setting, num_tasks, total)
        for num_tasks in setting.choose_tasks(2, 4, 8, 16, 32, 40, quick=(4, 8))
        for total in setting.choose_params(
            workloads.LARGE if num_tasks <= MANY_TASKS else FEWER_PARAMS
        )
    ]
