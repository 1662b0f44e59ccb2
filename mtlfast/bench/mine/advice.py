"""From figures to words: which engine, whether to balance at all, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mtlfast.bench.mine.conflicts import STRONG, Conflicts
from mtlfast.bench.mine.contestants import APPROXIMATE, EVERY, EXACT, REUSED

__all__ = ["Advice", "Findings", "Price", "advise", "best_engine"]

IMBALANCE = 10.0  # the factor between lengths from which docs/which-method.md speaks of imbalance
OFTEN = 0.5  # of the batches, in which a pair's cosine is below STRONG
NOISE = 1.05  # what an engine must gain at least to be named instead of "auto"
DEAR = 1.5  # plain steps, from which cheaper ways are named
MANY = 12  # tasks, from which the losses alone are worth a try
SEES = {
    "gramian_params": "which compares the last shared layer alone",
    "features": "which compares the gradients of the features",
    REUSED: f"with weights up to {EVERY - 1} steps old",
}
PAGE = "docs/which-method.md"


class Price(NamedTuple):
    """A step in plain steps: the median, and what a fifth of the rounds is below and above."""

    p50: float
    p20: float
    p80: float


@dataclass(frozen=True)
class Findings:
    """What was measured.

    Attributes:
        conflicts: lengths and angles of the task gradients.
        times: of a step in plain steps, by engine or approximation.
        auto: the engine that "auto" took; empty where it did not run.
        peaks: MB, by contestant, "joint" among them.
        differences: from the exact gradients, as a part of their norm, by contestant.
        methods: of a step in plain steps, by method, on the best engine.
    """

    conflicts: Conflicts
    times: Mapping[str, Price]
    auto: str = ""
    peaks: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, float] = field(default_factory=dict)
    methods: Mapping[str, Price] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """A recommendation.

    Attributes:
        engine: the name to hand over.
        method: the name; "sum" where balancing is not worth its price.
        lines: the reasons, a paragraph each.
        code: the three lines to put in.
    """

    engine: str
    method: str
    lines: list[str]
    code: list[str]


def best_engine(times: Mapping[str, Price], auto: str) -> str:
    """The fastest exact engine; "auto" unless that is beyond the noise faster than it."""
    exact = {name: times[name] for name in EXACT if name in times}
    if not exact:
        return "auto"
    fastest = min(exact, key=lambda name: exact[name].p50)
    if auto not in EXACT or "auto" not in times:
        return fastest
    own, other = times["auto"], exact[fastest]
    is_slower = other.p50 * NOISE < own.p50 and other.p80 < own.p20
    return fastest if is_slower and auto != fastest else "auto"


def advise(found: Findings) -> Advice:
    """The recommendation and its reasons."""
    engine = best_engine(found.times, found.auto)
    method, reasons = _method(found, found.times.get(engine))
    lines = [*reasons, *_engine(found, engine), _unknown(found)]
    option = "" if engine == "auto" else f', engine="{engine}"'
    code = [
        f'optimizer = mtlfast.MultiTaskOptimizer(optimizer, "{method}"{option})',
        "losses = ...  # as your function makes them, not their sum",
        "optimizer.backward(losses)  # in place of the sum's backward, before optimizer.step()",
    ]
    return Advice(engine, method, lines, code)


def _method(found: Findings, price: Price | None) -> tuple[str, list[str]]:
    conflicts = found.conflicts
    ratio = conflicts.ratio
    often = [pair for pair in conflicts.pairs if conflicts.share(pair, STRONG) >= OFTEN]
    lengths = f"the lengths of the task gradients differ by a factor of {ratio:.3g}"
    cost = "" if price is None else f" of {price.p50:.2f} plain steps"
    lines = []
    if conflicts.dropped:
        lines.append(
            f"Look at plain training first: it was not finite in {conflicts.dropped} of "
            f"{conflicts.dropped + len(conflicts.losses)} batches. A method does not mend a "
            f"learning rate; what follows is of the other batches."
        )
    if conflicts.silent:
        lines.append(
            f"Look at {', '.join(conflicts.silent)} first: no gradient reaches the shared "
            f"parameters in half of the batches or more."
        )
    if ratio < IMBALANCE and not often:
        lines.append(
            f"Method: none is needed, equal weighting is likely enough: {lengths} (imbalance is "
            f"{IMBALANCE:g} and more) and no pair has a cosine below {STRONG} in {OFTEN:.0%} of "
            f'the batches. Any method that compares gradients has the price{cost}; "sum" costs '
            f"one backward and keeps the way open."
        )
        return "sum", lines
    if often:
        i, j = max(often, key=lambda pair: conflicts.share(pair, STRONG))
        share = conflicts.share((i, j), STRONG)
        against = (
            f"{conflicts.names[i]} and {conflicts.names[j]} have a cosine below {STRONG} in "
            f"{share:.0%} of the batches"
        )
    if ratio < IMBALANCE:
        lines.append(
            f"Method: cagrad. There is conflict between gradients of similar length: {against}, "
            f"and {lengths} only. CAGrad keeps near the average and helps the task that it harms "
            f"most; upgrad makes no task worse to first order; pcgrad and gradvac are the "
            f"classics.{_prices(found, 'cagrad', 'upgrad', 'pcgrad')}"
        )
        return "cagrad", lines
    if often:
        lines.append(
            f"Method: nash_mtl. There are both: {lengths}, and {against}. Balance the lengths "
            f"first. NashMTL's direction forgets them, and it is against no task; so is that of "
            f"config.{_prices(found, 'nash_mtl', 'config')} {_LENGTH}"
        )
        return "nash_mtl", lines
    scaled = _scaled_ratio(conflicts)
    if scaled is not None and scaled < IMBALANCE:
        lines.append(
            f"Method: si. There is imbalance without conflict: {lengths}, and by {scaled:.3g} only "
            f"once each is divided by its loss. So it is one of units, and the sum of the losses' "
            f"logarithms takes it away for one backward a step; so do constant weights that you "
            f"choose. Watch a loss that can reach zero. If that is not enough: nash_mtl, config."
            f"{_prices(found, 'si', 'famo', 'nash_mtl', 'config')}"
        )
        return "si", lines
    first = "" if len(conflicts.names) < MANY else " With so many tasks try famo before, for one."
    lines.append(
        f"Method: nash_mtl. There is imbalance without conflict: {lengths}, and the losses do not "
        f"tell it. NashMTL's direction forgets the lengths; so does that of config.{first}"
        f"{_prices(found, 'famo', 'nash_mtl', 'config')} {_LENGTH}"
    )
    return "nash_mtl", lines


_LENGTH = "NashMTL's steps have length 1: under SGD choose the learning rate anew."


def _scaled_ratio(conflicts: Conflicts) -> float | None:
    """The ratio of the lengths of the losses' logarithms; None where a loss is not positive."""
    if not bool((conflicts.losses > 0).all()):
        return None
    lengths = (conflicts.norms / conflicts.losses).median(0).values
    lengths = lengths[lengths > 0]
    return float(lengths.max() / lengths.min()) if len(lengths) else None


