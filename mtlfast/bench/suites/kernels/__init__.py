"""The suite of the kernels: Gramian, combination and column kernels over given task gradients."""

from __future__ import annotations

from collections.abc import Sequence

from mtlfast.bench.case import Case
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels import added, columns, floor, fused, growth, peers, sketch, small

__all__ = ["FIGURES", "cases"]

MODULES = (floor, peers, growth, small, added, columns, fused, sketch)

FIGURES = {figure: title for module in MODULES for figure, title in module.FIGURES.items()}


def cases(setting: Setting) -> Sequence[Case]:
    """All of them, the most important first."""
    return [case for module in MODULES for case in module.cases(setting)]
