"""The suite of the kernels: Gramian, combination and column kernels over given task gradients."""

from __future__ import annotations

from collections.abc import Sequence

from mtlfast.bench.case import Case
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels import floor

__all__ = ["FIGURES", "cases"]

FIGURES = {**floor.FIGURES}


def cases(setting: Setting) -> Sequence[Case]:
    """All of them, the most important first."""
    return [*floor.cases(setting)]
