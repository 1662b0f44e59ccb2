"""The paths through the plane of two objectives, on the contour of their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mtlfast.bench.paths import paths_of
from mtlfast.bench.plots import style
from mtlfast.bench.plots.style import Plot
from mtlfast.bench.rows import Report, Row
from mtlfast.jobs import TwoObjectives, TwoObjectivesCAGrad
from mtlfast.jobs.two_objectives import REACHED, objectives, pareto_set

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ALL", "CAGRAD", "KNOWN"]

SHOWN = ("sum", "mgda", "pcgrad", "cagrad", "imtlg", "config", "famo", "nash_mtl")
"""The methods that the papers compare, and a few more."""

# Okabe and Ito's colours, told apart with any colour vision: one for each start.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LIMIT = 10.5  # of both axes
LEVELS = 14
COLUMNS = 4


def _rows(job: type[TwoObjectives], methods: Sequence[str] | None, report: Report) -> list[Row]:
    """Of the job's distances, those that have paths; the methods that got nearest come first."""
    rows = [row for row in report.of(f"quality/{job.name}") if paths_of(row)]
    if methods is None:
        if job is TwoObjectives and all(row.labels.get("method") in SHOWN for row in rows):
            return []  # the smaller picture has them all
        return sorted(rows, key=lambda row: (-_reached(row, report), row.p50 or 0.0))
    return [row for name in methods for row in rows if row.labels.get("method") == name]


def _reached(row: Row, report: Report) -> int:
    """From how many starts the method of a row arrived."""
    (found,) = report.of(f"{row.figure}_reached", method=row.labels["method"])
    return int(found.p50 or 0)


def _draw(job: type[TwoObjectives], rows: Sequence[Row], report: Report) -> Figure:
    """One panel for every method."""
    columns = min(COLUMNS if len(rows) <= 2 * COLUMNS else COLUMNS + 2, len(rows))
    lines = -(-len(rows) // columns)
    figure = style.blank(max(2.45 * columns, 7.5), 2.5 * lines + 1.3)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    x, height = _mean_objective(job.factor)
    pareto = pareto_set(1001)
    for place, row in zip(axes.flat, rows, strict=False):
        paths = paths_of(row)
        place.contour(x, x, height, levels=LEVELS, cmap="viridis", linewidths=0.7, alpha=0.45)
        place.plot(*pareto.T, color="#555555", linewidth=5, alpha=0.55, solid_capstyle="round")
        _draw_paths(place, paths, pareto)
        place.set_title(f"{row.case}: {_reached(row, report)} of {len(paths)}", fontsize=9.5)
        place.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal")
        place.set_xticks([-7, 0, 7])
        place.set_yticks([-8, 0, 8])
        place.tick_params(labelsize=8, color="#666666", labelbottom=True)
    for place in axes.flat[len(rows) :]:
        place.remove()
    times = "" if job.factor == 1 else f", the first times {job.factor:g}"
    figure.legend(
        handles=_legend(),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
        title=f"x1 (across) and x2 (upwards); the contour is the mean of both objectives{times}.\n"
        "Above each panel: the method, and from how many starts it came closer than "
        f"{REACHED:g} to the Pareto set.",
        title_fontsize=8.5,
    )
    return figure


def _draw_paths(
    axes: Axes, paths: Mapping[int, NDArray[np.float64]], pareto: NDArray[np.float64]
) -> None:
    for seed, way in paths.items():
        colour = COLOURS[seed % len(COLOURS)]
        axes.plot(*way.T, color=colour, linewidth=1.7, zorder=3)
        axes.plot(*way[0], "o", color=colour, markersize=5.5, markeredgecolor="white", zorder=4)
        end = way[-1]
        there = bool(np.linalg.norm(pareto - end, axis=1).min() <= REACHED)
        axes.plot(*end, color=colour, markeredgewidth=0.7, zorder=5, **_end(there))


def _end(there: bool) -> dict[str, Any]:
    """The mark at the end of a path."""
    if there:
        return {"marker": "*", "markersize": 11, "markeredgecolor": "black"}
    return {"marker": "X", "markersize": 8, "markeredgecolor": "black"}


def _legend() -> list[Line2D]:
    grey: dict[str, Any] = {"linestyle": "none", "color": "#999999"}
    return [
        Line2D([], [], marker="o", label="start", **grey),
        Line2D([], [], label="end, on the Pareto set", **grey, **_end(True)),
        Line2D([], [], label="end, elsewhere", **grey, **_end(False)),
        Line2D([], [], color="#555555", linewidth=5, alpha=0.55, label="Pareto set"),
    ]


def _mean_objective(factor: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The axis [n] and the mean of both objectives [n, n] over it, rows upwards."""
    axis = torch.linspace(-LIMIT, LIMIT, 211, dtype=torch.float64)
    x2, x1 = torch.meshgrid(axis, axis, indexing="ij")
    values = objectives(torch.stack([x1, x2], -1)) * torch.tensor([factor, 1.0])
    return axis.numpy(), values.mean(-1).numpy()


KNOWN = Plot("two_objectives", partial(_rows, TwoObjectives, SHOWN), partial(_draw, TwoObjectives))
ALL = Plot("two_objectives_all", partial(_rows, TwoObjectives, None), partial(_draw, TwoObjectives))
CAGRAD = Plot(
    "two_objectives_cagrad",
    partial(_rows, TwoObjectivesCAGrad, None),
    partial(_draw, TwoObjectivesCAGrad),
)
