"""How everything here is measured: all contestants in turn, round after round, pass after pass."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mtlfast.bench.case import Case, Variant
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting

__all__ = ["Progress", "Silent", "measure", "said", "visit"]

LEAST_ROUNDS = 2  # of a pass, however little time is left
NORMAL = 0.6745  # median absolute deviation of a standard normal variable
CALLS = 8  # of a turn, at most
SURE = 0.025  # relative standard error of a ratio; two runs are then seldom 10 % apart
MOST = 3  # times the passes that were asked for
MORE = 0.2  # of the time that those took, for the cases that are unsure


class Progress(Protocol):
    """Is told how far a run is."""

    def expect(self, count: int) -> None:
        """So many more steps will come."""

    def step(self, doing: str) -> None:
        """The next one begins."""


class Silent:
    """Tells nobody."""

    def expect(self, count: int) -> None:
        """Nothing."""

    def step(self, doing: str) -> None:
        """Nothing."""


@dataclass
class _Visited:
    """A case, and what its passes found so far."""

    case: Case
    least: int
    passes: list[dict[str, list[float]]] = field(default_factory=list)
    seconds: float = 0.0
    """The last pass took."""

    def go(self, setting: Setting, seconds: float = math.inf) -> None:
        """One more pass."""
        start = time.monotonic()
        rounds = math.ceil(self.case.rounds / self.least)
        self.passes.append(visit(self.case, setting, rounds, seconds))
        self.seconds = time.monotonic() - start

    def rows(self) -> list[Row]:
        """Of the samples of all passes; a variant that is not in all of them has no partners."""
        in_all = [n for n in self.passes[0] if all(n in found for found in self.passes)]
        samples = {n: np.concatenate([found[n] for found in self.passes]) for n in in_all}
        errors = self.errors()
        return [replace(r, error=errors.get(r.key)) for r in self.case.rows(samples)]

    def errors(self) -> dict[str, float]:
        """Relative standard errors of the ratios by key, from their scatter between passes."""
        if len(self.passes) < 2:
            return {}
        medians: dict[str, list[float]] = {}
        for found in self.passes:
            for r in self.case.rows({name: np.array(s) for name, s in found.items()}):
                if r.unit == "x" and r.p50:
                    medians.setdefault(r.key, []).append(r.p50)
        in_all = {k: np.array(v) for k, v in medians.items() if len(v) == len(self.passes)}
        return {key: _relative_error(values) for key, values in in_all.items()}


def _relative_error(values: NDArray[np.float64]) -> float:
    """Of their median; by the median deviation, since the first pass is often an outlier."""
    middle = np.median(values)
    deviation = np.median(np.abs(values - middle)) / NORMAL
    return float(deviation / abs(middle) / math.sqrt(len(values)))


def measure(cases: Sequence[Case], setting: Setting, progress: Progress) -> list[Row]:
    """Runs all cases and returns their rows, in order.

    Memory bandwidth and load of a machine drift by a factor of two within seconds: only samples of
    one round are comparable, so ratios are formed per round before their median is taken. What
    drifts within minutes, and where in memory the data came to lie, differs from pass to pass:
    cases whose ratios do so by more than :data:`SURE` are visited again.
    """
    visited = [_Visited(case, min(setting.passes, case.passes or setting.passes)) for case in cases]
    plan = [one for turn in range(setting.passes) for one in visited if turn < one.least]
    progress.expect(len(plan))
    start = time.monotonic()
    end = math.inf if setting.budget is None else start + setting.budget
    for done, one in enumerate(plan):
        progress.step(f"{one.case.figure}: {one.case.name}")
        one.go(setting, (end - time.monotonic()) / (len(plan) - done))
    if setting.budget is None:
        end = time.monotonic() + MORE * (time.monotonic() - start)
    _visit_again(visited, setting, progress, end)
    return [row for one in visited for row in one.rows()]


def _visit_again(
    visited: Sequence[_Visited], setting: Setting, progress: Progress, end: float
) -> None:
    """The case with the least sure ratio, again and again until all are sure or time is over."""
    worst = {id(one): max(one.errors().values(), default=0.0) for one in visited}
    while True:
        unsure = [
            one
            for one in visited
            if one.case.passes is None
            and worst[id(one)] > SURE
            and len(one.passes) < MOST * one.least
            and time.monotonic() + one.seconds <= end
        ]
        if not unsure:
            return
        one = max(unsure, key=lambda one: worst[id(one)])
        progress.expect(1)
        progress.step(f"{one.case.figure}: {one.case.name}, again")
        one.go(setting, end - time.monotonic())
        worst[id(one)] = max(one.errors().values(), default=0.0)


def visit(
    case: Case,
    setting: Setting,
    rounds: int,
    seconds: float = math.inf,
    repeat: Callable[[Callable[[], None], int], object] | None = None,
) -> dict[str, list[float]]:
    """One pass of a case: as many rounds, or those that fit into the time, but at least two.

    Args:
        case: What is measured.
        setting: Of the run.
        rounds: How many are wanted.
        seconds: What the pass may take.
        repeat: Calls a round so often, in place of the loop here.

    Returns:
        The samples of the variants that went through all rounds.
    """
    start = time.monotonic()
    with _threads(case.threads or setting.threads), _no_collection():
        try:
            variants = dict(case.prepare(setting))
        except Exception as error:
            case.missing[""] = said(error)
            return {}
        found: dict[str, list[float]] = {name: [] for name in variants}
        duration = 0.0
        for _ in range(case.warmup):
            began = time.monotonic()
            _round(case, variants, None)
            duration = time.monotonic() - began
        if duration > 0 and math.isfinite(seconds):
            left = seconds - (time.monotonic() - start)
            rounds = min(rounds, max(LEAST_ROUNDS, int(left / duration)))
        busy, own, wall = _busy_seconds(), time.process_time(), time.perf_counter()
        if repeat is not None:
            repeat(partial(_round, case, variants, found), rounds)
            rounds = 0
        for done in range(rounds):
            if done >= LEAST_ROUNDS and time.monotonic() - start > seconds:
                break
            _round(case, variants, found)
        own, wall = time.process_time() - own, time.perf_counter() - wall
        used = (_busy_seconds() - busy - own) / max(wall, 1e-9)
        if wall > 0.5:  # the system counts in hundredths of a second
            case.others = max(case.others, used)
        return {name: found[name] for name in variants}


def _round(case: Case, variants: dict[str, Variant], found: dict[str, list[float]] | None) -> None:
    for name in list(variants):
        try:
            sample = _turn(variants[name], case.turn)
        except Exception as error:
            case.missing[name] = said(error)
            del variants[name]
            continue
        if found is not None:
            found[name].append(sample)


def _turn(variant: Variant, seconds: float) -> float:
    """The median of as many calls as fill the time, but of :data:`CALLS` at most."""
    calls = [variant()]
    while sum(calls) < seconds and len(calls) < CALLS:
        calls.append(variant())
    return statistics.median(calls)


def said(error: BaseException, limit: int = 120) -> str:
    """An error in one short line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collects garbage now, and not while something is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _busy_seconds() -> float:
    """CPU seconds that the whole machine has spent; 0 where that is not known."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0
    return (sum(fields) - fields[3] - fields[4]) / 100  # without idle and waiting for a disk
