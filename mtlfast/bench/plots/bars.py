"""Bars: the peak memory of each engine, and where a training step's time goes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mtlfast.bench.plots import style
from mtlfast.bench.plots.style import COLOURS, GREY, Plot
from mtlfast.bench.rows import Label, Report, Row

__all__ = ["BREAKDOWN", "MEMORY"]

SHADES = ("#9ecae1", "#4292c6", "#084594", "#c7a252", "#8c6d31")
"""Light to dark for growing K."""

PARTS = (COLOURS[5], COLOURS[2], COLOURS[6], COLOURS[3], COLOURS[1], COLOURS[4], "#999999")
HATCHES = ("", "//", "", "..", "", "xx", "")
"""Beside the colour, for those who see none."""


def _memory(rows: Sequence[Row], report: Report) -> Figure:
    """Peak memory over that of joint training: a panel for each model, bars for K."""
    del report
    models = _distinct(rows, "model")
    contestants = _distinct(rows, "contestant")
    tasks = sorted(_distinct(rows, "K"), key=float)
    height = 1.9 + 0.16 * len(contestants) * max(2, len(tasks))
    figure = style.blank(2.2 + 3.2 * len(models), height)
    with mpl.rc_context(style.STYLE):
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    thick = 0.8 / len(tasks)
    for axes, model in zip(panels, models, strict=True):
        for r in rows:
            if r.labels["model"] != model:
                continue
            (value,), _, _ = style.spread([r])
            place = contestants.index(r.labels["contestant"])
            index = tasks.index(r.labels["K"])
            y = place + (index - (len(tasks) - 1) / 2) * thick
            axes.barh(y, value, 0.92 * thick, color=SHADES[index % len(SHADES)])
            axes.annotate(
                f"{value:.2f}", (value, y), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=6.5, color="#444444",
            )  # fmt: skip
        axes.axvline(1.0, color="black", linewidth=1.0, linestyle=(0, (4, 2)))
        axes.set_title(str(model), fontsize=11)
        axes.set_xlabel("peak memory over joint training")
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlim(left=0.0)
    panels[0].set_yticks(range(len(contestants)), [str(c) for c in contestants], fontsize=9)
    panels[0].set_ylim(len(contestants) - 0.4, -0.6)
    handles = [Patch(color=SHADES[i % len(SHADES)], label=f"K = {k}") for i, k in enumerate(tasks)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(tasks), frameon=False)
    return figure


def _breakdown(rows: Sequence[Row], report: Report) -> Figure:
    """The parts of a training step after each other, a bar for each step."""
    del report
    parts = [str(part) for part in _distinct(rows, "part")]
    steps: dict[str, dict[str, float]] = {}
    for r in rows:
        assert r.p50 is not None
        steps.setdefault(_step(r), {})[str(r.labels["part"])] = r.p50
    figure = style.blank(9.0, 1.9 + 0.42 * len(steps))
    with mpl.rc_context(style.STYLE):
        axes = figure.subplots()
    longest = max(sum(times.values()) for times in steps.values())
    for place, times in enumerate(steps.values()):
        _stack(axes, place, times, parts, longest)
    axes.set_yticks(range(len(steps)), list(steps), fontsize=9)
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.14 * longest)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"{rows[0].unit} of a step; in the bars: % of it")
    axes.set_title("Where a training step's time goes", fontsize=11)
    handles = [
        Patch(facecolor=_colour(i), hatch=HATCHES[i % len(HATCHES)], edgecolor="white", label=part)
        for i, part in enumerate(parts)
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(len(parts), 5), frameon=False
    )
    return figure


def _stack(
    axes: Axes, place: int, times: dict[str, float], parts: Sequence[str], longest: float
) -> None:
    total = sum(times.values())
    left = 0.0
    for index, part in enumerate(parts):
        if part not in times:
            continue
        axes.barh(
            place, times[part], 0.72, left=left, color=_colour(index),
            hatch=HATCHES[index % len(HATCHES)], edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        if times[part] > 0.045 * longest:
            axes.text(
                left + times[part] / 2, place, f"{100 * times[part] / total:.0f}",
                ha="center", va="center", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
            )  # fmt: skip
        left += times[part]
    axes.annotate(
        f"{total:.3g}", (left, place), xytext=(4, 0), textcoords="offset points",
        va="center", fontsize=8.5, color=GREY,
    )  # fmt: skip


def _step(r: Row) -> str:
    """What was taken apart: all labels but the part."""
    words = [
        f"{name} = {style.words(value)}" if name in ("K", "P") else str(value)
        for name, value in r.labels.items()
        if name != "part"
    ]
    return ", ".join(words)


def _distinct(rows: Sequence[Row], label: str) -> list[Label]:
    return list(dict.fromkeys(r.labels[label] for r in rows))


def _colour(index: int) -> str:
    return PARTS[index % len(PARTS)]


MEMORY = Plot(
    "memory",
    lambda report: style.measured(report.of("memory/over"), "model", "K", "contestant"),
    _memory,
)
BREAKDOWN = Plot(
    "breakdown", lambda report: style.measured(report.of("step/breakdown"), "part"), _breakdown
)
