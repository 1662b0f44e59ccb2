"""Cases of a whole training step: what is left of a field of contestants once it is gone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from mtlfast.bench import peers
from mtlfast.bench.case import Case, Samples
from mtlfast.bench.models import MODELS, EngineModel
from mtlfast.bench.rows import Label, Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.steps import BARE, Field

__all__ = ["Make", "ModelCase"]

Make = Callable[[int], EngineModel]
"""From K to a model."""


class ModelCase(Case):
    """A case about training steps on one model.

    Args:
        model: Its name.
        num_tasks: K.
        make: Makes it; default: the one of this name in ``models.MODELS``.
        method: Name of the method of all contestants.

    Attributes:
        contestants: All but joint training, also those that are missing.
        modes: The name of the peer, by its contestants.
        differs: What a peer computes that ours does not, by its contestants.
        engines: What ours says of its engine, by contestant.
        elements: P.
        largest_layer: See :meth:`EngineModel.largest_layer`.
        last_block: The contestant that compares the gradients of the trunk's end.
        turns: How many fields there were.
    """

    def __init__(
        self, model: str, num_tasks: int, make: Make | None = None, method: str = "pcgrad"
    ) -> None:
        super().__init__()
        self.model = model
        self.num_tasks = num_tasks
        self.make = MODELS[model] if make is None else make
        self.method = method
        self.name = f"{model}, K = {num_tasks}"
        self.contestants: list[str] = []
        self.modes: dict[str, str] = {}
        self.differs: dict[str, str] = {}
        self.engines: dict[str, str] = {}
        self.elements = self.largest_layer = self.turns = 0
        self.last_block = ""

    def build(self, setting: Setting) -> EngineModel:
        """The model with a new batch."""
        model = self.make(self.num_tasks).to(setting.device, setting.dtype)
        model.draw(self.turns)
        self.turns += 1
        self.elements, self.largest_layer = model.shared_elements(), model.largest_layer()
        self.last_block = f"gramian_params, {next(iter(model.last_blocks))}"
        return model

    def field(
        self,
        setting: Setting,
        wanted: Collection[str] | None = None,
        among: Callable[[str], object] = str,
    ) -> Field:
        """The contestants on a new model; of the peers, those whose name ``among`` wants."""
        there = {peer.name: peer for peer in peers.wanted(setting) if among(peer.name)}
        field = Field(self.build(setting), list(there.values()), self.method, wanted)
        self.missing |= field.missing
        self.contestants, self.modes = field.contestants, field.modes
        self.differs = {
            name: there[peer].difference(self.method, self.mode(name))
            for name, peer in self.modes.items()
        }
        self.engines = {name: field.engine(name) for name in field.steps}
        return field

    def mode(self, contestant: str) -> str:
        """Of a peer."""
        return contestant.removeprefix(self.modes[contestant]).removeprefix(", ")

    def labels(self, contestant: str = "", **more: Label) -> dict[str, Label]:
        """Of a row about this contestant."""
        found: dict[str, Label] = {
            "model": self.model,
            "K": self.num_tasks,
            "P": self.elements,
            "method": self.method,
        }
        if contestant in self.modes:
            found |= {"contestant": self.modes[contestant], "mode": self.mode(contestant)}
        elif contestant in BARE:
            found["contestant"] = contestant
        elif contestant:
            found |= {"contestant": "mtlfast", "engine": contestant}
        return {**found, **more}

    def milliseconds(
        self,
        name: str,
        samples: Samples,
        figure: str,
        detail: str = "",
        labels: Mapping[str, Label] | None = None,
    ) -> Row:
        """The row of a variant's own time; labels: those of a contestant, unless given."""
        return self.row(
            name,
            samples,
            (name,),
            lambda seconds: seconds * 1e3,
            unit="ms",
            figure=figure,
            detail=detail,
            labels=self.labels(name) if labels is None else labels,
        )

    def versus(
        self,
        samples: Samples,
        figure: str,
        ours: str = "auto",
        *,
        each: bool = True,
        among: Callable[[str], object] = str,
        detail: Callable[[str], str] = str,
        targets: Mapping[str, float] | None = None,
    ) -> list[Row]:
        """Rows of every peer over one of ours: each mode, and the one of the least median.

        Args:
            samples: As of :meth:`rows`.
            figure: Of the rows.
            ours: The contestant of ours.
            each: Whether the modes have rows, beside the best one.
            among: Which of the peers' contestants are meant.
            detail: What to say of a peer's contestant that was measured; default: its name.
            targets: Lower bounds for the best modes, by peer.
        """
        found: list[Row] = []
        meant = [n for n in self.contestants if n in self.modes and among(n)]
        for peer in dict.fromkeys(self.modes[n] for n in meant):
            names = [n for n in meant if self.modes[n] == peer]
            measured = [n for n in names if n in samples]
            best = min(measured, key=lambda n: float(np.median(samples[n])), default=names[0])
            shown = [(n, n, self.mode(n)) for n in names] if each else []
            shown.append((best, f"best mode of {peer}", "best"))
            for name, label, mode in shown:
                more: dict[str, Any] = {}
                if mode == "best" and targets and peer in targets:
                    more = {"target": targets[peer], "at_least": True}
                notes = [detail(name), self.differs.get(name, "")] if name in samples else []
                if mode == "best" and measured:
                    notes.insert(0, self.mode(best))
                found.append(
                    self.row(
                        f"{label} / {ours}",
                        samples,
                        (name, ours),
                        np.divide,
                        figure=figure,
                        versus=peer,
                        detail="; ".join(note for note in notes if note),
                        labels=self.labels(name, mode=mode, engine=ours),
                        **more,
                    )
                )
        return found
