"""Each method that a peer has: its training step over ours."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np
from torch import Tensor

import mtlfast
from mtlfast.bench import peers
from mtlfast.bench.case import Samples, Variant
from mtlfast.bench.contestants import Make, ModelCase
from mtlfast.bench.models import mlp
from mtlfast.bench.peers.libmtl import REP_GRAD
from mtlfast.bench.rows import Row
from mtlfast.bench.runner import said
from mtlfast.bench.setting import Setting
from mtlfast.bench.steps import STEPS_PER_GRAMIAN, Field, meetings
from mtlfast.bench.workloads import relative_difference
from mtlfast.weighting import REGISTRY

__all__ = ["FEW", "FIGURES", "Method", "of_peers"]

FIGURES = {
    "step/methods": "time of a peer's training step over ours, by method",
    "step/methods-ms": "training steps by method, one alone",
}

FEW = ("cagrad", "nash_mtl")
SELDOM = f"update_every={STEPS_PER_GRAMIAN}"
ALSO = {"gradnorm": ("features", SELDOM), "imtl": ("features",), "mgda": ("features",)}
"""What of ours computes what a peer's mode does that is another algorithm than its default."""

DRAWN = frozenset(("normal", "uniform"))
"""Inputs of methods that draw weights, or which elements count: no two steps are the same."""


class Method(ModelCase):
    """One method: ours by "auto" and "stored", and every peer that has it.

    A peer's mode that looks at less than all gradients is held against ours that does so, too.
    """

    figure = "step/methods"
    rounds = 25
    warmup = 1
    turn = 0.02

    def __init__(self, method: str, model: str, num_tasks: int, make: Make | None = None) -> None:
        super().__init__(model, num_tasks, make, method)
        self.name = f"{self.name}, {method}"
        self.differences: dict[str, float] = {}

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """All of them; their second steps' gradients are compared with the stored engine's."""
        there = {peer.name: peer for peer in peers.wanted(setting)}
        field = self.field(setting, {"auto", "stored", *ALSO.get(self.method, ()), *there})
        if "stored" in field.steps and not DRAWN.intersection(REGISTRY[self.method].inputs):
            self._compare(field, there)
        return {name: step.seconds for name, step in field.steps.items()}

    def _compare(self, field: Field, there: Mapping[str, peers.Peer]) -> None:
        """Gradients, each with the order in which the peer's tasks meet."""
        ours = field.steps["stored"]
        assert isinstance(ours.optimizer, mtlfast.MultiTaskOptimizer)
        weighting = ours.optimizer.weighting
        before = weighting.snapshot()
        by_order: dict[bytes, list[Tensor]] = {}

        def expected(order: Tensor) -> list[Tensor]:
            key = order.numpy().tobytes()
            if key not in by_order:
                weighting.restore(before)
                by_order[key] = ours.gradients(order)
            return by_order[key]

        def compare(name: str) -> None:
            order = there[field.modes[name]].order(self.method, self.num_tasks)
            order = meetings(self.num_tasks) if order is None else order
            try:
                found = field.steps[name].gradients(order)
                self.differences[name] = relative_difference(iter(found), iter(expected(order)))
            except Exception as error:
                self.missing[name] = said(error)
                del field.steps[name]

        for name in [name for name in field.steps if name in field.modes]:
            compare(name)

    def rows(self, samples: Samples) -> list[Row]:
        """Every mode, the best one over "auto" and "stored" each, and milliseconds."""
        ms = {n: statistics.median(seconds) * 1e3 for n, seconds in samples.items()}
        found = []
        for ours in ("auto", "stored", *ALSO.get(self.method, ())):

            def detail(name: str, ours: str = ours) -> str:
                times = f"{ms[name]:.4g} ms against {ms.get(ours, np.nan):.4g}"
                if name not in self.differences:
                    return times
                return f"{times}; gradients differ by {self.differences[name]:.0e}"

            def among(name: str, ours: str = ours) -> bool:
                other = self._ours(name)
                return other == "auto" if ours == "stored" else other == ours

            found += self.versus(
                samples, self.figure, ours, each=ours != "stored", among=among, detail=detail
            )
        for name in ("joint", *self.contestants):
            engine = self.engines.get(name, "").removeprefix(", ")
            found.append(self.milliseconds(name, samples, "step/methods-ms", engine))
        return found

    def _ours(self, contestant: str) -> str:
        """What of ours computes what this contestant does."""
        mode = self.mode(contestant)
        other = {REP_GRAD: "features", SELDOM: SELDOM}.get(mode, "")
        return other if other in ALSO.get(self.method, ()) else "auto"


def of_peers(setting: Setting, num_tasks: int) -> list[str]:
    """The methods that some peer's package has, by name; also where it is not installed."""
    model = mlp(num_tasks, widths=(4, 4, 4), batch=2)
    packages = [peer for peer in peers.wanted(setting) if peer.package is not None]

    def there(peer: peers.Peer, method: str) -> bool:
        try:
            return bool(peer.steps(method, model))
        except Exception:  # it has the method, and says here what it lacks
            return True

    return sorted(name for name in REGISTRY if any(there(peer, name) for peer in packages))
