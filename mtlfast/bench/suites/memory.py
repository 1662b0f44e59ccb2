"""The suite of memory: what everyone's training step holds at its peak.

Only torch's own allocations count, without what was there before the step. It is the same in every
run: each is made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

import mtlfast
from mtlfast.bench import allocations, workloads
from mtlfast.bench.case import Case, Samples, Variant
from mtlfast.bench.contestants import Make, ModelCase
from mtlfast.bench.models import MODELS
from mtlfast.bench.peers.torchjd import AUTOGRAM
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.steps import SKETCH_SIZE, Step

__all__ = ["FIGURES", "Beyond", "Peak", "cases"]

FIGURES = {
    "memory/peak": "peak memory of a training step",
    "memory/over": "the same over joint training",
    "memory/bounds": "peak memory over what it may be",
    "memory/peers": "peak memory of a peer's training step over ours",
    "memory/kp": "peak memory of a balanced step beyond joint training, in units of K P elements",
}

WIDTH, DEPTH = 1024, 4  # of the model of memory/kp


class Peak(ModelCase):
    """All contestants on one model."""

    figure = "memory/peak"
    rounds = passes = 1
    warmup = 0

    def __init__(self, model: str, num_tasks: int, make: Make | None = None) -> None:
        super().__init__(model, num_tasks, make)
        self.itemsize = 4

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """A step of each, with no gradient held from the step before."""
        self.itemsize = setting.dtype.itemsize

        def peak(step: Step) -> float:
            step.model.zero_grad()
            return float(allocations.peak(step.all, setting.device))

        return {name: partial(peak, step) for name, step in self.field(setting).steps.items()}

    def rows(self, samples: Samples) -> list[Row]:
        """Megabytes, ratios to joint training, to bounds and to the peers."""
        self.others = 0.0  # who else is busy changes no peak
        found = []
        for name in ("joint", *self.contestants):
            size = f"P = {self.elements:,}" if name == "joint" else self.engines.get(name, "")
            found.append(
                self.row(
                    name,
                    samples,
                    (name,),
                    lambda peak: peak / 1e6,
                    unit="MB",
                    detail=size.removeprefix(", "),
                    labels=self.labels(name),
                )
            )
        found += [
            self.row(
                name,
                samples,
                (name, "joint"),
                np.divide,
                figure="memory/over",
                labels=self.labels(name),
            )
            for name in self.contestants
        ]

        def sizes(name: str) -> str:
            ours = samples["auto"].max() / 1e6 if "auto" in samples else np.nan
            return f"{samples[name].max() / 1e6:.4g} MB against {ours:.4g}"

        return [
            *found,
            *self._bounds(samples),
            *self.versus(samples, "memory/peers", detail=sizes),
        ]

    def _bounds(self, samples: Samples) -> list[Row]:
        """What the peaks are held against, where the models are the usual ones."""
        bound = self.model in MODELS
        figure, labels = "memory/bounds", self.labels()
        found = []
        for engine, elements, target in (
            ("stored", self.elements, 1.01),
            ("streaming", self.largest_layer, 1.10),
            ("sketched", SKETCH_SIZE, 1.05),
        ):
            more = self.num_tasks * elements * self.itemsize
            found.append(
                self.row(
                    f"{engine} / (joint + K {elements / 1e6:.2f}e6 elements)",
                    samples,
                    (engine, "joint"),
                    lambda peak, joint, more=more: peak / (joint + more),
                    figure=figure,
                    target=target if bound else None,
                    detail=lambda n=engine, more=more: (  # type: ignore[misc]
                        f"{samples[n].max() / 1e6:.1f} MB, "
                        f"{(samples['joint'].max() + more) / 1e6:.1f} at most"
                    ),
                    labels=labels | {"engine": engine},
                )
            )
        saved = 3.0 if (self.model, self.num_tasks) == ("MLP", 8) else None
        found.append(
            self.row(
                "stored / factored",
                samples,
                ("stored", "factored"),
                np.divide,
                figure=figure,
                target=saved,
                at_least=True,
                labels=labels | {"engine": "factored"},
            )
        )
        autogram = f"TorchJD, {AUTOGRAM}"
        others = [n for n, peer in self.modes.items() if peer == "TorchJD" and n != autogram]
        if others:
            least = min(others, key=lambda n: float(np.max(samples.get(n, np.inf))))
            found += [
                self.row(
                    f"auto / {name}",
                    samples,
                    ("auto", name),
                    np.divide,
                    figure=figure,
                    target=target,
                    labels=labels | {"engine": "auto", "mode": name},
                )
                for name, target in ((least, 1.0 if bound else None), (autogram, None))
            ]
        return found


class Beyond(Case):
    """What CAGrad's step adds to that of joint training, both by AdamW."""

    figure = "memory/kp"
    rounds = passes = 1
    warmup = 0

    def __init__(self, num_tasks: int, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.num_tasks, self.width, self.depth = num_tasks, width, depth
        self.name = f"K = {num_tasks}, AdamW"
        self.elements = 0
        self.itemsize = 4

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Joint and balanced."""
        torch.manual_seed(0)
        model = workloads.MultiTaskModel(self.num_tasks, self.width, self.depth)
        model.to(setting.device, setting.dtype)
        model.inputs = model.inputs.to(setting.device, setting.dtype)
        model.targets = model.targets.to(setting.device)
        self.elements, self.itemsize = model.shared_elements(), setting.dtype.itemsize

        def peak(optimizer: torch.optim.Optimizer) -> float:
            def step() -> None:
                losses = model.losses()
                if isinstance(optimizer, mtlfast.MultiTaskOptimizer):
                    optimizer.backward(losses)
                else:
                    torch.autograd.backward(losses)
                optimizer.step()

            for _ in range(2):
                step()  # AdamW's state is allocated once, at the first step
                optimizer.zero_grad()
            found = allocations.peak(step, setting.device)
            optimizer.zero_grad()
            return float(found)

        def adamw() -> torch.optim.Optimizer:
            return torch.optim.AdamW(model.parameters())

        return {
            "joint": lambda: peak(adamw()),
            "balanced": lambda: peak(mtlfast.MultiTaskOptimizer(adamw(), mtlfast.CAGrad())),
        }

    def rows(self, samples: Samples) -> list[Row]:
        """The one of this K."""
        self.others = 0.0
        unit = max(self.num_tasks * self.elements * self.itemsize, 1)
        row = self.row(
            "",
            samples,
            ("balanced", "joint"),
            lambda balanced, joint: (balanced - joint) / unit,
            unit="KP",
            target=1.01 if (self.width, self.depth) == (WIDTH, DEPTH) else None,
            detail=lambda: (
                f"P = {self.elements:,}; peak {samples['balanced'].max() / 1e6:.1f} MB against "
                f"{samples['joint'].max() / 1e6:.1f}"
            ),
            labels={"K": self.num_tasks, "P": self.elements, "contestant": "mtlfast"},
        )
        return [row]


def cases(setting: Setting, makers: Mapping[str, Make] = MODELS) -> Sequence[Case]:
    """All of them; sizes P are those of the models.

    Args:
        setting: Of the run.
        makers: The models by their names here, to try the suite on smaller ones.
    """
    names = [name for name in MODELS if name == "MLP" or not setting.quick]
    tasks = setting.choose_tasks(2, 4, 8)
    peaks: list[Case] = [Peak(name, count, makers[name]) for name in names for count in tasks]
    return [*peaks, *(Beyond(count) for count in tasks)]
