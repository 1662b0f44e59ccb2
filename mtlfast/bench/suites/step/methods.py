"""Each method that a peer has: its training step over ours."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np

from mtlfast.bench import peers
from mtlfast.bench.case import Samples, Variant
from mtlfast.bench.contestants import Make, ModelCase
from mtlfast.bench.models import mlp
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.steps import meetings
from mtlfast.bench.workloads import relative_difference
from mtlfast.weighting import REGISTRY

__all__ = ["FEW", "FIGURES", "Method", "of_peers"]

FIGURES = {
    "step/methods": "time of a peer's training step over ours, by method",
    "step/methods-ms": "training steps by method, one alone",
}

FEW = ("cagrad", "mgda", "nash_mtl")
OURS = ("auto", "stored")


class Method(ModelCase):
    """One method: ours by "auto" and "stored", and every peer that has it."""

    figure = "step/methods"
    rounds = 5
    passes = 1
    warmup = 0

    def __init__(self, method: str, model: str, num_tasks: int, make: Make | None = None) -> None:
        super().__init__(model, num_tasks, make, method)
        self.name = f"{self.name}, {method}"
        self.differences: dict[str, float] = {}

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """All of them; their second steps' gradients are compared."""
        field = self.field(setting, {*OURS, *(peer.name for peer in peers.wanted(setting))})
        order = meetings(self.num_tasks)
        expected = field.steps["stored"].gradients(order)
        for name, step in field.steps.items():
            if name in field.modes:
                found = step.gradients(order)
                self.differences[name] = relative_difference(iter(found), iter(expected))
        return {name: step.seconds for name, step in field.steps.items()}

    def rows(self, samples: Samples) -> list[Row]:
        """Every mode over "auto", the best one also over "stored", and milliseconds."""
        ms = {n: statistics.median(seconds) * 1e3 for n, seconds in samples.items()}

        def said(name: str, engine: str) -> str:
            times = f"{ms[name]:.4g} ms against {ms.get(engine, np.nan):.4g}"
            return f"{times}; gradients differ by {self.differences[name]:.0e}"

        found = [
            *self.versus(samples, self.figure, detail=lambda n: said(n, "auto")),
            *self.versus(
                samples, self.figure, "stored", each=False, detail=lambda n: said(n, "stored")
            ),
        ]
        for name in ("joint", *self.contestants):
            engine = self.engines.get(name, "").removeprefix(", ")
            found.append(self.milliseconds(name, samples, "step/methods-ms", engine))
        return found


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
