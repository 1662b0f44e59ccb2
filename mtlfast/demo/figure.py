"""The demo's figure: the first metric, and the tasks' cosine, over the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from mtlfast.demo.report import label
from mtlfast.demo.train import COSINE_EVERY, History
from mtlfast.jobs import Job

__all__ = ["draw", "highlighted"]

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# Every other line is dashed, since good methods end on top of each other.
DASHES = ("-", (0, (5, 1.2)))
GREY = {"color": "#c4c4c4", "linestyle": "-", "linewidth": 0.8, "zorder": 1.5}
WORST = 2  # so many of the coloured lines, where not all can be, are for the worst methods
SMOOTHING = 40  # cosines averaged for one point of the cosine panel
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "legend.frameon": False,
}


def draw(
    job: Job, results: Mapping[str, Sequence[History]], ranking: Sequence[str], path: Path
) -> None:
    """Writes the figure of a job as PNG.

    Up to seven methods have a coloured line each. Of more, those of :func:`highlighted` do, the
    others are grey, and a further panel ranks all of them.

    Args:
        job: The job that ran.
        results: ``{method: [one history per seed]}``.
        ranking: The methods, the best one first.
        path: The file to write.
    """
    seeds = len(next(iter(results.values())))
    coloured = highlighted(job, results, ranking)
    crowded = len(coloured) < len(results)
    with mpl.rc_context(STYLE):
        size = (12.0, max(8.4, 1.6 + 0.2 * len(results))) if crowded else (10.0, 4.6)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))
        FigureCanvasAgg(figure)
        if crowded:
            panels = figure.subplot_mosaic([["metric", "rank"], ["cosine", "rank"]])
            _draw_ranking(panels["rank"], job, results, ranking, coloured)
        else:
            panels = figure.subplot_mosaic([["metric", "cosine"]])
        for method in [m for m in results if m not in coloured] + coloured:
            style = _style(job, method, coloured)
            _draw_metric(panels["metric"], job, results[method], style)
            _draw_cosines(panels["cosine"], results[method], style)
        _finish_metric(panels["metric"], job)
        _finish_cosines(panels["cosine"], job)
        handles, labels = panels["metric"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 7))
        runs = "Lines: one seed."
        if seeds > 1:
            runs = f"Lines: mean of {seeds} seeds; bands: from the lowest to the highest seed."
        if crowded:
            runs += " Grey: the other methods. Right: the last value, a dot a seed, a bar the mean."
        figure.supxlabel(f"{job.caption}\n{runs}", fontsize=9, color="#444444")
        figure.savefig(path, dpi=160)


def highlighted(
    job: Job, results: Mapping[str, Sequence[History]], ranking: Sequence[str]
) -> list[str]:
    """Returns the methods with a coloured line: all, or the baseline, the best and the worst ones.

    The worst are looked for among those that did not diverge: the lines of the others end.

    Args:
        job: The job that ran.
        results: ``{method: [one history per seed]}``.
        ranking: The methods, the best one first.
    """
    if len(results) <= len(COLOURS):
        return list(results)
    key = job.metrics[0].key
    baseline = [method for method in job.methods[:1] if method in results]
    rest = [method for method in ranking if method not in baseline]
    best = rest[: len(COLOURS) - len(baseline) - WORST]
    losers = [
        method
        for method in rest[len(best) :]
        if np.isfinite([history.metrics[-1][key] for history in results[method]]).all()
    ]
    return [*baseline, *best, *losers[-WORST:]]


def _style(job: Job, method: str, coloured: Sequence[str]) -> dict[str, Any]:
    if method not in coloured:
        return GREY
    index = coloured.index(method)
    return {
        "color": COLOURS[index],
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": 1.8,
        "label": label(job, method),
    }


def _draw_metric(
    axes: Axes, job: Job, histories: Sequence[History], style: Mapping[str, Any]
) -> None:
    metric = job.metrics[0]
    curves = np.array([[entry[metric.key] for entry in h.metrics] for h in histories])
    _band(axes, histories[0].steps, curves, style)


def _draw_cosines(axes: Axes, histories: Sequence[History], style: Mapping[str, Any]) -> None:
    curves = np.array([_running_mean(history.cosines) for history in histories])
    _band(axes, histories[0].cosine_steps, curves, style)


def _band(
    axes: Axes, steps: Sequence[int], curves: NDArray[np.float64], style: Mapping[str, Any]
) -> None:
    """Draws the mean of the curves, which ends where one of them does, and what they span."""
    curves = np.where(np.isfinite(curves), curves, np.nan)
    axes.plot(steps, curves.mean(0), **style)
    if len(curves) > 1 and style is not GREY:
        axes.fill_between(
            steps, curves.min(0), curves.max(0), color=style["color"], alpha=0.13, linewidth=0
        )


def _running_mean(values: Sequence[float]) -> NDArray[np.float64]:
    """Averages every value with its neighbours, fewer of them at both ends; NaN does not count."""
    array = np.asarray(values, np.float64)
    valid = np.isfinite(array)
    window = np.ones(min(SMOOTHING, len(array)))
    total = np.convolve(np.where(valid, array, 0.0), window, "same")
    count = np.convolve(valid, window, "same")
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def _draw_ranking(
    axes: Axes,
    job: Job,
    results: Mapping[str, Sequence[History]],
    ranking: Sequence[str],
    coloured: Sequence[str],
) -> None:
    """Draws the last value of every method and seed, the best method on top."""
    metric = job.metrics[0]
    side = "left" if metric.lower_is_better else "right"  # where the dots of good runs would be
    for row, method in enumerate(ranking):
        values = np.array([history.metrics[-1][metric.key] for history in results[method]])
        finite = values[np.isfinite(values)]
        if metric.limits is not None:
            finite = finite.clip(*metric.limits)
        colour = COLOURS[coloured.index(method)] if method in coloured else "#888888"
        axes.plot(finite, [row] * len(finite), "o", color=colour, markersize=4, alpha=0.5)
        if len(finite):
            axes.plot(finite.mean(), row, "|", color=colour, markersize=11, markeredgewidth=2)
        if lost := len(values) - len(finite):
            text = f"{lost} of {len(values)} diverged"
            _note(axes, text, (0.01 if side == "left" else 0.99, row), "data", "center", side)
    words = [label(job, method) for method in ranking]
    axes.set_yticks(range(len(ranking)), words, fontsize=9)
    axes.set_ylim(len(ranking) - 0.4, -0.6)
    axes.set_title(_title(job), fontsize=11)
    _scale(axes, axes.xaxis, job)


def _finish_metric(axes: Axes, job: Job) -> None:
    metric = job.metrics[0]
    axes.set_title(_title(job), fontsize=11)
    axes.set_xlabel("step")
    _scale(axes, axes.yaxis, job)
    if metric.reference is not None:
        value, text = metric.reference
        axes.axhline(value, color="#666666", linewidth=1.0, linestyle=":")
        _note(axes, text, (0.99, value), "data", va="bottom")
    axes.margins(x=0.01)


def _finish_cosines(axes: Axes, job: Job) -> None:
    pair = "the tasks'" if len(job.tasks) == 2 else "the two most opposed tasks'"
    axes.set_title(f"cosine of {pair} gradients", fontsize=11)
    axes.set_xlabel(f"step (running mean over {SMOOTHING * COSINE_EVERY} steps)")
    axes.axhline(0.0, color="#666666", linewidth=0.8)
    # Noise about zero shall look like noise: never zoom in further than this. The remarks need
    # some room of their own.
    lowest, highest = axes.get_ylim()
    lowest, highest = min(lowest, -0.12), max(highest, 0.12)
    room = 0.06 * (highest - lowest)
    axes.set_ylim(lowest - room, highest + room)
    _note(axes, "above 0 the tasks help each other", (0.99, 0.98), "axes fraction", va="top")
    _note(axes, "below 0 they conflict", (0.99, 0.02), "axes fraction", va="bottom")
    axes.margins(x=0.01)


def _title(job: Job) -> str:
    metric = job.metrics[0]
    return f"{metric.label} {metric.measured}" + " (lower is better)" * metric.lower_is_better


def _scale(axes: Axes, axis: Axis, job: Job) -> None:
    """Makes an axis the metric's."""
    metric = job.metrics[0]
    vertical = axis is axes.yaxis
    # If every run diverged, nothing can stand on a logarithmic axis.
    if metric.log_scale and np.isfinite(axes.dataLim.minposy if vertical else axes.dataLim.minposx):
        (axes.set_yscale if vertical else axes.set_xscale)("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    if metric.limits is not None:
        (axes.set_ylim if vertical else axes.set_xlim)(*metric.limits)


def _note(
    axes: Axes, text: str, position: tuple[float, float], height: str, va: str, ha: str = "right"
) -> None:
    """Writes a remark; ``height`` says in which units its height is, its x is in those of axes."""
    axes.annotate(
        text, position, xycoords=("axes fraction", height), ha=ha, va=va,
        fontsize=8.5, color="#444444",
    )  # fmt: skip
