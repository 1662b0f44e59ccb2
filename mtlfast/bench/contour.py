"""The figure of the two objectives: the ways of all methods on the contour of the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mtlfast.bench.rows import Label, Report, Row
from mtlfast.jobs import TwoObjectives, TwoObjectivesCAGrad
from mtlfast.jobs.two_objectives import REACHED, objectives, pareto_set

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["draw", "path_labels", "paths_of", "thinned"]

JOBS = (TwoObjectives, TwoObjectivesCAGrad)  # the rows of their distances have the paths
POINTS = 48  # of a path in a file of results
KNOWN = ("sum", "mgda", "pcgrad", "cagrad", "imtlg", "config", "famo", "nash_mtl")
# Okabe and Ito's colours, told apart with any colour vision: one for each start.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LIMIT = 10.5  # of both axes
LEVELS = 14
COLUMNS = 4
DPI = 110

Path2 = Sequence[tuple[float, float]]


def thinned(path: Path2) -> list[tuple[float, float]]:
    """At most 48 points of a path, about as far from each other, rounded to hundredths.

    Args:
        path: Points from the first to the last; those that are not finite go.
    """
    points = np.array([p for p in path if np.isfinite(p).all()])
    if not len(points):
        return []
    lengths = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    last = len(points) - 1
    found = np.searchsorted(lengths, np.linspace(0.0, lengths[-1], POINTS - 1))
    index = np.unique([*found.clip(max=last), last])
    return [(round(float(x1), 2), round(float(x2), 2)) for x1, x2 in points[index]]


def path_labels(paths: Mapping[int, Path2]) -> dict[str, Label]:
    """The paths by the numbers of their starts, as labels of a row: compact in a file."""
    return {
        f"path {seed}": " ".join(f"{x1:g},{x2:g}" for x1, x2 in path)
        for seed, path in paths.items()
    }


def paths_of(row: Row) -> dict[int, NDArray[np.float64]]:
    """The paths ``[n, 2]`` that a row has in its labels, by the numbers of their starts."""
    return {
        int(name.removeprefix("path ")): np.array(
            [[float(x) for x in point.split(",")] for point in str(words).split()]
        )
        for name, words in row.labels.items()
        if name.startswith("path ")
    }


def draw(report: Report, folder: Path) -> list[Path]:
    """Draws the paths that a report has: one PNG for each of the two jobs that have some.

    ``two_objectives.png`` shows the methods that the papers compare and a few more,
    ``two_objectives_all.png`` all of them, ``two_objectives_cagrad.png`` the setting of CAGrad's
    paper.

    Args:
        report: Results; without paths in them nothing is drawn.
        folder: Where the files go; made if absent.

    Returns:
        The files.

    Raises:
        OSError: One cannot be written.
    """
    files = []
    for job in JOBS:
        panels = _panels(report, job)
        known = [panel for name in KNOWN for panel in panels if panel.method == name]
        sheets = {job.name: known}
        if len(known) < len(panels):
            sheets[f"{job.name}_all"] = panels
        for stem, chosen in sheets.items():
            if chosen:
                folder.mkdir(parents=True, exist_ok=True)
                files.append(folder / f"{stem}.png")
                _draw(job, chosen, files[-1])
    return files


class Panel(NamedTuple):
    """A method's part of the figure.

    Attributes:
        method: Its name.
        title: Its label, and from how many starts it arrived.
        paths: ``[n, 2]`` each, by the numbers of their starts.
    """

    method: str
    title: str
    paths: dict[int, NDArray[np.float64]]


def _panels(report: Report, job: type[TwoObjectives]) -> list[Panel]:
    """Of all methods that have paths; those that arrived most often come first."""
    figure = f"quality/{job.name}"
    reached = {row.labels["method"]: int(row.p50 or 0) for row in report.of(f"{figure}_reached")}
    rows = [row for row in report.of(figure) if paths_of(row)]
    rows.sort(key=lambda row: (-reached[row.labels["method"]], row.labels.get("mean", np.inf)))
    found = []
    for row in rows:
        method, paths = str(row.labels["method"]), paths_of(row)
        found.append(Panel(method, f"{row.case}: {reached[method]} of {len(paths)}", paths))
    return found


def _draw(job: type[TwoObjectives], panels: Sequence[Panel], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(COLUMNS if len(panels) <= 2 * COLUMNS else COLUMNS + 2, len(panels))
    lines = -(-len(panels) // columns)
    size = (max(2.45 * columns, 7.5), 2.5 * lines + 1.3)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.04))
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    x, height = _mean_objective(job.factor)
    pareto = pareto_set(1001)
    for place, panel in zip(axes.flat, panels, strict=False):
        place.contour(x, x, height, levels=LEVELS, cmap="viridis", linewidths=0.7, alpha=0.45)
        place.plot(*pareto.T, color="#555555", linewidth=5, alpha=0.55, solid_capstyle="round")
        _draw_paths(place, panel.paths, pareto)
        place.set_title(panel.title, fontsize=9.5)
        place.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal")
        place.set_xticks([-7, 0, 7])
        place.set_yticks([-8, 0, 8])
        place.tick_params(labelsize=8, color="#666666", labelbottom=True)
    for place in axes.flat[len(panels) :]:
        place.remove()
    figure.legend(handles=_legend(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    times = "" if job.factor == 1 else f", the first times {job.factor:g}"
    figure.supxlabel(
        f"x1 (across) and x2 (upwards); the contour is the mean of both objectives{times}.\n"
        "Above each panel: the method, and from how many starts it came closer than "
        f"{REACHED:g} to the Pareto set.",
        fontsize=8.5,
        color="#444444",
    )
    figure.savefig(path, dpi=DPI)


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
    from matplotlib.lines import Line2D

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
