"""The way of a training through the plane, kept small: as labels of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mtlfast.bench.rows import Label, Row

__all__ = ["Path2", "path_labels", "paths_of", "thinned"]

POINTS = 48  # of a path in a file of results

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
