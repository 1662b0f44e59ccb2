"""The figure of the two objectives: the ways of all methods on the contour of the mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["thinned"]

POINTS = 48  # of a path in a file of results


def thinned(path: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 48 points of a path, about as far from each other, rounded to hundredths.

    Args:
        path: Points from the first to the last; those that are not finite go.
    """
    points = np.array([p for p in path if np.isfinite(p).all()])
    if not len(points):
        return []
    lengths = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    wanted = np.linspace(0.0, lengths[-1], POINTS)
    index = np.unique(
        [*np.searchsorted(lengths, wanted).clip(max=len(points) - 1), len(points) - 1]
    )
    return [(round(float(x1), 2), round(float(x2), 2)) for x1, x2 in points[index]]
