"""How everything here is measured: all contestants in turn, round after round, pass after pass."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from mtlfast.bench.case import Case, Variant
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting

__all__ = ["Progress", "Silent", "measure", "said", "visit"]

LEAST_ROUNDS = 2  # of a pass, however little time is left


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


def measure(cases: Sequence[Case], setting: Setting, progress: Progress) -> list[Row]:
    """Runs all cases and returns their rows, in order.

    Memory bandwidth and load of a machine drift by a factor of two within seconds: only samples of
    one round are comparable, so ratios are formed per round before their median is taken. What
    drifts within minutes, and where in memory the data came to lie, differs from pass to pass.
    """
    plan = [
        (turn, case)
        for turn in range(setting.passes)
        for case in cases
        if case.passes is None or turn < case.passes
    ]
    progress.expect(len(plan))
    samples: dict[int, dict[str, list[float]]] = {id(case): {} for case in cases}
    end = math.inf if setting.budget is None else time.monotonic() + setting.budget
    for done, (turn, case) in enumerate(plan):
        progress.step(f"{case.figure}: {case.name}")
        passes = min(setting.passes, case.passes or setting.passes)
        rounds = math.ceil(case.rounds / passes)
        seconds = (end - time.monotonic()) / (len(plan) - done)
        found = visit(case, setting, rounds, seconds)
        _collect(samples[id(case)], found, first=turn == 0)
    return [
        row
        for case in cases
        for row in case.rows({name: np.array(s) for name, s in samples[id(case)].items()})
    ]


def _collect(into: dict[str, list[float]], found: dict[str, list[float]], *, first: bool) -> None:
    """Appends a pass; a variant that is not in all passes would have no partners: it goes."""
    if first:
        into.update(found)
        return
    for name in list(into):
        if name in found:
            into[name] += found[name]
        else:
            del into[name]


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
            sample = variants[name]()
        except Exception as error:
            case.missing[name] = said(error)
            del variants[name]
            continue
        if found is not None:
            found[name].append(sample)


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
