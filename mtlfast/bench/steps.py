"""Everyone's whole training step on one model: ours by each engine, the peers', what is bare."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import mtlfast
from mtlfast.bench import methods
from mtlfast.bench.case import timed
from mtlfast.bench.models import EngineModel
from mtlfast.bench.runner import said
from mtlfast.weighting import Weighting

if TYPE_CHECKING:
    from mtlfast.bench.peers import Peer

LEARNING_RATE = 1e-9  # a step of the usual price after which the model is the same
SKETCH_SIZE = 65536
ENGINES = ("stored", "batched", "factored", "streaming", "sketched", "auto")
EXACT = ("batched", "factored", "streaming", "auto")
BARE = ("joint", "SGD", "K backwards", "K backwards, kept", "vmap batch")
"""What is nobody's whole balanced step."""
STEPS_PER_GRAMIAN = 10


@dataclass
class Step:
    """A training step.

    Attributes:
        model: what it trains.
        fill: forward and backwards, to gradients in ``.grad``; takes PCGrad's order or None.
        optimizer: makes the step; None for bare backwards, which fill nothing.
        count: of the steps that are measured together.
    """

    model: EngineModel
    fill: Callable[[Tensor | None], None]
    optimizer: torch.optim.Optimizer | None
    count: int = 1

    def __call__(self) -> None:
        """Makes one step."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        self.fill(None)
        if self.optimizer is not None:
            self.optimizer.step()

    def all(self) -> None:
        """``count`` steps."""
        for _ in range(self.count):
            self()

    def seconds(self) -> float:
        """Of one step, on average."""
        return timed(self.all, self.model.inputs.device)() / self.count

    def gradients(self, order: Tensor) -> list[Tensor]:
        """Of every parameter, on the model's batch; the seeds serve the peers."""
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        torch.manual_seed(1)
        random.seed(1)
        self.fill(order)
        found = [param.grad for param in self.model.parameters()]
        self.optimizer.zero_grad()
        return [grad for grad in found if grad is not None]

    def last(self) -> mtlfast.diagnostics.StepInfo:
        """What ours saw in its last step."""
        assert isinstance(self.optimizer, mtlfast.MultiTaskOptimizer)
        assert self.optimizer.last is not None
        return self.optimizer.last


def meetings(num_tasks: int) -> Tensor:
    """``[K, K]``: the order that TorchJD's PCGrad draws after ``torch.manual_seed(1)``."""
    torch.manual_seed(1)
    return torch.stack([torch.randperm(num_tasks) for _ in range(num_tasks)])


def sgd(model: EngineModel) -> torch.optim.Optimizer:
    """The optimizer of every step."""
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def joint(model: EngineModel) -> Step:
    """The plain training that everything is held against."""

    def fill(_: Tensor | None) -> None:
        torch.autograd.backward(torch.stack(model.losses()).sum())

    return Step(model, fill, sgd(model))


def backwards(model: EngineModel, kept: bool = False) -> Step:
    """One forward and K backwards, no step; their gradients are dropped at once, or kept."""
    params = list(model.parameters())

    def fill(_: Tensor | None) -> None:
        losses = model.losses()
        rows = []
        for k, loss in enumerate(losses):
            more = k < len(losses) - 1
            row = torch.autograd.grad(loss, params, retain_graph=more, allow_unused=True)
            if kept:
                rows.append(row)
            del row

    return Step(model, fill, None)


def vmap_batch(model: EngineModel) -> Step:
    """One forward, K backwards of the heads, and the trunk's under ``vmap``; no step is made."""
    shared = model.shared_params()

    def fill(_: Tensor | None) -> None:
        features = model.features()
        cotangents = [
            torch.autograd.grad(loss, [features, *head.parameters()])[0]
            for loss, head in zip(model.task_losses(features), model.heads, strict=True)
        ]
        torch.vmap(lambda cotangent: torch.autograd.grad(features, shared, cotangent))(
            torch.stack(cotangents)
        )

    return Step(model, fill, None)


