"""The contest on the user's step: times, memory, and whether all compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from mtlfast.bench import allocations
from mtlfast.bench.case import Case, Samples, Variant, timed
from mtlfast.bench.mine.contestants import (
    ALONE,
    APPROXIMATE,
    EXACT,
    REUSED,
    Makers,
    Step,
    last_layer,
)
from mtlfast.bench.mine.state import State
from mtlfast.bench.mine.subject import Subject
from mtlfast.bench.rows import Row, row
from mtlfast.bench.runner import said
from mtlfast.bench.setting import Setting

__all__ = ["Contest", "differences"]


class Contest(Case):
    """Plain training and contestants in turn, each from the same state.

    Args:
        subject: the user's.
        state: where every step starts.
        makers: of the contestants.
        figure: of the ratios to plain training; the absolute times are in ``absolute``.

    Attributes:
        steps: those that run, by name; set by :meth:`prepare`.
    """

    passes = 1  # the model and where it lies in memory are the user's, the same in every pass

    def __init__(
        self, subject: Subject, state: State, makers: Makers, figure: str, absolute: str, name: str
    ) -> None:
        super().__init__()
        self.subject = subject
        self.state = state
        self.makers: Makers = {"joint": lambda: subject.joint, **makers}
        self.figure = figure
        self.absolute = absolute
        self.name = name
        self.steps: dict[str, Callable[[], None]] = {}

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Tries every contestant once."""
        del setting
        for name, make in self.makers.items():
            self._enter(name, make)
        return {name: partial(self._seconds, step) for name, step in self.steps.items()}

    def _enter(self, name: str, make: Callable[[], Step | Callable[[], None]]) -> None:
        try:
            step = make()
            self.state.restore()
            step()
        except Exception as error:
            self.missing[name] = said(error)
        else:
            self.steps[name] = step

    def _seconds(self, step: Callable[[], None]) -> float:
        self.state.restore()
        seconds = timed(step, self.subject.device)()
        return seconds / (step.count if isinstance(step, Step) else 1)

    def rows(self, samples: Samples) -> list[Row]:
        """Ratios to plain training within a round, and milliseconds."""
        ratios, times = [], []
        for name in self.makers:
            labels = {"contestant": name, "K": len(self.subject.names)}
            absolute = self.row(
                name,
                samples,
                (name,),
                lambda own: 1e3 * own,
                unit="ms",
                figure=self.absolute,
                labels=labels,
            )
            times.append(absolute)
            if name != "joint":
                ratio = self.row(
                    name,
                    samples,
                    ("joint", name),
                    lambda joint, own: own / joint,
                    detail=partial(self.note, name),
                    labels=labels,
                )
                ratios.append(ratio)
        return ratios + times

    def note(self, name: str) -> str:
        """What a reader should know of a contestant that runs."""
        step = self.steps.get(name)
        last = step.last if isinstance(step, Step) else None
        if last is None:
            return "no backward, no step" if name == ALONE else ""
        if name == "auto":
            return f"{last.engine}: {last.reason}"
        if name == "gramian_params":
            return f"approximate: {self.subject.name_of(last_layer(self.subject))}"
        return "approximate" if name in APPROXIMATE else ""

    def peaks(self) -> list[Row]:
        """The most memory that each step holds at once of what it has allocated."""
        found: list[Row] = []
        base: int | None = None
        for name, step in self.steps.items():
            if name == ALONE:
                continue
            self.state.restore()
            try:
                peak = allocations.peak(step, self.subject.device)
            except Exception as error:
                found.append(Row("mine/peak", f"{self.name}, {name}", "MB", detail=said(error)))
                continue
            base = peak if name == "joint" else base
            ratio = f"{peak / base:.2f} x joint" if base and name != "joint" else ""
            labels = {"contestant": name, "K": len(self.subject.names)}
            found.append(
                row(
                    "mine/peak",
                    f"{self.name}, {name}",
                    "MB",
                    peak / 1e6,
                    detail=ratio,
                    labels=labels,
                )
            )
        self.state.restore()
        return found


def differences(contest: Contest) -> list[Row]:
    """How far each contestant's gradients are from those of ``stored``, on one and the same graph.

    Of all parameters together, as a part of the norm of ``stored``'s; where that does not run, of
    the first exact engine that does.
    """
    steps = {
        name: step
        for name, step in contest.steps.items()
        if isinstance(step, Step) and step.optimizer is not None and name != REUSED
    }
    reference = next((name for name in EXACT if name in steps), None)
    if reference is None:
        return []
    contest.state.restore()
    losses, features = contest.subject.draw()
    wanted = steps[reference].gradients()(losses, features)
    norm = max(_norm(wanted), 1e-300)
    found = []
    for name, step in steps.items():
        if name == reference:
            continue
        case = f"{contest.name}, {name}"
        kind = "approximate" if name in APPROXIMATE else "exact"
        try:
            own = step.gradients()(losses, features)
        except Exception as error:
            found.append(Row("mine/exact", case, "", detail=said(error)))
            continue
        part = _norm([a.double() - b for a, b in zip(own, wanted, strict=True)]) / norm
        detail = f"of {reference}'s norm, {kind}"
        labels = {"contestant": name, "kind": kind}
        found.append(row("mine/exact", case, "", part, detail=detail, labels=labels))
    contest.subject.clear()
    return found


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
