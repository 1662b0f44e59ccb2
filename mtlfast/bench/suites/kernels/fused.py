"""The fused step against combining into ``.grad`` and torch's own optimizer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtlfast import ops
from mtlfast.bench import workloads
from mtlfast.bench.case import Case, Samples, Variant, timed
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels.balance import Sized
from mtlfast.fused import Part, Update

__all__ = ["FIGURES", "Fused", "cases"]

FIGURES = {
    "kernels/fused": "combine, then torch's optimizer, over the fused step",
    "kernels/fused-time": "their times",
}
Optimizer = Callable[..., torch.optim.Optimizer]

OPTIMIZERS: dict[str, tuple[Optimizer, int]] = {
    "SGD with momentum": (partial(torch.optim.SGD, momentum=0.9), 1),
    "AdamW": (torch.optim.AdamW, 2),
}
"""And how many state tensors a parameter has."""

MODES: dict[str, dict[str, Any]] = {"fused=True": {"fused": True}, "default": {}}


class Fused(Sized):
    """One optimizer and number of tasks.

    Traffic, in units of P, with S state tensors: K + 2 + 2 S against K + 1 and torch's 3 + 2 S
    where it is fused, too.
    """

    figure = "kernels/fused"
    rounds = 24
    turn = 0.05

    def __init__(self, setting: Setting, num_tasks: int, total: int, optimizer: str) -> None:
        super().__init__(setting, num_tasks, total, optimizer, optimizer=optimizer)
        self.make, self.num_states = OPTIMIZERS[optimizer]

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Ours, and both of torch's, each with parameters of its own."""
        del setting
        task_grads = self.gradients()
        weights = torch.rand(self.num_tasks, dtype=torch.float64, device=self.device)

        def params() -> list[Tensor]:
            return [torch.nn.Parameter(torch.randn_like(g)) for g in task_grads[0]]

        def separate(**options: Any) -> Variant:
            own = params()
            inner = self.make(own, lr=1e-4, **options)

            def call() -> None:
                ops.combine_(own, task_grads, weights)
                inner.step()

            once = timed(call, self.device)

            def variant() -> float:
                for param in own:
                    param.grad = None
                return once()

            return variant

        own = params()
        inner = self.make(own, lr=1e-4)
        update = Update((Part(own, task_grads, weights),))
        found: dict[str, Variant] = {"ours": timed(lambda: update.apply(inner, None), self.device)}
        return found | {mode: separate(**options) for mode, options in MODES.items()}

    def rows(self, samples: Samples) -> list[Row]:
        """Torch's modes over ours, and the milliseconds of all."""
        figure, passes = "kernels/fused-time", self.num_tasks + 2 + 2 * self.num_states
        ours = {**self.labels, "mode": ""}
        ratios, times = [], [self.duration("ours", samples, figure, "mtlfast", labels=ours)]
        for mode in MODES:
            labels = {**self.labels, "contestant": "torch", "mode": mode}

            def says(mode: str = mode) -> str:
                theirs, ours = (statistics.median(samples[name]) * 1e3 for name in (mode, "ours"))
                more = f"; by traffic {(passes + 2) / passes:.2f}" if MODES[mode] else ""
                return f"{theirs:.3g} ms against {ours:.3g}{more}"

            ratios.append(
                self.row(
                    f"torch, {mode}",
                    samples,
                    (mode, "ours"),
                    lambda theirs, ours: theirs / ours,
                    detail=says,
                    versus="torch",
                    labels=labels,
                )
            )
            times.append(self.duration(mode, samples, figure, f"torch, {mode}", labels=labels))
        return ratios + times


def cases(setting: Setting) -> Sequence[Case]:
    """Each optimizer with few and many tasks."""
    return [
        Fused(setting, num_tasks, total, optimizer)
        for optimizer in OPTIMIZERS
        for num_tasks in setting.choose_tasks(2, 8, quick=(8,))
        for total in setting.choose_params(workloads.LARGE)
    ]
