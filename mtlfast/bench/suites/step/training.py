"""Time of everyone's whole training step over joint training's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtlfast.bench import peers
from mtlfast.bench.case import Samples, Variant, timed
from mtlfast.bench.contestants import Make, ModelCase
from mtlfast.bench.models import MODELS
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.steps import STEPS_PER_GRAMIAN

__all__ = ["FIGURES", "Others", "Training"]

FIGURES = {
    "step/time": "time of a training step over joint training",
    "step/ms": "the same steps, one alone",
    "step/beside": "times beside each other",
    "step/peers": "time of a peer's training step over ours",
}

ROUNDS = {"tiny MLP": 60}
CLOSE = ("TorchJD", "torch")
"""Peers that cost about as much as ours; the others cost up to forty times that."""
FACTORED = {2: 1.45, 4: 2.1, 8: 3.0}
FASTER = {"MLP": 2.5, "CNN": 1.1, "transformer": 1.1}


class Training(ModelCase):
    """All contestants on one model, but for the slow peers."""

    figure = "step/time"
    warmup = 1
    turn = 0.15

    def __init__(self, model: str, num_tasks: int, make: Make | None = None) -> None:
        super().__init__(model, num_tasks, make)
        self.rounds = ROUNDS.get(model, 5)
        if model == "transformer":
            self.warmup = 0  # three times the others' step, and every contestant has made one
        if model == "tiny MLP":
            self.warmup, self.turn = 2, 0.0
            self.threads = 1  # a second one costs more than it brings

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Joint training, SGD's part of it, then all others."""
        field = self.field(setting, among=lambda peer: peer in CLOSE)
        inner = field.steps["joint"].optimizer
        assert inner is not None
        # SGD's own part of every step, with the gradients of the joint one before.
        variants = {
            "joint": field.steps["joint"].seconds,
            "SGD": timed(inner.step, setting.device),
        }
        return {**variants, **{n: s.seconds for n, s in field.steps.items() if n != "joint"}}

    def rows(self, samples: Samples) -> list[Row]:
        """Ratios to joint training, to each other and to the peers, and milliseconds."""
        shown = ("joint", "SGD", *self.contestants)
        return [*self._times(samples, self.contestants, shown), *self._beside(samples)]

    def _times(
        self, samples: Samples, ratios: Sequence[str], milliseconds: Sequence[str]
    ) -> list[Row]:
        """Of these contestants."""
        ms = {n: statistics.median(seconds) * 1e3 for n, seconds in samples.items()}
        found = [
            self.row(
                name,
                samples,
                (name, "joint"),
                np.divide,
                figure="step/time",
                target=self._target(name),
                detail=f"{ms.get(name, np.nan):.4g} ms{self.engines.get(name, '')}",
                labels=self.labels(name),
            )
            for name in ratios
        ]
        size = f"P = {self.elements:,}"
        found += [
            self.milliseconds(name, samples, "step/ms", size if name == "joint" else "")
            for name in milliseconds
        ]
        faster = FASTER.get(self.model)
        targets = {} if faster is None else {"TorchJD": faster if self.num_tasks == 8 else 1.0}
        return [
            *found,
            *self.versus(
                samples,
                "step/peers",
                detail=lambda n: f"{ms[n]:.4g} ms against {ms.get('auto', np.nan):.4g}",
                targets=targets,
            ),
        ]

    def _target(self, contestant: str) -> float | None:
        """The bound of a contestant's time over joint training, where there is one."""
        if self.model not in MODELS:
            return None
        if self.model == "MLP" and contestant == "factored":
            return FACTORED.get(self.num_tasks)
        if self.num_tasks == 8 and contestant in (self.last_block, "features"):
            return 1.3
        return 1.4 if contestant == f"update_every={STEPS_PER_GRAMIAN}" else None

    def _beside(self, samples: Samples) -> list[Row]:
        """What an engine's time is held against, but for joint training."""
        bound = self.model in MODELS

        def beside(
            label: str,
            needs: str,
            value: Callable[..., Any],
            target: float | None = None,
            unit: str = "x",
        ) -> Row:
            return self.row(
                label,
                samples,
                tuple(needs.split("; ")),
                value,
                unit=unit,
                figure="step/beside",
                target=target if bound else None,
                labels=self.labels(part=label),
            )

        return [
            beside("stored / K backwards", "stored; K backwards", np.divide, 1.05),
            # The bare passes make no step, and gradients that are dropped leave warm memory to the
            # next ones: without both, what is left is Gramian, solver and combination.
            beside(
                "(stored - SGD) / K backwards, kept",
                "stored; SGD; K backwards, kept",
                lambda stored, step, bare: (stored - step) / bare,
            ),
            beside("factored / stored", "factored; stored", np.divide, 1.05),
            beside("batched / vmap batch", "batched; vmap batch", np.divide, 1.0),
            beside(
                "(batched - SGD) / vmap batch",
                "batched; SGD; vmap batch",
                lambda batched, step, bare: (batched - step) / bare,
            ),
            beside(
                "(streaming - batched) / joint",
                "streaming; batched; joint",
                lambda streaming, batched, joint: (streaming - batched) / joint,
                1.1,
                "joint",
            ),
            beside(
                "(sketched - K backwards) / joint",
                "sketched; K backwards; joint",
                lambda sketched, bare, joint: (sketched - bare) / joint,
                1.3,
                "joint",
            ),
        ]


class Others(Training):
    """The other peers beside joint training and "auto": slow, so that fewer rounds do."""

    figure = "step/peers"

    def __init__(self, model: str, num_tasks: int, make: Make | None = None) -> None:
        super().__init__(model, num_tasks, make)
        if model != "tiny MLP":
            self.warmup = 0  # every contestant has made a step before its first turn

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Those that are not in ``CLOSE``."""
        slow = {peer.name for peer in peers.wanted(setting)} - {*CLOSE}
        field = self.field(setting, {"auto", *slow}, among=lambda peer: peer in slow)
        return {name: step.seconds for name, step in field.steps.items()}

    def rows(self, samples: Samples) -> list[Row]:
        """Ratios to joint training and to ours, and milliseconds."""
        theirs = [name for name in self.contestants if name in self.modes]
        return self._times(samples, theirs, theirs)
