"""Lines over the number of tasks and of parameters: time over the floor, and how time grows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mtlfast.bench.plots import style
from mtlfast.bench.plots.style import COLOURS, GREY, Plot
from mtlfast.bench.rows import Label, Report, Row

__all__ = ["FLOOR", "GROWTH", "TENSORS"]

MARKERS = "osD^vP*"
SERIES = ("contestant", "mode", "method", "dtype", "threads", "P", "K", "tensors")
"""Labels that may tell one line from another, in the order of the words of its name."""


def _over_floor(rows: Sequence[Row], report: Report) -> Figure:
    """Time over the floor against K, with the bounds that were set beforehand."""
    del report
    figure = style.blank(7.0, 4.4)
    with mpl.rc_context(style.STYLE):
        axes = figure.subplots()
    for index, (name, line) in enumerate(_series(rows, "K").items()):
        _draw(axes, line, "K", index, name)
    bounds = {r.labels["K"]: r.target for r in rows if r.target is not None}
    if bounds:
        axes.plot(
            [float(k) for k in bounds], [*bounds.values()],
            linestyle="none", marker="_", markersize=20, markeredgewidth=2, color=GREY,
            label="bound set beforehand",
        )  # fmt: skip
    axes.axhline(1.0, color="black", linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(
        "floor: (2K+1) P elements at the memory's best rate", (0.99, 1.0),
        xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
        ha="right", va="bottom", fontsize=8.5,
    )  # fmt: skip
    top = max(*style.spread(rows)[2], *bounds.values(), 1.2)
    axes.set_ylim(0.0, 1.08 * top)
    style.log_axis(axes, axes.xaxis, base=2)
    _ticks_at(axes, sorted({float(r.labels["K"]) for r in rows}))
    axes.set_xlabel("number of tasks K")
    axes.set_ylabel("time over the floor")
    axes.set_title("Gramian, solve and combination over the floor", fontsize=11)
    _legend(figure, axes)
    return figure


def _growth(over: str, what: str, rows: Sequence[Row], report: Report) -> Figure:
    """Milliseconds against a label, a panel for each K."""
    del report
    tasks = list(dict.fromkeys(r.labels.get("K") for r in rows))
    figure = style.blank(max(7.0, 1.2 + 4.4 * len(tasks)), 4.6)
    with mpl.rc_context(style.STYLE):
        panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, tasks, strict=True):
        chosen = [r for r in rows if r.labels.get("K") == count]
        lines = _series(chosen, over, leave_out=("K",))
        floor = {name: line for name, line in lines.items() if _is_floor(line)}
        for index, (name, line) in enumerate((n, s) for n, s in lines.items() if n not in floor):
            _draw(axes, line, over, index, name)
        for line in floor.values():
            axes.plot(
                [float(r.labels[over]) for r in line], style.spread(line)[0],
                color="black", linestyle=(0, (4, 2)), linewidth=1.2, label="floor",
            )  # fmt: skip
        axes.set_xlabel(f"number of {what}")
        if count is not None:
            axes.set_title(f"K = {count}", fontsize=11)
        style.log_axis(axes, axes.xaxis)
    style.log_axis(panels[0], panels[0].yaxis)
    panels[0].set_ylabel("ms")
    figure.suptitle(f"How time grows with the number of {what}", fontsize=11)
    _legend(figure, panels[0])
    return figure


def _series(rows: Sequence[Row], over: str, leave_out: Sequence[str] = ()) -> dict[str, list[Row]]:
    """The rows of each line, in order, by the line's name: the labels in which lines differ."""
    names = [n for n in SERIES if n != over and n not in leave_out]
    differ = [n for n in names if len({r.labels.get(n) for r in rows}) > 1]
    found: dict[str, list[Row]] = {}
    for r in sorted(rows, key=lambda r: float(r.labels[over])):
        found.setdefault(_name(r, differ or names[:1]), []).append(r)
    order = list(dict.fromkeys(_name(r, differ or names[:1]) for r in rows))
    return {name: found[name] for name in order}


def _name(r: Row, names: Sequence[str]) -> str:
    kept: dict[str, Label] = {n: r.labels[n] for n in names if n in r.labels}
    return ", ".join(
        f"{n} = {style.words(v)}" if n in ("K", "P", "tensors", "threads") else str(v)
        for n, v in kept.items()
    )


def _is_floor(line: Sequence[Row]) -> bool:
    return line[0].labels.get("contestant") == "floor"


def _draw(axes: Axes, line: Sequence[Row], over: str, index: int, name: str) -> None:
    """A line with a band from p20 to p80."""
    x = [float(r.labels[over]) for r in line]
    medians, low, high = style.spread(line)
    colour = (COLOURS[2], COLOURS[1], *COLOURS[3:])[index % (len(COLOURS) - 1)]
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        x, medians, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=5, label=name
    )


def _ticks_at(axes: Axes, places: Sequence[float]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)


FLOOR = Plot("floor", lambda report: style.measured(report.of("kernels/floor"), "K"), _over_floor)
GROWTH = Plot(
    "growth",
    lambda report: style.measured(report.of("kernels/growth"), "P"),
    partial(_growth, "P", "shared parameters P"),
)
TENSORS = Plot(
    "tensors",
    lambda report: style.measured(report.of("kernels/tensors"), "tensors"),
    partial(_growth, "tensors", "tensors"),
)
