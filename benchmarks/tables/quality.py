"""The tables of what the methods reach."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from benchmarks.marks import Results
from benchmarks.tables.base import fill, markdown
from mtlfast import jobs
from mtlfast.bench.rows import Row

__all__ = ["BURGERS", "MULTIDIGITS", "TWO_OBJECTIVES", "TWO_OBJECTIVES_CAGRAD"]

TASKS = jobs.TwoObjectives.tasks
SPREAD = '{quality "<key>" @mean .3f} ± {quality "<key>" @std .3f}'


def _table(job: str, columns: dict[str, str], best: int, results: Results) -> list[str]:
    """Mean ± standard deviation of each method, the best one first.

    Args:
        job: Its name.
        columns: By heading, the figure in quality.json.
        best: 1 where more is better, -1 where less is.
        results: The committed ones.
    """
    expected = jobs.get(job).expected
    first = f"quality/{job}"
    rows = [r for r in results.rows("quality", f"{first}/*") if r.p50 is not None]
    rows.sort(key=lambda r: -best * float(r.labels["mean"]))
    headings = list(columns)
    headings[1:1] = ["expected"] if expected else []
    lines = [["method", *headings]]
    for r in rows:
        cells = [_cell(f"{figure}/{r.case}", results) for figure in columns.values()]
        if expected:
            cells.insert(1, _expected(r, expected))
        lines.append([r.case, *cells])
    return markdown(lines)


def _cell(key: str, results: Results) -> str:
    """A single run has no standard deviation."""
    several = "std" in results.row("quality", key).labels
    return fill(SPREAD if several else SPREAD.partition(" ±")[0], {"key": key}, results)


def _expected(r: Row, expected: Mapping[str, tuple[float, float | None]]) -> str:
    """What another implementation gave."""
    found = expected.get(str(r.labels["method"]))
    if found is None:
        return ""
    mean, deviation = found
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def _starts(job: str, results: Results) -> list[str]:
    """How many starts each method arrived from, and its losses; the best one first."""
    figure = f"quality/{job}"
    rows = [r for r in results.rows("quality", f"{figure}/*") if r.p50 is not None]
    reached = {r.case: r.p50 or 0.0 for r in results.rows("quality", f"{figure}_reached/*")}
    rows.sort(key=lambda r: (-reached[r.case], float(r.labels["mean"])))
    lines = [["method", "starts", "distance to the Pareto set", "first loss", "second loss"]]
    for r in rows:
        keys = (f"{figure}/{r.case}", *(f"{figure}_losses/{r.case}, {k}" for k in TASKS))
        arrived = f"{reached[r.case]:.0f} of {r.runs}"
        lines.append([r.case, arrived, *(_cell(key, results) for key in keys)])
    return markdown(lines)


MULTIDIGITS = partial(
    _table,
    "multidigits",
    {
        "worst-task accuracy": "quality/multidigits",
        "mean accuracy": "quality/multidigits_mean",
    },
    1,
)
BURGERS = partial(_table, "burgers", {"relative L2 error": "quality/burgers"}, -1)
TWO_OBJECTIVES = partial(_starts, "two_objectives")
TWO_OBJECTIVES_CAGRAD = partial(_starts, "two_objectives_cagrad")
