"""TorchJD 0.18 (Quinton and Rey 2024, arXiv 2406.16232)."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlfast.bench.models import EngineModel
from mtlfast.bench.peers.base import Into, Modes, Peer
from mtlfast.bench.steps import Step, sgd

__all__ = ["AUTOGRAM", "PEER", "TorchJD"]

AUTOGRAM = "autogram"

AGGREGATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "aligned_mtl": ("AlignedMTL", {}),
    "cagrad": ("CAGrad", {"c": 0.5}),
    "config": ("ConFIG", {}),
    "dualproj": ("DualProj", {}),
    "excess_mtl": ("ExcessMTL", {}),
    "fairgrad": ("FairGrad", {"alpha": 2.0}),
    "graddrop": ("GradDrop", {}),
    "gradvac": ("GradVac", {}),
    "imtlg": ("IMTLG", {}),
    "krum": ("Krum", {"n_byzantine": 0}),
    "mgda": ("MGDA", {}),
    "nash_mtl": ("NashMTL", {}),
    "pcd": ("PCD", {}),
    "pcgrad": ("PCGrad", {}),
    "trimmed_mean": ("TrimmedMean", {"trim_number": 1}),
    "upgrad": ("UPGrad", {}),
}
"""Its classes with the arguments that make it compute what our defaults do."""


class TorchJD(Peer):
    """Its best mode sums the Gramian over the tensors; its default joins them to a matrix."""

    name = "TorchJD"
    package = "torchjd"
    differs: ClassVar[Mapping[str, str]] = {
        "dualproj": "adds 1e-4 to the diagonal of the Gramian over its trace",
        "krum": "sums distances, not their squares",
        "mgda": "at most 100 steps of Frank and Wolfe",
        "upgrad": "adds 1e-4 to the diagonal of the Gramian over its trace",
    }

    def balances(self, method: str, into: Into) -> Modes:
        """``jac_to_grad``; that ``.jac`` or a matrix is filled is not timed, in its favour."""
        if method not in AGGREGATORS:
            return {}
        jac_to_grad = importlib.import_module("torchjd.autojac").jac_to_grad
        new = partial(self.aggregator, method, len(into.task_grads))  # some have a state
        jacobians = [torch.stack(block) for block in zip(*into.task_grads, strict=True)]

        def before() -> None:
            into.clear()
            for param, jacobian in zip(into.params, jacobians, strict=True):
                param.jac = jacobian  # type: ignore[attr-defined]

        def by_jacobians(aggregator: Any, optimized: bool) -> None:
            jac_to_grad(into.params, aggregator, optimize_gramian_computation=optimized)

        default = (before, partial(by_jacobians, new(), False))
        if hasattr(new(), "gramian_weighting"):
            return {"Gramian sum": (before, partial(by_jacobians, new(), True)), "default": default}
        matrix = torch.stack([torch.cat([g.flatten() for g in row]) for row in into.task_grads])
        sizes = [param.numel() for param in into.params]

        def by_matrix(aggregator: Any) -> None:
            parts = torch.split(aggregator(matrix), sizes)
            into.write([part.view_as(p) for part, p in zip(parts, into.params, strict=True)])

        return {"matrix given": (into.clear, partial(by_matrix, new())), "default": default}

    def steps(self, method: str, model: EngineModel) -> Mapping[str, Callable[[], Step]]:
        """By Jacobians, in chunks or not; by Gramians of the layers, where it makes one."""
        if method not in AGGREGATORS:
            return {}
        new = partial(self.aggregator, method, len(model.heads))  # some have a state
        best = hasattr(new(), "gramian_weighting")
        found: dict[str, Callable[[], Step]] = {
            "chunks of 1": lambda: autojac(model, new(), 1, best),
            "one chunk": lambda: autojac(model, new(), None, best),
            "default": lambda: autojac(model, new(), None, False),
        }
        if best:
            found[AUTOGRAM] = lambda: autogram(model, new().gramian_weighting)
        return found

    def weights(self, method: str, num_tasks: int) -> tuple[str, Callable[[Tensor], Any]] | None:
        """Its weighting of a Gramian; of a Jacobian for Nash-MTL; the direction for ConFIG."""
        if method not in AGGREGATORS:
            return None
        aggregator = self.aggregator(method, num_tasks)
        if hasattr(aggregator, "gramian_weighting"):
            return "gramian", aggregator.gramian_weighting
        if method == "nash_mtl":
            return "jacobian", aggregator.weighting
        return "direction", aggregator

    def order(self, method: str, num_tasks: int) -> Tensor | None:
        """A permutation for every task, which skips itself."""
        if method not in ("gradvac", "pcgrad"):
            return None
        self.seed()
        rows = []
        for task in range(num_tasks):
            tasks = torch.arange(num_tasks)
            if method == "gradvac":  # draws without itself
                tasks = tasks[tasks != task]
            met = tasks[torch.randperm(len(tasks))]
            rows.append(torch.cat([torch.tensor([task]), met[met != task]]))
        return torch.stack(rows)

    @staticmethod
    def aggregator(method: str, num_tasks: int) -> Any:
        """A new one.

        Raises:
            KeyError: It has none for this method.
        """
        name, arguments = AGGREGATORS[method]
        options = {"n_tasks": num_tasks} if method == "nash_mtl" else arguments
        return getattr(importlib.import_module("torchjd.aggregation"), name)(**options)


def autojac(model: EngineModel, aggregator: Any, chunk: int | None, optimized: bool) -> Step:
    """By Jacobians; ``chunk`` tasks a backward, the Gramian summed over tensors or not."""
    autojac = importlib.import_module("torchjd.autojac")
    shared = model.shared_params()
    own = [list(head.parameters()) for head in model.heads]

    def fill(_: Tensor | None) -> None:
        features = model.features()
        losses = model.task_losses(features)
        autojac.mtl_backward(
            losses, features, tasks_params=own, shared_params=shared, parallel_chunk_size=chunk
        )
        autojac.jac_to_grad(shared, aggregator, optimize_gramian_computation=optimized)

    return Step(model, fill, sgd(model))


def autogram(model: EngineModel, weighting: Any) -> Step:
    """By Gramians of the trunk's layers, and a weighted backward; heads by their own."""
    engine_type = importlib.import_module("torchjd.autogram").Engine
    model = copy.deepcopy(model)  # its hooks would stay in everyone's graph
    engine = engine_type(model.trunk, batch_dim=None)  # the losses are sums over the batch
    shared, own = model.shared_params(), list(model.heads.parameters())

    def fill(_: Tensor | None) -> None:
        losses = torch.stack(model.losses())
        weights = weighting(engine.compute_gramian(losses))
        torch.autograd.backward(losses, torch.ones_like(weights), retain_graph=True, inputs=own)
        torch.autograd.backward(losses, weights, inputs=shared)

    return Step(model, fill, sgd(model))


PEER = TorchJD()
