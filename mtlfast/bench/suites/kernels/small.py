"""Gramian, solve and combination where overhead decides, not memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlfast.bench import methods, workloads
from mtlfast.bench.case import Case, Samples, Variant
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels.balance import PARTS, Balance, Sized

__all__ = ["FIGURES", "Small", "cases"]

FIGURES = {
    "kernels/small": "gramian + solve + combine where all fits into the cache",
    "kernels/small-parts": "its parts",
}
METHODS = ("pcgrad", "cagrad")
NUM_TASKS = 4
TARGET = 80  # microseconds
CALLS = 50  # of a sample


class Small(Sized):
    """Both methods on one set of gradients: apart, a drift would pass for a difference."""

    figure = "kernels/small"
    rounds = 100

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """The mean of some calls of each."""
        del setting
        task_grads = self.gradients()
        found: dict[str, Variant] = {}
        for method in METHODS:
            ours = Balance(task_grads, methods.make(method), CALLS)
            parts = {f"{method}, {part}": variant for part, variant in ours.variants().items()}
            found |= {method: ours, **parts}
        return found

    def rows(self, samples: Samples) -> list[Row]:
        """Microseconds of the whole and of each part."""
        usual = self.num_tasks == NUM_TASKS and self.total == workloads.SMALL
        target = TARGET if usual and self.device.type == "cpu" else None
        found: list[Row] = []
        for method in METHODS:
            labels = {**self.labels, "method": method}
            found.append(
                self.duration(
                    method, samples, self.figure, method, "us", target=target, labels=labels
                )
            )
            for part in PARTS:
                label = f"{method}, {part}"
                found.append(
                    self.duration(
                        label,
                        samples,
                        "kernels/small-parts",
                        label,
                        "us",
                        labels={**labels, "part": part},
                    )
                )
        return found


def cases(setting: Setting) -> Sequence[Case]:
    """One for every K."""
    return [
        Small(setting, num_tasks, total)
        for num_tasks in setting.choose_tasks(NUM_TASKS)
        for total in setting.choose_params(workloads.SMALL)
    ]