def _prices(found: Findings, *names: str) -> str:
    known = [f"{name} {found.methods[name].p50:.2f}" for name in names if name in found.methods]
    return f" Measured, in plain steps: {', '.join(known)}." if known else ""


def _engine(found: Findings, engine: str) -> list[str]:
    if engine not in found.times:
        return ["Engine: no exact one runs here; the reasons are in the table."]
    own = found.times[engine].p50
    if engine == "auto":
        text = (
            f"Engine: auto, {own:.2f} plain steps. It takes {found.auto}; no other exact engine "
            f"is faster beyond the noise."
        )
    else:
        text = f"Engine: {engine}, {own:.2f} plain steps, the fastest exact one."
        if "auto" in found.times:
            text += f" auto takes {found.auto}, for {found.times['auto'].p50:.2f}."
    return [text, *_memory(found, engine), *_cheaper(found, own)]


def _memory(found: Findings, engine: str) -> list[str]:
    peaks, joint = found.peaks, found.peaks.get("joint")
    if not joint or engine not in peaks:
        return []
    text = f"Memory: its peak is {peaks[engine] / joint:.2f} times that of a plain step"
    leaner = [name for name in EXACT if name in peaks and name in found.times]
    leanest = min(leaner, key=lambda name: peaks[name], default=engine)
    if peaks[leanest] < 0.9 * peaks[engine]:
        text += (
            f"; {leanest}'s is {peaks[leanest] / joint:.2f}, for "
            f"{found.times[leanest].p50:.2f} plain steps"
        )
    return [f"{text}."]


def _cheaper(found: Findings, own: float) -> list[str]:
    ways = [
        name
        for name in APPROXIMATE
        if name in found.times and name != "sketched" and found.times[name].p50 < 0.9 * own
    ]
    if own < DEAR or not ways:
        return []
    told = [
        f"{name if '=' in name else f'{name}='}, {SEES[name]}, for {found.times[name].p50:.2f} "
        f"plain steps{_differs(found, name)}"
        for name in ways
    ]
    return [f"Cheaper, by looking at less: {'; '.join(told)}."]


def _differs(found: Findings, name: str) -> str:
    if name not in found.differences:
        return ""
    part = f"{found.differences[name]:.2g} of its length"
    return f" (on one batch UPGrad's step differs from the exact one by {part})"


def _unknown(found: Findings) -> str:
    return (
        f"Not known from this: what any method does to your accuracy, which only training runs "
        f"tell (several seeds, against tuned constant weights); how lengths and angles are after "
        f"these {len(found.conflicts.losses)} batches; and times on another machine. The limits "
        f"({IMBALANCE:g}, {STRONG}, {OFTEN:.0%}) are rules of thumb. What each method assumes: "
        f"{PAGE}."
    )
