"""The pictures of a report, each drawn only where its rows are there.

Every PNG carries a digest of the rows that it shows, so that a stale one is found without comparing
pixels.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mtlfast.bench.plots import bars, contour, lines, peers, style
from mtlfast.bench.plots.style import Plot, digest, digest_of
from mtlfast.bench.rows import Report

__all__ = ["digest", "digest_of", "digests", "draw"]


def draw(
    report: Report, folder: Path, *, prefix: str = "", names: Collection[str] | None = None
) -> list[Path]:
    """Writes the report's pictures as PNG and returns their paths.

    Args:
        report: The results.
        folder: Where the files go; it is made where it is not there.
        prefix: Of the files' names.
        names: Of the pictures to draw, as :func:`digests` has them; None for all.

    Raises:
        OSError: A file cannot be written.
    """
    found: list[Path] = []
    for plot in _plots(report):
        rows = plot.rows(report)
        if not rows or (names is not None and plot.name not in names):
            continue
        path = folder / f"{prefix}{plot.name}.png"
        style.save(plot.draw(rows, report), path, rows, report)
        found.append(path)
    return found


def digests(report: Report) -> dict[str, str]:
    """By the names of the pictures that the report has rows for, the digests of these rows."""
    return {plot.name: digest(rows) for plot in _plots(report) if (rows := plot.rows(report))}


BARS = (bars.ENGINES, bars.MEMORY, bars.BREAKDOWN)
PATHS = (contour.KNOWN, contour.ALL, contour.CAGRAD)


def _plots(report: Report) -> list[Plot]:
    return [lines.FLOOR, lines.GROWTH, lines.TENSORS, *peers.plots(report), *BARS, *PATHS]
