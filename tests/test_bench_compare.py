"""What ``mtlfast bench --compare`` says of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mtlfast.bench import compare
from mtlfast.bench.rows import Report, Row

FLOOR = Row("kernels/floor", "K = 4", "x", 1.30, 1.25, 1.35, 40)
PEER = Row("kernels/peers", "PCGrad, default", "x", 3.0, 2.8, 3.2, 40, versus="TorchJD")
TIME = Row("step/ms", "MLP", "ms", 10.0, 9.9, 10.1, 8)
ACCURACY = Row("quality/multidigits", "cagrad", "accuracy", 0.95, 0.94, 0.96, 5)
MEMORY = Row("memory/peak", "MLP, stored", "MB", 100.0, 100.0, 100.0, 1)
ROWS = (FLOOR, PEER, TIME, ACCURACY, MEMORY)


def scaled(r: Row, factor: float) -> Row:
    assert r.p50 is not None
    assert r.p20 is not None
    assert r.p80 is not None
    return replace(r, p50=factor * r.p50, p20=factor * r.p20, p80=factor * r.p80)


def described(old: Sequence[Row], new: Sequence[Row]) -> list[str]:
    return compare.describe(Report(rows=list(old)), Report(rows=list(new)))


def section(lines: Sequence[str], title: str) -> list[str]:
    """The indented lines below the one that begins with a title."""
    start = next((i for i, line in enumerate(lines) if line.startswith(title)), None)
    if start is None:
        return []
    found = []
    for line in lines[start + 1 :]:
        if not line.startswith("  "):
            break
        found.append(line.strip())
    return found


def keys(lines: Sequence[str], title: str) -> list[str]:
    return [line.split("  ")[0].split(": ")[0] for line in section(lines, title)]


def test_the_same_run_agrees_with_itself() -> None:
    lines = described(ROWS, ROWS)
    assert lines == [
        "same machine, versions and setting",
        "",
        "nothing moved beyond the noise",
        "",
        "2 of 2 ratios agree within 10%",
    ]


@pytest.mark.parametrize(
    ("row", "factor", "title"),
    [
        (FLOOR, 1.2, "worse"),
        (FLOOR, 0.8, "better"),
        (PEER, 1.2, "better"),
        (PEER, 0.8, "worse"),
        (TIME, 1.2, "worse"),
        (TIME, 0.8, "better"),
        (MEMORY, 1.2, "worse"),
        (ACCURACY, 0.8, "other"),
        (replace(TIME, at_least=True, target=3.0), 1.2, "better"),
        (replace(TIME, unit="GB/s"), 1.2, "better"),
    ],
)
def test_the_direction_is_that_of_the_unit(row: Row, factor: float, title: str) -> None:
    lines = described([row], [scaled(row, factor)])
    assert keys(lines, title) == [row.key]
    for other in {"worse", "better", "other"} - {title}:
        assert keys(lines, other) == []
    change = f"{factor - 1:+.0%}"
    assert change in section(lines, title)[0]


def test_a_difference_within_the_spreads_is_noise() -> None:
    wide = replace(TIME, p20=8.0, p80=14.0)
    assert "nothing moved beyond the noise" in described([wide], [scaled(wide, 1.3)])


def test_a_difference_of_less_than_five_percent_is_noise() -> None:
    sharp = replace(TIME, p20=10.0, p80=10.0)
    assert "nothing moved beyond the noise" in described([sharp], [scaled(sharp, 1.049)])
    assert keys(described([sharp], [scaled(sharp, 1.06)]), "worse") == [TIME.key]


def test_the_largest_change_comes_first() -> None:
    other = replace(TIME, case="CNN")
    lines = described([TIME, other], [scaled(TIME, 1.2), scaled(other, 1.5)])
    assert keys(lines, "worse") == [other.key, TIME.key]


def test_rows_that_come_go_and_fail_are_named() -> None:
    gone, new = replace(TIME, case="gone"), replace(TIME, case="new")
    failed = replace(PEER, p50=None, p20=None, p80=None, runs=0, detail="RuntimeError: no")
    lines = described([FLOOR, gone, PEER], [FLOOR, new, failed])
    assert keys(lines, "new rows") == [new.key]
    assert keys(lines, "rows that are gone") == [gone.key]
    assert section(lines, "no longer measured") == [f"{PEER.key}: RuntimeError: no"]
    back = described([failed], [PEER])
    assert keys(back, "measured now") == [PEER.key]


def test_what_surrounds_the_runs_comes_first() -> None:
    old = Report(
        {"commit": "aaa", "cpu": "A", "date": "1", "peers": {"torchjd": "0.18.0", "x": None}},
        {"threads": 1, "tasks": (2, 4)},
        rows=[TIME],
    )
    new = Report(
        {"commit": "bbb", "cpu": "A", "date": "2", "peers": {"torchjd": "0.19.0", "x": None}},
        {"threads": 2, "tasks": [2, 4]},  # as a file gives it back
        rows=[TIME],
    )
    lines = compare.describe(old, new)
    assert lines[0] == "not the same:"
    assert section(lines, "not the same") == [
        "commit: aaa -> bbb",
        "peers.torchjd: 0.18.0 -> 0.19.0",
        "threads: 1 -> 2",
    ]


def test_the_summary_counts_ratios_alone() -> None:
    lines = described(ROWS, [scaled(FLOOR, 1.09), scaled(PEER, 0.8), scaled(TIME, 2.0)])
    assert "1 of 2 ratios agree within 10%" in lines
    assert keys(lines, "those that do not") == [PEER.key]


def test_keys_of_several_rows_are_named() -> None:
    lines = described([TIME, TIME, FLOOR], [TIME, FLOOR])
    assert section(lines, "keys of several rows of the old") == [TIME.key]
    assert section(lines, "keys of several rows of the new") == []


def test_no_rows_at_all() -> None:
    assert described([], [])[-1] == "no ratios to compare"
