"""What a training step costs with each of our methods."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlfast.bench import methods, steps
from mtlfast.bench.case import Samples, Variant
from mtlfast.bench.contestants import Make, ModelCase
from mtlfast.bench.rows import Row
from mtlfast.bench.runner import said
from mtlfast.bench.setting import Setting
from mtlfast.weighting import REGISTRY, Weighting

__all__ = ["FIGURES", "Cost", "make"]

FIGURES = {
    "step/methods-cost": "a training step with each of our methods over joint training",
    "step/methods-cost-ms": "the same steps, one alone",
}

ROUNDS = {"tiny MLP": 60}


def greatest(losses: Tensor) -> Tensor:
    """A smooth maximum of the losses."""
    return torch.logsumexp(losses, 0)


ARGUMENTS: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "constant": lambda num_tasks: ([1.0 / num_tasks] * num_tasks,),
    "scalarization": lambda _: (greatest,),
    "trimmed_mean": lambda num_tasks: ((num_tasks - 1) // 2,),
}
"""For the methods that cannot be made without; from K."""


def make(name: str, num_tasks: int) -> Weighting:
    """Any method of the registry, with its defaults where it has them."""
    if name in ARGUMENTS:
        return REGISTRY[name](*ARGUMENTS[name](num_tasks))
    return methods.make(name)


class Cost(ModelCase):
    """All methods on one model, in one round."""

    figure = "step/methods-cost"
    warmup = 1
    turn = 0.15

    def __init__(self, model: str, num_tasks: int, make: Make | None = None) -> None:
        super().__init__(model, num_tasks, make)
        self.rounds = ROUNDS.get(model, 5)
        if model == "tiny MLP":
            self.threads, self.turn = 1, 0.0

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Joint training and a step of each method under "auto"."""
        model = self.build(setting)
        variants: dict[str, Variant] = {"joint": steps.joint(model).seconds}
        for name in sorted(REGISTRY):
            try:
                step = steps.ours(model, make(name, self.num_tasks))
                step()
            except Exception as error:
                self.missing[name] = said(error)
                model.zero_grad()
                continue
            self.engines[name] = f"{step.last().engine}: {step.last().reason}"
            variants[name] = step.seconds
        return variants

    def rows(self, samples: Samples) -> list[Row]:
        """Ratios to joint training, and milliseconds."""
        found = []
        for name in sorted(REGISTRY):
            labels = self.labels("auto", method=name, family=REGISTRY[name].family)
            batches = REGISTRY[name].num_batches
            more = f"; {batches} forward passes" if batches > 1 else ""
            found.append(
                self.row(
                    name,
                    samples,
                    (name, "joint"),
                    np.divide,
                    detail=f"{self.engines.get(name, '')}{more}",
                    labels=labels,
                )
            )
        for name in ("joint", *sorted(REGISTRY)):
            labels = self.labels("joint" if name == "joint" else "auto", method=name)
            more = self._cost_of(name, samples)
            found.append(self.milliseconds(name, samples, "step/methods-cost-ms", more, labels))
        return found

    def _cost_of(self, name: str, samples: Samples) -> str:
        """What balancing adds to a joint step."""
        if name == "joint" or name not in samples or "joint" not in samples:
            return ""
        more = statistics.median(samples[name] - samples["joint"]) * 1e3
        return f"{more:+.3g} ms"
