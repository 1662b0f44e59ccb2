"""Bars: time and memory of everyone's training step, and where a step's time goes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch

from mtlfast.bench.digits import three
from mtlfast.bench.plots import style
from mtlfast.bench.plots.style import COLOURS, GREY, Plot
from mtlfast.bench.rows import Label, Report, Row

__all__ = ["BREAKDOWN", "ENGINES", "MEMORY"]

SHADES = {
    "mtlfast": ("#9ecae1", "#4292c6", "#084594", "#041f4a"),
    "peers": ("#fdc38d", "#f07818", "#a63603", "#5c1d01"),
    "backwards alone": ("#d0d0d0", "#999999", "#5c5c5c", "#222222"),
}
"""Light to dark for growing K."""

PARTS = (COLOURS[5], COLOURS[2], COLOURS[6], COLOURS[3], COLOURS[1], COLOURS[4], "#999999")
HATCHES = ("", "//", "", "..", "", "xx", "")
"""Beside the colour, for those who see none."""


def _over_joint(what: str, rows: Sequence[Row], report: Report) -> Figure:
    """Something over that of joint training: a panel for each model, a bar for each K."""
    del report
    models = _distinct(rows, "model")
    names = list(dict.fromkeys(style.contestant(r) for r in rows))
    tasks = sorted(_distinct(rows, "K"), key=float)
    figure = style.blank(2.6 + 3.0 * len(models), 1.8 + 0.13 * len(names) * (1 + len(tasks)))
    with mpl.rc_context(style.STYLE):
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for r in rows:
            if r.labels["model"] == model:
                place = names.index(style.contestant(r))
                _bar(axes, r, place, tasks.index(r.labels["K"]), len(tasks))
        axes.axvline(1.0, color="black", linewidth=1.0, linestyle=(0, (4, 2)))
        axes.set_title(str(model), fontsize=11)
        axes.set_xlabel(f"{what}, joint training = 1")
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.16)
        axes.set_xlim(left=0.0)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    kinds = list(dict.fromkeys(_kind(r) for r in rows))
    handles: list[Any] = [
        tuple(Patch(color=_shade(kind, i)) for kind in kinds) for i in range(len(tasks))
    ]
    handles += [Patch(color=_shade(kind, 1)) for kind in kinds]
    figure.legend(
        handles, [*(f"K = {k}" for k in tasks), *kinds], loc="outside upper center",
        ncols=len(handles), frameon=False, handler_map={tuple: HandlerTuple(None, pad=0.0)},
    )  # fmt: skip
    return figure


def _bar(axes: Axes, r: Row, place: int, index: int, count: int) -> None:
    """The bar of one K among ``count`` of a contestant."""
    (value,), (low,), (high,) = style.spread([r])
    thick = 0.84 / count
    y = place + (index - (count - 1) / 2) * thick
    axes.barh(y, value, 0.92 * thick, color=_shade(_kind(r), index))
    if high > low:
        axes.plot([low, high], [y, y], color="#444444", linewidth=0.8)
    axes.annotate(
        f"{value:.2f}", (high, y), xytext=(3, 0), textcoords="offset points",
        va="center", fontsize=6.5, color="#444444",
    )  # fmt: skip


def _kind(r: Row) -> str:
    """Whose step it is: a peer's has a mode."""
    if r.labels["contestant"] == "mtlfast":
        return "mtlfast"
    return "peers" if "mode" in r.labels else "backwards alone"


def _shade(kind: str, index: int) -> str:
    return SHADES[kind][min(index, len(SHADES[kind]) - 1)]


def _breakdown(rows: Sequence[Row], report: Report) -> Figure:
    """The parts of training steps after each other: a panel for each model, a bar for each step."""
    del report
    # A joint step has few of the parts: the order is that of a balanced one.
    balanced = [r for r in rows if r.labels.get("contestant") != "joint"]
    parts = [str(part) for part in _distinct([*balanced, *rows], "part")]
    models = _distinct(rows, "model")
    steps = {model: _steps([r for r in rows if r.labels["model"] == model]) for model in models}
    bars = [len(taken) for taken in steps.values()]
    figure = style.blank(9.0, 1.7 + 0.27 * sum(bars) + 0.75 * len(bars))
    with mpl.rc_context(style.STYLE):
        panels = figure.subplots(
            len(models), 1, squeeze=False, height_ratios=[count + 0.4 for count in bars]
        )[:, 0]
    for axes, (model, taken) in zip(panels, steps.items(), strict=True):
        longest = max(sum(times.values()) for times in taken.values())
        for place, times in enumerate(taken.values()):
            _stack(axes, place, times, parts, longest)
        axes.set_yticks(range(len(taken)), list(taken), fontsize=9)
        axes.set_ylim(len(taken) - 0.4, -0.6)
        axes.set_xlim(0.0, 1.1 * longest)
        axes.grid(visible=False, axis="y")
        axes.set_title(str(model), fontsize=10, loc="left", fontweight="bold")
    panels[-1].set_xlabel(f"{rows[0].unit} of a step; in the bars: % of it")
    handles = [
        Patch(facecolor=_colour(i), hatch=_hatch(i), edgecolor="white", label=part)
        for i, part in enumerate(parts)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(parts), frameon=False)
    return figure


def _steps(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """By the name of a step, what its parts take; the noise of a part of nothing may be below 0."""
    found: dict[str, dict[str, float]] = {}
    for r in rows:
        name = f"{style.contestant(r)}, K = {r.labels['K']}"
        found.setdefault(name, {})[str(r.labels["part"])] = max(0.0, style.spread([r])[0][0])
    return found


def _stack(
    axes: Axes, place: int, times: dict[str, float], parts: Sequence[str], longest: float
) -> None:
    total = sum(times.values())
    left = 0.0
    for index, part in enumerate(parts):
        if part not in times:
            continue
        axes.barh(
            place, times[part], 0.76, left=left, color=_colour(index), hatch=_hatch(index),
            edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        if times[part] > 0.04 * longest:
            axes.text(
                left + times[part] / 2, place, f"{100 * times[part] / total:.0f}",
                ha="center", va="center", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
            )  # fmt: skip
        left += times[part]
    axes.annotate(
        three(total), (left, place), xytext=(4, 0), textcoords="offset points",
        va="center", fontsize=8.5, color=GREY,
    )  # fmt: skip


def _distinct(rows: Sequence[Row], label: str) -> list[Label]:
    return list(dict.fromkeys(r.labels[label] for r in rows))


def _colour(index: int) -> str:
    return PARTS[index % len(PARTS)]


def _hatch(index: int) -> str:
    return HATCHES[index % len(HATCHES)]


def _contestants(figure: str, report: Report) -> list[Row]:
    return style.measured(report.of(figure), "model", "K", "contestant")


def _parts(report: Report) -> list[Row]:
    rows = style.measured(report.of("step/breakdown"), "model", "K", "part")
    return [r for r in rows if r.labels["part"] != "whole"]


MEMORY = Plot("memory", partial(_contestants, "memory/over"), partial(_over_joint, "peak memory"))
ENGINES = Plot("engines", partial(_contestants, "step/time"), partial(_over_joint, "time"))
BREAKDOWN = Plot("breakdown", _parts, _breakdown)
