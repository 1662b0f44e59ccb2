"""Every comparison with a peer: its time or memory over ours, a panel for each peer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from mtlfast.bench.digits import three
from mtlfast.bench.plots import style
from mtlfast.bench.plots.style import AHEAD, BEHIND, GREY, Plot
from mtlfast.bench.rows import Report, Row

__all__ = ["plots"]

TALL = 60
"""More rows are too many for a picture: then each peer has its best mode alone."""

BEST = "best"
"""The mode of a row that repeats that of a peer's best one."""

DISTRIBUTIONS = {"TorchJD": "torchjd"}
"""Peers whose distribution has another name."""


def plots(report: Report) -> list[Plot]:
    """One for every figure that compares with peers: ``peers-kernels`` for ``kernels/peers``."""
    figures = dict.fromkeys(r.figure for r in report.rows if r.versus)
    return [
        Plot(_file(figure), partial(_rows, figure), partial(_draw, figure)) for figure in figures
    ]


def _file(figure: str) -> str:
    suite, _, rest = figure.partition("/")
    return f"peers-{suite}" if rest == "peers" else f"peers-{suite}-{rest.replace('/', '-')}"


def _rows(figure: str, report: Report) -> list[Row]:
    rows = [r for r in report.of(figure) if r.versus]
    rows = rows if len(rows) <= TALL else _best(rows)
    return rows if any(r.p50 is not None for r in rows) else []


def _best(rows: Sequence[Row]) -> list[Row]:
    """Each peer in its best mode alone: the least number of those that differ in nothing else."""
    groups: dict[object, list[Row]] = {}
    for r in rows:
        if r.labels.get("mode") == BEST:
            continue  # the row of that mode is there as well
        others = {name: value for name, value in r.labels.items() if name != "mode"}
        groups.setdefault((r.versus, *sorted(others.items())), []).append(r)
    return [
        min(group, key=lambda r: float("inf") if r.p50 is None else r.p50)
        for group in groups.values()
    ]


def _draw(name: str, rows: Sequence[Row], report: Report) -> Figure:
    peers = list(dict.fromkeys(r.versus for r in rows))
    groups = [[r for r in rows if r.versus == peer] for peer in peers]
    figure = style.blank(9.0, 1.6 + 0.19 * len(rows) + 0.5 * len(groups))
    title = report.titles.get(name, name)
    figure.suptitle(
        f"{title}\ntheir figure over ours; beyond the line at 1 we are ahead", fontsize=11
    )
    with mpl.rc_context(style.STYLE):
        panels = figure.subplots(
            len(groups), 1, sharex=True, squeeze=False,
            height_ratios=[len(group) + 1.0 for group in groups],
        )[:, 0]  # fmt: skip
    _, low, high = style.spread(style.measured(rows))
    panels[0].set_xlim(min(0.8, 0.9 * min(low)), max(1.25, 1.15 * max(high)))
    for axes, peer, group in zip(panels, peers, groups, strict=True):
        _panel(axes, group)
        axes.set_title(_called(peer, report), fontsize=10, loc="left", fontweight="bold")
    style.log_axis(panels[-1], panels[-1].xaxis)
    panels[-1].set_xlabel("theirs over ours, median and p20 to p80")
    _legend(figure, rows)
    return figure


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    """A peer's rows, in their order from the top."""
    for place, r in enumerate(rows):
        if r.p50 is None:
            axes.annotate(
                "not measured", (1.0, place), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=8, color=GREY,
            )  # fmt: skip
            continue
        (middle,), (low,), (high,) = style.spread([r])
        colour, marker = _look(r)
        axes.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(
            middle, place, marker, color=colour, markersize=5.5,
            markerfacecolor="white" if low <= 1.0 <= high else colour,
        )  # fmt: skip
        axes.annotate(
            three(middle), (1.0, place),
            xycoords=blended_transform_factory(axes.transAxes, axes.transData),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=colour,
        )  # fmt: skip
    axes.axvline(1.0, color="black", linewidth=1.0)
    axes.set_yticks(range(len(rows)), [r.case for r in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _look(r: Row) -> tuple[str, str]:
    """Colour and marker: another shape too, where the peer is ahead."""
    assert r.p50 is not None
    return (BEHIND, "s") if r.p50 < 1.0 else (AHEAD, "o")


def _called(peer: str, report: Report) -> str:
    """A peer with its version, where the environment has it."""
    versions = report.environment.get("peers") or {}
    version = versions.get(DISTRIBUTIONS.get(peer, peer))
    return f"{peer} {version}" if version else peer


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    known = style.measured(rows)
    doubtful = [r for r in known if r.p20 is not None and r.p80 is not None]
    entries = [
        (AHEAD, "o", AHEAD, "we are ahead", any((r.p50 or 0.0) >= 1.0 for r in known)),
        (BEHIND, "s", BEHIND, "the peer is ahead", any((r.p50 or 0.0) < 1.0 for r in known)),
        (GREY, "o", "white", "hollow: within the noise",
         any((r.p20 or 0.0) <= 1.0 <= (r.p80 or 0.0) for r in doubtful)),
    ]  # fmt: skip
    handles = [
        Line2D(
            [], [], color=colour, marker=marker, markerfacecolor=face, linestyle="none", label=text
        )
        for colour, marker, face, text, there in entries
        if there
    ]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=3, fontsize=8.5, frameon=False,
        columnspacing=1.0, handletextpad=0.2,
    )  # fmt: skip