def ours(
    model: EngineModel,
    method: str | Weighting = "pcgrad",
    count: int = 1,
    by_features: bool = False,
    **options: Any,
) -> Step:
    """``MultiTaskOptimizer`` with these options."""
    weighting = methods.make(method) if isinstance(method, str) else method
    optimizer = mtlfast.MultiTaskOptimizer(sgd(model), weighting, **options)

    def fill(order: Tensor | None) -> None:
        ordered = order is not None and "order" in weighting.inputs
        inputs: dict[str, Any] = {"order": order} if ordered else {}
        if by_features:
            features = model.features()
            losses = model.task_losses(features)
            optimizer.backward(losses, features=features, **inputs)
        else:
            batches = [model.losses() for _ in range(weighting.num_batches)]
            optimizer.backward(*batches, **inputs)

    return Step(model, fill, optimizer, count)


class Field:
    """The contestants on one model: those that run, and why the others do not.

    Each makes one step here, so that a later one is of the usual kind.

    Args:
        model: for all of them, beside joint training, which is always there.
        peers: whose steps are compared with.
        method: name of the method.
        wanted: names of contestants, or of a peer for all its modes; default: all.

    Attributes:
        steps: by name, joint training first.
        missing: why there is no step, by name.
        contestants: all names but joint training's.
        modes: name of the peer, by the name of its contestant; of a peer that is not there the
            only contestant has the peer's own name.
    """

    def __init__(
        self,
        model: EngineModel,
        peers: Sequence[Peer] = (),
        method: str = "pcgrad",
        wanted: Collection[str] | None = None,
    ) -> None:
        self.model = model
        self.steps = {"joint": joint(model)}
        self.steps["joint"]()
        self.missing: dict[str, str] = {}
        self.modes: dict[str, str] = {}
        absent: dict[str, str] = {}
        makers: dict[str, Callable[[], Step]] = {
            "K backwards": partial(backwards, model),
            "K backwards, kept": partial(backwards, model, kept=True),
            "vmap batch": partial(vmap_batch, model),
        }
        for peer in peers:
            try:
                modes = peer.steps(method, model)
            except Exception as error:  # most likely that it is not installed
                absent[peer.name] = said(error)
                self.modes[peer.name] = peer.name
                continue
            for mode, make in modes.items():
                name = f"{peer.name}, {mode}" if mode else peer.name
                makers[name] = make
                self.modes[name] = peer.name
        for engine in ENGINES:
            options: dict[str, Any] = {"engine": engine}
            if engine == "sketched":
                options["sketch_size"] = SKETCH_SIZE
            makers[engine] = partial(ours, model, method, **options)
        for block, params in model.last_blocks.items():
            makers[f"gramian_params, {block}"] = partial(ours, model, method, gramian_params=params)
        makers["features"] = partial(ours, model, method, by_features=True)
        every = STEPS_PER_GRAMIAN
        if len(model.heads) == 4 or f"update_every={every}" in (wanted or ()):
            makers[f"update_every={every}"] = partial(
                ours, model, method, count=every, update_every=every
            )
        self.contestants = [
            name
            for name in (*makers, *absent)
            if wanted is None
            or name in wanted
            or self.modes.get(name) in wanted
            or (name in absent and any(asked.startswith(f"{name}, ") for asked in wanted))
        ]
        for name in self.contestants:
            if name in absent:
                self.missing[name] = absent[name]
            else:
                self._enter(name, makers[name])

    def _enter(self, name: str, make: Callable[[], Step]) -> None:
        try:
            step = make()
            step()
        except Exception as error:
            for param in self.model.parameters():  # of the peers' code as of ours
                param.grad = None
                param.__dict__.pop("jac", None)
            self.missing[name] = said(error)
        else:
            self.steps[name] = step

    def engine(self, name: str) -> str:
        """What ours says of its engine; empty for the others."""
        if not isinstance(self.steps[name].optimizer, mtlfast.MultiTaskOptimizer):
            return ""
        last = self.steps[name].last()
        reason = getattr(last, "reason", None) if name == "auto" else None
        return f", {last.engine}" + (f": {reason}" if reason else "")
