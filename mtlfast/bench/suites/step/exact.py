"""How far everyone's gradient is from the stored engine's, and how far sketched cosines are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from mtlfast.bench.case import Samples, Variant
from mtlfast.bench.contestants import Make, ModelCase
from mtlfast.bench.peers.torchjd import AUTOGRAM
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.steps import EXACT, Step, meetings
from mtlfast.bench.workloads import relative_difference

__all__ = ["FIGURES", "Comparison", "Exact"]

FIGURES = {
    "step/exact": "|gradient - stored's| over |stored's|, worst step",
    "step/sketched": "error of the sketched cosines, root mean square over pairs and steps",
}

BATCHES = {2: 4, 4: 1, 8: 1}
"""On which gradients are compared, by K: the fewer pairs, the more."""
PEERS = ("TorchJD, one chunk", f"TorchJD, {AUTOGRAM}", "torch, stack + matmul")
"""Those to which PCGrad's order can be told; ``step/methods`` has all of them."""


class Comparison:
    """Gradients of several steps on the same batches, a new batch for every round.

    Args:
        steps: "stored" among them.
        num_tasks: K.
    """

    def __init__(self, steps: Mapping[str, Step], num_tasks: int) -> None:
        self.steps = steps
        self.order = meetings(num_tasks)
        self.batches = 0

    def stored(self) -> float:
        """Draws the next batch; what the others are compared with differs from itself by 0."""
        self.batches += 1
        for step in self.steps.values():
            step.model.draw(self.batches)
        self.expected = self.steps["stored"].gradients(self.order)
        return 0.0

    def difference(self, name: str) -> float:
        """Of this step's gradient from the stored engine's, all parameters together."""
        found = self.steps[name].gradients(self.order)
        return relative_difference(iter(found), iter(self.expected))

    def cosines(self) -> float:
        """Mean square of what sketching changes the cosines by."""
        self.difference("sketched")
        pairs = np.triu_indices(len(self.order), 1)
        found, expected = (self.steps[n].last().cosines for n in ("sketched", "stored"))
        assert found is not None
        assert expected is not None
        return float(np.square((found - expected).cpu().numpy()[pairs]).mean())


class Exact(ModelCase):
    """The engines that are exact, the sketched one, and peers, on one model."""

    figure = "step/exact"
    passes = 1
    warmup = 0

    def __init__(self, model: str, num_tasks: int, make: Make | None = None) -> None:
        super().__init__(model, num_tasks, make)
        self.rounds = BATCHES.get(num_tasks, 2)
        self.single = True

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """The stored engine, then what is compared with it."""
        self.single = setting.dtype == torch.float32
        field = self.field(setting, {"stored", "sketched", *PEERS, *EXACT})
        comparison = Comparison(field.steps, self.num_tasks)
        variants: dict[str, Variant] = {"stored": comparison.stored}
        for name in field.steps:
            if name == "sketched":
                variants[name] = comparison.cosines
            elif name not in ("stored", "joint"):
                variants[name] = partial(comparison.difference, name)
        return variants

    def rows(self, samples: Samples) -> list[Row]:
        """The worst of all batches, and the mean of the cosines' errors."""
        self.others = 0.0  # who else is busy changes no gradient
        found = [
            self.row(
                name,
                samples,
                (name,),
                lambda errors: [errors.max()],
                unit="",
                target=1e-6 if name in EXACT and self.single else None,
                detail=self.engines.get(name, "").removeprefix(", ") or self.differs.get(name, ""),
                labels=self.labels(name),
            )
            for name in self.contestants
            if name not in ("stored", "sketched")
        ]
        sketched = self.row(
            "sketched",
            samples,
            ("sketched",),
            lambda squares: [squares.mean() ** 0.5],
            unit="",
            figure="step/sketched",
            target=0.01,
            labels=self.labels("sketched"),
        )
        return [*found, sketched]
