"""Numbers as text."""

from __future__ import annotations

import math

__all__ = ["three"]


def three(value: float) -> str:
    """Three significant digits without an exponent: 2.94, 41.2, 0.0451, 4410."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.2e}")
    return f"{rounded:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"
