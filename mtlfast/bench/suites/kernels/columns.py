"""GradDrop, the trimmed mean and ExcessMTL, which look at every column of the Jacobian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlfast import column_ops
from mtlfast.bench import workloads
from mtlfast.bench.case import Case, Samples, Variant, timed
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels.balance import Sized, floor_around, thread_counts
from mtlfast.bench.suites.kernels.contest import Contest

__all__ = ["FIGURES", "Columns", "cases"]

FIGURES = {
    "kernels/columns": "a column kernel over the floor of its (K+1) P elements",
    "kernels/columns-time": "its time",
    "kernels/columns-peers": "a peer's time over ours: the same gradients into empty .grad",
    "kernels/columns-peers-time": "everyone's time of it",
}
NUM_TASKS = 4
TARGETS = {"graddrop": 1.5, "trimmed_mean": 1.5}
METHODS: dict[str, dict[str, float]] = {
    "graddrop": {"TorchJD": 10.0},
    "trimmed_mean": {},
    "excess_mtl": {},
}
"""Against the peers, with the targets."""


@dataclass
class Kernels:
    """The calls on given gradients."""

    task_grads: list[list[Tensor]]

    def __post_init__(self) -> None:
        like = self.task_grads[0]
        device = like[0].device
        self.out: list[Tensor | None] = [torch.empty_like(g) for g in like]
        self.rng = torch.tensor([0, 0], device=device)
        self.leak = torch.full((len(self.task_grads),), 0.25, dtype=torch.float64, device=device)

    def graddrop(self) -> object:
        """Nothing leaks."""
        return column_ops.graddrop(self.task_grads, rng=self.rng, out=self.out)

    def graddrop_leak(self) -> object:
        """A quarter leaks."""
        return column_ops.graddrop(self.task_grads, leak=self.leak, rng=self.rng, out=self.out)

    def trimmed_mean(self) -> object:
        """Without one at either end."""
        return column_ops.trimmed_mean(self.task_grads, 1, out=self.out)


class Columns(Sized):
    """All kernels on one set of gradients."""

    figure = "kernels/columns"
    rounds = 40

    def __init__(
        self, setting: Setting, num_tasks: int, total: int, threads: int | None = None
    ) -> None:
        super().__init__(setting, num_tasks, total, threads=threads)
        self.kernels = {"graddrop": Kernels.graddrop, "graddrop, leak": Kernels.graddrop_leak}
        if num_tasks > 2:
            self.kernels["trimmed_mean"] = Kernels.trimmed_mean

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Each kernel between two measurements of the memory."""
        kernels = Kernels(self.gradients())
        calls = {
            name: timed(kernel.__get__(kernels), self.device)
            for name, kernel in self.kernels.items()
        }
        return floor_around(setting.memory.best, calls)

    def rows(self, samples: Samples) -> list[Row]:
        """The ratio and the time of each."""
        found: list[Row] = []
        bytes_ = self.bytes_of(self.num_tasks + 1)
        for name in self.kernels:
            target = TARGETS.get(name) if self.measured_before else None
            labels = {**self.labels, "method": name}
            found += [
                self.over_floor(name, samples, bytes_, name, target=target, labels=labels),
                self.duration(name, samples, "kernels/columns-time", name, labels=labels),
            ]
        return found


def cases(setting: Setting) -> Sequence[Case]:
    """The kernels, then the peers."""
    found: list[Case] = [
        Columns(setting, num_tasks, total, threads)
        for num_tasks in setting.choose_tasks(NUM_TASKS)
        for total in setting.choose_params(workloads.LARGE)
        for threads in thread_counts(setting)
    ]
    figures = ("kernels/columns-peers", "kernels/columns-peers-time")
    for method, targets in METHODS.items():
        for num_tasks in setting.choose_tasks(NUM_TASKS):
            for total in setting.choose_params(workloads.LARGE, quick=(workloads.LARGE // 10,)):
                if method != "trimmed_mean" or num_tasks > 2:
                    contest = Contest(setting, num_tasks, total, method, figures)
                    contest.targets = targets if contest.measured_before else {}
                    contest.rounds, contest.warmup = 5, 0  # theirs take seconds
                    found.append(contest)
    return found
