"""How the time of a balancing grows with the number of parameters, and with that of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mtlfast
from mtlfast.bench import workloads
from mtlfast.bench.case import Case, Samples, Variant
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels.balance import Balance, Sized, floor_around

__all__ = ["FIGURES", "Params", "Tensors", "cases"]

FIGURES = {
    "kernels/growth": "gramian + solve + combine (CAGrad) against P, and the floor: (2K+1) P "
    "elements at the memory's rate, also where all of them fit into the cache",
    "kernels/tensors": "gramian + solve + combine (CAGrad) against the number of tensors",
}
NUM_TASKS, NUM_TASKS_OF_TENSORS = 8, 4
PARAMS_OF_TENSORS = 1_000_000
CALLS = 20  # of a sample, where one takes microseconds


class Params(Sized):
    """One number of parameters."""

    figure = "kernels/growth"
    rounds = 20

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Ours between two measurements of the memory."""
        calls = max(1, min(CALLS, workloads.LARGE // 10 // self.total))
        ours = Balance(self.gradients(), mtlfast.CAGrad(), calls)
        return floor_around(setting.memory.best, {"ours": ours})

    def rows(self, samples: Samples) -> list[Row]:
        """The time, and that of the floor in the same rounds."""
        bytes_ = self.bytes_of(2 * self.num_tasks + 1)
        floor = self.row(
            "floor",
            samples,
            ("before ours", "after ours"),
            lambda before, after: bytes_ / ((before + after) / 2) * 1e3,
            unit="ms",
            labels={**self.labels, "contestant": "floor"},
        )
        return [self.duration("ours", samples, self.figure, "mtlfast", labels=self.labels), floor]


class Tensors(Sized):
    """One number of tensors."""

    figure = "kernels/tensors"
    rounds = 40

    def __init__(self, setting: Setting, num_tasks: int, total: int, num_tensors: int) -> None:
        words = f"{num_tensors} tensor{'s' * (num_tensors > 1)}"
        super().__init__(setting, num_tasks, total, words, tensors=num_tensors)
        self.num_tensors = num_tensors

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Ours alone."""
        del setting
        return {"ours": Balance(self.gradients(self.num_tensors), mtlfast.CAGrad(), calls=3)}

    def rows(self, samples: Samples) -> list[Row]:
        """The time."""
        return [self.duration("ours", samples, self.figure, "", labels=self.labels)]


def cases(setting: Setting) -> Sequence[Case]:
    """By parameters, then by tensors."""
    params = setting.choose_params(
        10_000, 100_000, 1_000_000, 10_000_000, 30_000_000, quick=(10_000, 1_000_000, 10_000_000)
    )
    found: list[Case] = [
        Params(setting, num_tasks, total)
        for num_tasks in setting.choose_tasks(NUM_TASKS, quick=(NUM_TASKS,))
        for total in params
    ]
    counts = (10, 1000) if setting.quick else (1, 10, 60, 300, 1000, 3000)
    found += [
        Tensors(setting, num_tasks, total, count)
        for num_tasks in setting.choose_tasks(NUM_TASKS_OF_TENSORS)
        for total in setting.choose_params(PARAMS_OF_TENSORS)
        for count in counts
    ]
    return found
