"""What a method adds to its two passes over the gradients: next to nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mtlfast import ops
from mtlfast.bench import methods, workloads
from mtlfast.bench.case import Case, Samples, Variant, timed
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels.balance import Sized

__all__ = ["FIGURES", "Added", "cases"]

FIGURES = {
    "kernels/methods": "gramian + solve + combine over gramian + combine",
    "kernels/methods-time": "the time of all three",
}
NUM_TASKS = 8
TARGET = 1.05
QUICK = ("cagrad", "nash_mtl", "pcgrad", "upgrad")


class Added(Sized):
    """All methods in one round: drifts of the memory's speed meet the passes alone as well."""

    figure = "kernels/methods"
    rounds = 16

    def __init__(self, setting: Setting, num_tasks: int, total: int) -> None:
        super().__init__(setting, num_tasks, total)
        names = [name for name in methods.names() if methods.make(name).num_batches == 1]
        self.methods = [name for name in names if name in QUICK or not setting.quick]

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """One measurement of the passes alone before each method, to form its ratio with."""
        del setting
        task_grads = self.gradients()
        out: list[Tensor | None] = [torch.empty_like(g) for g in task_grads[0]]

        def two_passes(weights: Callable[[Tensor], Tensor]) -> Variant:
            return timed(
                lambda: ops.combine(task_grads, weights(ops.gramian(task_grads)), out), self.device
            )

        share = 1.0 / self.num_tasks
        mean = torch.full((self.num_tasks,), share, dtype=torch.float64, device=self.device)
        alone = two_passes(lambda _: mean)
        found: dict[str, Variant] = {}
        for name in self.methods:
            weights = methods.weights_of(methods.make(name), self.num_tasks, self.device)
            found |= {f"passes before {name}": alone, name: two_passes(weights)}
        return found

    def rows(self, samples: Samples) -> list[Row]:
        """The ratio and the time of each."""
        found: list[Row] = []
        for name in self.methods:
            labels = {**self.labels, "method": name}
            passes = f"passes before {name}"

            def says(name: str = name, passes: str = passes) -> str:
                with_, alone = (statistics.median(samples[key]) * 1e3 for key in (name, passes))
                return f"{with_:.4g} ms against {alone:.4g}"

            found += [
                self.row(
                    name,
                    samples,
                    (name, passes),
                    lambda whole, alone: whole / alone,
                    target=TARGET if self.measured_before else None,
                    detail=says,
                    labels=labels,
                ),
                self.duration(name, samples, "kernels/methods-time", name, labels=labels),
            ]
        return found


def cases(setting: Setting) -> Sequence[Case]:
    """One for every K."""
    return [
        Added(setting, num_tasks, total)
        for num_tasks in setting.choose_tasks(NUM_TASKS, quick=(NUM_TASKS,))
        for total in setting.choose_params(workloads.LARGE)
    ]
