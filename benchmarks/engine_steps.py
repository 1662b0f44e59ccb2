"""Everyone's whole training step on one model: ours by each engine, TorchJD's, and what is bare."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import mtlfast
from benchmarks.engine_models import EngineModel

LEARNING_RATE = 1e-9  # a step of the usual price after which the model is the same
SKETCH_SIZE = 65536
ENGINES = ("stored", "batched", "factored", "streaming", "sketched", "auto")
EXACT = ("batched", "factored", "streaming", "auto")
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
        start = time.perf_counter()
        self.all()
        return (time.perf_counter() - start) / self.count

    def gradients(self, order: Tensor) -> list[Tensor]:
        """Of every parameter, on the model's batch; the seed serves TorchJD."""
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        torch.manual_seed(1)
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


def autojac(model: EngineModel, chunk: int | None, optimized: bool) -> Step:
    """TorchJD by Jacobians; ``chunk`` tasks a backward, the Gramian summed over tensors or not."""
    from torchjd.aggregation import PCGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    shared = model.shared_params()
    own = [list(head.parameters()) for head in model.heads]
    aggregator = PCGrad()

    def fill(_: Tensor | None) -> None:
        features = model.features()
        losses = model.task_losses(features)
        mtl_backward(
            losses, features, tasks_params=own, shared_params=shared, parallel_chunk_size=chunk
        )
        jac_to_grad(shared, aggregator, optimize_gramian_computation=optimized)

    return Step(model, fill, sgd(model))


def autogram(model: EngineModel) -> Step:
    """TorchJD by Gramians of the trunk's layers, and a weighted backward; heads by their own."""
    from torchjd.aggregation import PCGradWeighting
    from torchjd.autogram import Engine

    model = copy.deepcopy(model)  # its hooks would stay in everyone's graph
    engine = Engine(model.trunk, batch_dim=None)  # the losses are sums over the batch
    weighting = PCGradWeighting()
    shared, own = model.shared_params(), list(model.heads.parameters())

    def fill(_: Tensor | None) -> None:
        losses = torch.stack(model.losses())
        weights = weighting(engine.compute_gramian(losses))
        torch.autograd.backward(losses, torch.ones_like(weights), retain_graph=True, inputs=own)
        torch.autograd.backward(losses, weights, inputs=shared)

    return Step(model, fill, sgd(model))


def ours(model: EngineModel, count: int = 1, by_features: bool = False, **options: Any) -> Step:
    """``MultiTaskOptimizer`` with these options."""
    optimizer = mtlfast.MultiTaskOptimizer(sgd(model), mtlfast.PCGrad(), **options)

    def fill(order: Tensor | None) -> None:
        inputs: dict[str, Any] = {} if order is None else {"order": order}
        if by_features:
            features = model.features()
            losses = model.task_losses(features)
            optimizer.backward(losses, features=features, **inputs)
        else:
            optimizer.backward(model.losses(), **inputs)

    return Step(model, fill, optimizer, count)


AUTOGRAM = "TorchJD autogram"
TORCHJD: dict[str, Callable[[EngineModel], Step]] = {
    "TorchJD, chunks of 1": lambda model: autojac(model, 1, True),
    "TorchJD, one chunk": lambda model: autojac(model, None, True),
    "TorchJD, its default": lambda model: autojac(model, None, False),
    AUTOGRAM: autogram,
}
"""Its best mode is the fastest of these, in every case."""
AUTOJAC = [name for name in TORCHJD if name != AUTOGRAM]


class Field:
    """The contestants on one model: those that run, and why the others do not.

    Each makes one step here, so that a later one is of the usual kind.

    Args:
        model: for all of them, beside joint training, which is always there.
        wanted: their names; default: all.

    Attributes:
        steps: by name, joint training first.
        missing: why there is no step, by name.
        contestants: all names but joint training's.
    """

    def __init__(self, model: EngineModel, wanted: Container[str] | None = None) -> None:
        self.model = model
        self.steps = {"joint": joint(model)}
        self.steps["joint"]()
        self.missing: dict[str, str] = {}
        makers: dict[str, Callable[[EngineModel], Step]] = {
            "K backwards": backwards,
            "K backwards, kept": partial(backwards, kept=True),
            "vmap batch": vmap_batch,
            **TORCHJD,
        }
        for engine in ENGINES:
            options: dict[str, Any] = {"engine": engine}
            if engine == "sketched":
                options["sketch_size"] = SKETCH_SIZE
            makers[engine] = partial(ours, **options)
        for block, params in model.last_blocks.items():
            makers[f"gramian_params, {block}"] = partial(ours, gramian_params=params)
        makers["features"] = partial(ours, by_features=True)
        if len(model.heads) == 4:
            every = STEPS_PER_GRAMIAN
            makers[f"update_every={every}"] = partial(ours, count=every, update_every=every)
        self.contestants = [name for name in makers if wanted is None or name in wanted]
        for name in self.contestants:
            self._enter(name, makers[name])

    def _enter(self, name: str, make: Callable[[EngineModel], Step]) -> None:
        try:
            step = make(self.model)
            step()
        except Exception as error:
            for param in self.model.parameters():  # of the peers' code as of ours
                param.grad = None
                param.__dict__.pop("jac", None)
            said = " ".join(str(error).split())
            what = "refused" if name in TORCHJD else type(error).__name__
            self.missing[name] = f"{what}: {said[:100]}{'...' * (len(said) > 100)}"
        else:
            self.steps[name] = step

    def engine(self, name: str) -> str:
        """What ours says of its engine; empty for the others."""
        if not isinstance(self.steps[name].optimizer, mtlfast.MultiTaskOptimizer):
            return ""
        last = self.steps[name].last()
        reason = getattr(last, "reason", None) if name == "auto" else None
        return f", {last.engine}" + (f": {reason}" if reason else "")
