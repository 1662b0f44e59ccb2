"""What all plots share: looks, the footer, and the digest of the rows that a picture shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from mtlfast.bench.rows import Label, Report, Row
from mtlfast.demo.figure import COLOURS, STYLE

__all__ = [
    "AHEAD",
    "BEHIND",
    "COLOURS",
    "GREY",
    "STYLE",
    "Plot",
    "blank",
    "contestant",
    "digest",
    "digest_of",
    "log_axis",
    "measured",
    "save",
    "spread",
    "words",
]

AHEAD, BEHIND, GREY = "#0072B2", "#D55E00", "#777777"
DIGEST = "mtlfast rows"
"""Name of the PNG's text that holds the digest."""

DPI = 150


@dataclass(frozen=True)
class Plot:
    """A picture of some of a report's rows.

    Attributes:
        name: Of its file, without ``.png``.
        rows: Those that it shows; none where there is nothing to draw.
        draw: Makes the figure of these rows; the report names the peers' versions.
    """

    name: str
    rows: Callable[[Report], list[Row]]
    draw: Callable[[Sequence[Row], Report], Figure]


def blank(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, in the common style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08))
        FigureCanvasAgg(figure)
        return figure


def save(figure: Figure, path: Path, rows: Sequence[Row], report: Report) -> None:
    """Adds the footer and writes the PNG with the digest of its rows.

    Raises:
        OSError: The file cannot be written.
    """
    figure.supxlabel(footer(report), fontsize=7.5, color=GREY, x=0.99, ha="right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={DIGEST: digest(rows)})


def footer(report: Report) -> str:
    """Machine, versions, commit and date in one line."""
    found = report.environment
    threads = report.setting.get("threads") or found.get("threads")
    words = [
        found.get("gpu") if report.setting.get("device") == "cuda" else found.get("cpu"),
        f"{threads} thread{'s' * (threads != 1)}" if threads else None,
        found.get("isa"),
        f"torch {found['torch']}" if found.get("torch") else None,
        f"commit {found['commit'][:10]}{', modified' * bool(found.get('modified'))}"
        if found.get("commit")
        else None,
        str(found.get("date", ""))[:10],
    ]
    return " · ".join(str(word) for word in words if word)


def digest(rows: Sequence[Row]) -> str:
    """Of everything in these rows that a picture may show."""
    shown = [
        [r.key, r.unit, r.p50, r.p20, r.p80, r.target, r.versus, dict(sorted(r.labels.items()))]
        for r in rows
    ]
    text = json.dumps(shown, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(path: Path) -> str | None:
    """The digest that a picture carries, None where it carries none.

    Raises:
        OSError: The file cannot be read.
    """
    with Image.open(path) as image:
        found = image.info.get(DIGEST)
    return found if isinstance(found, str) else None


def measured(rows: Sequence[Row], *labels: str) -> list[Row]:
    """The rows that have a number and these labels."""
    return [r for r in rows if r.p50 is not None and all(name in r.labels for name in labels)]


def spread(rows: Sequence[Row]) -> tuple[list[float], list[float], list[float]]:
    """Medians, 20th and 80th percentiles; a median stands in for percentiles that are not there."""
    medians = [_number(r.p50) for r in rows]
    low = [m if r.p20 is None else r.p20 for r, m in zip(rows, medians, strict=True)]
    high = [m if r.p80 is None else r.p80 for r, m in zip(rows, medians, strict=True)]
    return medians, low, high


def log_axis(axes: Axes, axis: Axis, *, base: float = 10.0) -> None:
    """Makes an axis logarithmic, with ticks that read as plain numbers.

    Args:
        axes: The panel.
        axis: One of its two.
        base: 2 for ticks at powers of two; 10 for as many in a decade as there is room for.
    """
    (axes.set_yscale if axis is axes.yaxis else axes.set_xscale)("log", base=base)
    low, high = axes.get_ylim() if axis is axes.yaxis else axes.get_xlim()
    decades = np.log10(high / low)
    wide = decades > 2.5
    subs: tuple[float, ...] = (1.0,) if wide or base != 10 else (1.0, 2.0, 5.0)
    if base == 10 and decades < 0.7:
        subs = (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    axis.set_major_locator(LogLocator(base=base, subs=subs))
    axis.set_major_formatter(FuncFormatter(_tick))
    axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)) if wide else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def contestant(r: Row) -> str:
    """Who a row is about: our engine, or a peer and its mode."""
    found = r.labels
    if found.get("contestant") == "mtlfast" and "engine" in found:
        return str(found["engine"])
    return ", ".join(str(found[n]) for n in ("contestant", "mode") if found.get(n, "") != "")


def words(value: Label) -> str:
    """A label as text: 1e7 for ten million."""
    if isinstance(value, str):
        return value
    if value >= 10_000:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    return f"{value:g}"


def _tick(value: float, _: Any) -> str:
    return words(float(value))


def _number(value: float | None) -> float:
    assert value is not None
    return value
