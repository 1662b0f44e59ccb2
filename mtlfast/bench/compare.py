"""What moved beyond the noise between two runs of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtlfast.bench.digits import three
from mtlfast.bench.rows import Report, Row

__all__ = ["AGREE", "MOVED", "describe", "direction"]

MOVED = 0.05
"""Medians that differ by less have not moved, however small their spreads are."""

AGREE = 0.10
"""Ratios whose medians differ by no more agree."""

SMALLER = ("x", "joint", "ns", "us", "ms", "s", "bytes", "KB", "MB", "GB", "KP")
"""Units of which less is better, unless the row says otherwise."""

LARGER = ("MB/s", "GB/s", "TB/s")

UNINTERESTING = ("date", "load_average", "modified", "extension", "reason")
"""Entries of the environment that differ from run to run, or follow from the commit."""


def describe(old: Report, new: Report) -> list[str]:
    """Lines of text: what differs around the runs, what moved, what came and went, and a summary.

    A row moved if its intervals from p20 to p80 do not overlap and its medians differ by more than
    :data:`MOVED`. A row of a single run has a median alone.

    Args:
        old: Of the earlier run.
        new: Of the later run.
    """
    before, after = _by_key(old), _by_key(new)
    both = [(before[key], after[key]) for key in after if key in before]
    lines = [
        *_environments(old, new),
        *_moved(both),
        *_section("new rows", [r.key for key, r in after.items() if key not in before]),
        *_section("rows that are gone", [r.key for key, r in before.items() if key not in after]),
        *_section("no longer measured", _lost(both)),
        *_section("measured now", [b.key for a, b in both if a.p50 is None and b.p50 is not None]),
        *_repeated(old, "old"),
        *_repeated(new, "new"),
        *_summary(both),
    ]
    return lines[1:] if lines and not lines[0] else lines


def direction(r: Row) -> int:
    """What is better of this row's number: 1 for more, -1 for less, 0 where nobody can say."""
    if r.versus or r.at_least or r.unit in LARGER:
        return 1
    return -1 if r.unit in SMALLER else 0


def _by_key(report: Report) -> dict[str, Row]:
    """The rows by key, the first one where several have the same."""
    found: dict[str, Row] = {}
    for r in report.rows:
        found.setdefault(r.key, r)
    return found


def _environments(old: Report, new: Report) -> Iterator[str]:
    found = {
        **_differences(_flat(old.environment), _flat(new.environment)),
        **_differences(_flat(old.setting), _flat(new.setting)),
    }
    if not found:
        yield "same machine, versions and setting"
        return
    yield "not the same:"
    for name, (before, after) in found.items():
        yield f"  {name}: {before} -> {after}"


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of entries as ``peers.torchjd``."""
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if name in UNINTERESTING:
            continue
        if isinstance(value, Mapping):
            flat |= {f"{name}.{part}": one for part, one in value.items()}
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    names = dict.fromkeys([*before, *after])
    return {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }


def _moved(both: Sequence[tuple[Row, Row]]) -> Iterator[str]:
    moved = [(a, b) for a, b in both if _has_moved(a, b)]
    if not moved:
        yield from ("", "nothing moved beyond the noise")
        return
    words = {-1: "smaller is better", 0: "neither is better", 1: "larger is better"}
    for name, wanted in (("worse", -1), ("better", 1), ("other", 0)):
        rows = [(a, b) for a, b in moved if _judge(a, b) == wanted]
        if not rows:
            continue
        yield from ("", f"{name}, {len(rows)} of {len(both)}:")
        width = max(len(b.key) for _, b in rows)
        for a, b in sorted(rows, key=lambda pair: -abs(_change(*pair) - 1.0)):
            percent = f"{_change(a, b) - 1.0:+.0%}"
            yield (
                f"  {b.key:<{width}}  {_said(a)} -> {_said(b)} {b.unit}, {percent}"
                f" ({words[direction(b)]})"
            )


def _has_moved(a: Row, b: Row) -> bool:
    if a.p50 is None or b.p50 is None or a.unit != b.unit:
        return False
    if abs(b.p50 - a.p50) <= MOVED * abs(a.p50):
        return False
    (low, high), (lower, upper) = _interval(a), _interval(b)
    return high < lower or upper < low


def _interval(r: Row) -> tuple[float, float]:
    assert r.p50 is not None
    return r.p50 if r.p20 is None else r.p20, r.p50 if r.p80 is None else r.p80


def _change(a: Row, b: Row) -> float:
    """New over old; infinite where there was nothing."""
    assert a.p50 is not None
    assert b.p50 is not None
    return b.p50 / a.p50 if a.p50 else float("inf")


def _judge(a: Row, b: Row) -> int:
    assert a.p50 is not None
    assert b.p50 is not None
    return direction(b) * (1 if b.p50 > a.p50 else -1)


def _said(r: Row) -> str:
    assert r.p50 is not None
    if r.runs < 2:
        return three(r.p50)
    low, high = _interval(r)
    return f"{three(r.p50)} [{three(low)}, {three(high)}]"


def _lost(both: Sequence[tuple[Row, Row]]) -> list[str]:
    return [f"{b.key}: {b.detail}" for a, b in both if a.p50 is not None and b.p50 is None]


def _section(title: str, entries: Sequence[str]) -> Iterator[str]:
    if entries:
        yield from ("", f"{title}, {len(entries)}:")
        yield from (f"  {entry}" for entry in entries)


def _repeated(report: Report, which: str) -> Iterator[str]:
    keys = [r.key for r in report.rows]
    repeated = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    yield from _section(f"keys of several rows of the {which} results, the first counts", repeated)


def _summary(both: Sequence[tuple[Row, Row]]) -> Iterator[str]:
    """How many ratios agree, and which do not."""
    ratios = [(a, b) for a, b in both if a.unit == b.unit == "x" and a.p50 and b.p50 is not None]
    if not ratios:
        yield from ("", "no ratios to compare")
        return
    apart = [(a, b) for a, b in ratios if abs(_change(a, b) - 1.0) > AGREE]
    agree = len(ratios) - len(apart)
    yield from ("", f"{agree} of {len(ratios)} ratios agree within {AGREE:.0%}")
    if apart:
        yield "those that do not:"
        for a, b in apart:
            yield f"  {b.key}  {_said(a)} -> {_said(b)}, {_change(a, b) - 1.0:+.0%}"
