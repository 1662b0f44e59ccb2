"""The tables of what the methods reach."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from benchmarks.marks import Results
from benchmarks.tables.base import fill, markdown
from mtlfast import jobs
from mtlfast.bench.rows import Row

__all__ = ["BURGERS", "MULTIDIGITS", "TWO_OBJECTIVES"]

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
TWO_OBJECTIVES = partial(
    _table, "two_objectives", {"distance to the Pareto set": "quality/two_objectives"}, -1
)
