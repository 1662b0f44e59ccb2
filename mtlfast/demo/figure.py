"""The demo's figure: the first metric, and the tasks' cosine, over the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from mtlfast.demo.report import label
from mtlfast.demo.train import COSINE_EVERY, History
from mtlfast.jobs import Job

__all__ = ["draw"]

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# Every other line is dashed, since good methods end on top of each other.
DASHES = ("-", (0, (5, 1.2)))
SMOOTHING = 40  # cosines averaged for one point of the right panel
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


def draw(job: Job, results: Mapping[str, Sequence[History]], path: Path) -> None:
    """Writes the figure of a job as PNG.

    Args:
        job: The job that ran.
        results: ``{method: [one history per seed]}``.
        path: The file to write.
    """
    seeds = len(next(iter(results.values())))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for index, (method, histories) in enumerate(results.items()):
            style = {
                "color": COLOURS[index % len(COLOURS)],
                "linestyle": DASHES[index % len(DASHES)],
                "label": label(job, method),
            }
            _draw_metric(left, job, histories, style)
            _draw_cosines(right, histories, style)
        _finish(left, right, job)
        columns = min(len(results), 6)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=columns)
        runs = "Lines: one seed."
        if seeds > 1:
            runs = f"Lines: mean of {seeds} seeds; bands: from the lowest to the highest seed."
        figure.supxlabel(f"{job.caption}\n{runs}", fontsize=9, color="#444444")
        figure.savefig(path, dpi=160)


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
    axes.plot(steps, curves.mean(0), linewidth=1.8, **style)
    if len(curves) > 1:
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


def _finish(left: Axes, right: Axes, job: Job) -> None:
    metric = job.metrics[0]
    left.set_title(f"{metric.label} on test data", fontsize=11)
    left.set_xlabel("step")
    # If every run diverged, nothing can stand on a logarithmic axis.
    if metric.log_scale and np.isfinite(left.dataLim.minposy):
        left.set_yscale("log")
    if metric.limits is not None:
        left.set_ylim(*metric.limits)
    if metric.reference is not None:
        value, text = metric.reference
        left.axhline(value, color="#666666", linewidth=1.0, linestyle=":")
        _note(left, text, (0.99, value), "data", va="bottom")
    pair = "the tasks'" if len(job.tasks) == 2 else "the two most opposed tasks'"
    right.set_title(f"cosine of {pair} gradients", fontsize=11)
    right.set_xlabel(f"step (running mean over {SMOOTHING * COSINE_EVERY} steps)")
    right.axhline(0.0, color="#666666", linewidth=0.8)
    # Noise about zero shall look like noise: never zoom in further than this.
    lowest, highest = right.get_ylim()
    right.set_ylim(min(lowest, -0.12), max(highest, 0.12))
    _note(right, "above 0 the tasks help each other", (0.99, 0.98), "axes fraction", va="top")
    _note(right, "below 0 they conflict", (0.99, 0.02), "axes fraction", va="bottom")
    for axes in (left, right):
        axes.margins(x=0.01)


def _note(axes: Axes, text: str, position: tuple[float, float], height: str, va: str) -> None:
    """Writes a remark, right-aligned; ``height`` says in which units its height is."""
    axes.annotate(
        text, position, xycoords=("axes fraction", height), ha="right", va=va,
        fontsize=8.5, color="#444444",
    )  # fmt: skip
