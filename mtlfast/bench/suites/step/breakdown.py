"""Where the time of a balanced training step goes.

A step is made once as a user makes it, and once as the same calls one after another with a clock
between them; both take turns. What the parts do not explain is the rest: the optimizer's books,
and giving back the memory of the task gradients. On a GPU the clock waits for the device after
every part, which a whole step does not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from mtlfast import jacobian
from mtlfast.bench import methods, steps
from mtlfast.bench.case import Samples, Variant
from mtlfast.bench.contestants import Make, ModelCase
from mtlfast.bench.models import EngineModel
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.losses import TaskLosses

__all__ = ["FIGURES", "PARTS", "Breakdown", "Joint", "Parts"]

FIGURES = {"step/breakdown": "where the time of a training step goes"}

PARTS = ("forward", "backwards", "gramian", "solve", "combine", "optimizer")
JOINT = ("forward", "backwards", "optimizer")
ROUNDS = {"transformer": 5, "tiny MLP": 120}


class Clock:
    """Seconds of parts that follow each other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def start(self) -> None:
        """Of the first part."""
        self.seconds = {}
        self.last = self.now()

    def now(self) -> float:
        """Of an idle device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def end(self, part: str) -> None:
        """Of this part, and the start of the next; a part may come twice."""
        now = self.now()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now


class Joint:
    """One joint training step with a clock after each of its calls."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.inner = steps.sgd(model)
        self.clock = Clock(model.inputs.device)

    def __call__(self) -> float:
        """Makes one; seconds of all parts together."""
        clock = self.clock
        clock.start()
        self.inner.zero_grad()
        clock.end("optimizer")
        losses = torch.stack(self.model.losses()).sum()
        clock.end("forward")
        torch.autograd.backward(losses)
        clock.end("backwards")
        self.inner.step()
        clock.end("optimizer")
        return sum(clock.seconds.values())


class Parts:
    """One balanced training step of an engine with a clock after each of its calls.

    Args:
        model: What is trained.
        engine: Its name; one that keeps all task gradients, or "auto".
        method: Name of a method that looks at the Gramian alone.
    """

    def __init__(self, model: EngineModel, engine: str, method: str) -> None:
        self.model = model
        self.engine = engine
        self.weighting = methods.make(method)
        self.inner = steps.sgd(model)
        self.notes = jacobian.Notes()
        self.clock = Clock(model.inputs.device)

    def __call__(self) -> float:
        """Makes one; seconds of all parts together."""
        clock, weighting = self.clock, self.weighting
        clock.start()
        self.inner.zero_grad()
        clock.end("optimizer")
        losses = self.model.losses()
        clock.end("forward")
        tasks = TaskLosses.read(losses, None)
        params: list[Tensor] = list(self.model.parameters())
        request = jacobian.Request(tasks, len(losses), params, notes=self.notes)
        grads = jacobian.differentiate(self.engine, request, needs_rows=False)
        split = request.split(grads.reach)
        clock.end("backwards")
        gramian = grads.gramian(split.compared, losses[0])
        clock.end("gramian")
        values = tasks.values()
        weights = weighting(gramian, values)
        own = weighting.own_weights(weights, values)
        clock.end("solve")
        own_grads = grads.combine(split.own, own)
        grads.combine_(split.shared, weights, accumulate=False)
        for t, grad in zip(split.own, own_grads, strict=True):
            if grad is not None:
                jacobian.add(params[t], grad)
        clock.end("combine")
        self.inner.step()
        clock.end("optimizer")
        return sum(clock.seconds.values())


class Breakdown(ModelCase):
    """Joint training, the stored engine, and what "auto" chooses where it is another one."""

    figure = "step/breakdown"
    warmup = 1

    def __init__(self, model: str, num_tasks: int, make: Make | None = None) -> None:
        super().__init__(model, num_tasks, make)
        self.rounds = ROUNDS.get(model, 12)
        if model == "tiny MLP":
            self.threads = 1
        self.whole: dict[str, str] = {}  # what is said of each contestant

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Of each contestant the whole step, then its parts."""
        model = self.build(setting)
        joint = Joint(model)
        self.whole = {"joint": ""}
        variants = self._variants("joint", steps.joint(model), joint, joint.clock)
        for engine in ("stored", "auto"):
            step = steps.ours(model, self.method, engine=engine)
            step()
            last = step.last()
            if engine == "auto" and last.engine == "stored":
                continue
            self.whole[engine] = f"{last.engine}: {last.reason}"
            parts = Parts(model, engine, self.method)
            variants |= self._variants(engine, step, parts, parts.clock)
        return variants

    def _variants(
        self, name: str, step: steps.Step, parts: Variant, clock: Clock
    ) -> dict[str, Variant]:
        def whole() -> float:
            step()  # as the parts, it is timed where a step of its own kind came before
            return step.seconds()

        def found(part: str) -> float:
            return clock.seconds[part]

        shown = JOINT if name == "joint" else PARTS
        return {
            f"{name}, whole": whole,
            f"{name}, parts": parts,
            **{f"{name}, {part}": partial(found, part) for part in shown},
        }

    def rows(self, samples: Samples) -> list[Row]:
        """Milliseconds of the whole, of each part, and of what is left."""
        found = []
        for name, said in self.whole.items():
            parts = JOINT if name == "joint" else PARTS
            labels = self.labels(name)
            found += [
                self.milliseconds(
                    f"{name}, {part}",
                    samples,
                    self.figure,
                    said if part == "whole" else "",
                    {**labels, "part": part},
                )
                for part in ("whole", *parts)
            ]
            found.append(
                self.row(
                    f"{name}, rest",
                    samples,
                    (f"{name}, whole", *(f"{name}, {part}" for part in parts)),
                    lambda whole, *seconds: (whole - sum(seconds)) * 1e3,
                    unit="ms",
                    detail="the whole without all parts",
                    labels={**labels, "part": "rest"},
                )
            )
        return found
