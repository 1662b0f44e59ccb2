"""Who takes part on the user's step: engines, ways to see less, methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import mtlfast
from mtlfast.bench import methods
from mtlfast.bench.mine.subject import Subject
from mtlfast.jacobian import memory
from mtlfast.weighting import REGISTRY, Weighting

__all__ = [
    "ALONE",
    "APPROXIMATE",
    "ENGINES",
    "EVERY",
    "EXACT",
    "METHOD",
    "REUSED",
    "Makers",
    "Step",
    "engines",
    "last_layer",
    "of_methods",
]

METHOD = "upgrad"
"""That all engines run: it draws no random numbers, so that the same Gramian gives the same step,
and its weights are continuous in the Gramian, so that rounding stays rounding."""

EXACT = ("stored", "batched", "factored", "streaming")
ENGINES = (*EXACT, "sketched", "auto")
EVERY = 10
REUSED = f"update_every={EVERY}"
APPROXIMATE = ("sketched", "gramian_params", "features", REUSED)
ALONE = "losses alone"
HOLDS_ALL = ("stored", "batched")
"""Engines that keep K·P numbers and do not ask whether they fit."""


class Step:
    """One kind of training step on the user's model.

    Args:
        subject: the user's.
        optimizer: ours around the user's; None: only the losses are computed.
        by_features: hand over the features.
        count: of the steps that are measured together.
    """

    def __init__(
        self,
        subject: Subject,
        optimizer: mtlfast.MultiTaskOptimizer | None,
        by_features: bool = False,
        count: int = 1,
    ) -> None:
        self.subject = subject
        self.optimizer = optimizer
        self.by_features = by_features
        self.count = count

    def __call__(self) -> None:
        """Makes ``count`` steps."""
        for _ in range(self.count):
            self._one()

    def _one(self) -> None:
        if self.optimizer is None:
            self.subject.draw()
            return
        self.optimizer.zero_grad()
        batches = [self.subject.draw() for _ in range(self.optimizer.weighting.num_batches)]
        features = batches[0].features if self.by_features else None
        self.optimizer.backward(*(batch.losses for batch in batches), features=features)
        self.optimizer.step()

    def gradients(self) -> Callable[[Any, Any], list[Tensor]]:
        """A function of losses and features: the balanced gradients, the graph is kept."""
        assert self.optimizer is not None
        optimizer, params = self.optimizer, self.subject.params

        def fill(losses: Any, features: Any) -> list[Tensor]:
            optimizer.zero_grad()
            z = features if self.by_features else None
            optimizer.backward(losses, features=z, retain_graph=True)
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            optimizer.zero_grad()
            return found

        return fill

    @property
    def last(self) -> mtlfast.diagnostics.StepInfo | None:
        """What ours saw in its last step."""
        return None if self.optimizer is None else self.optimizer.last


Makers = Mapping[str, Callable[[], Step | Callable[[], None]]]


def ours(
    subject: Subject,
    method: Weighting | str = METHOD,
    by_features: bool = False,
    count: int = 1,
    **options: Any,
) -> Step:
    """A step of ``MultiTaskOptimizer`` with these options."""
    optimizer = mtlfast.MultiTaskOptimizer(subject.optimizer, method, **options)
    return Step(subject, optimizer, by_features, count)


def last_layer(subject: Subject) -> list[Tensor]:
    """The last shared matrix, or kernel, in the optimizer's order, and what follows (its bias)."""
    shared = subject.shared
    wide = [i for i, param in enumerate(shared) if param.dim() > 1]
    return shared[wide[-1] :] if wide else shared[-1:]


def engines(subject: Subject) -> Makers:
    """Every engine and every way to see less, by name."""
    found: dict[str, Callable[[], Step | Callable[[], None]]] = {
        ALONE: partial(Step, subject, None)
    }
    for engine in ENGINES:
        found[engine] = partial(_engine, subject, engine)
    found["gramian_params"] = partial(ours, subject, gramian_params=last_layer(subject))
    if subject.has_features:
        found["features"] = partial(ours, subject, by_features=True)
    found[REUSED] = partial(ours, subject, count=EVERY, update_every=EVERY)
    return found


def _engine(subject: Subject, engine: str) -> Step:
    count = len(subject.names)
    needed = {d: count * size for d, size in memory.by_device(subject.shared).items()}
    lacking = memory.lacking(needed) if engine in HOLDS_ALL else None
    if lacking is not None:
        size, there = (memory.in_words(number) for number in lacking)
        raise MemoryError(f"K·P = {size} do not fit in {there}")
    return ours(subject, engine=engine)


def of_methods(subject: Subject, names: tuple[str, ...], engine: str) -> Makers:
    """A step of each method; one that reads all task gradients gets the engine "auto"."""

    def make(name: str) -> Step:
        method = REGISTRY[name](*methods.ARGUMENTS.get(name, tuple)())
        return ours(subject, method, engine=engine if method.compares_raw else "auto")

    return {name: partial(make, name) for name in names}
