"""The suite of the K x K solvers: what a method's call on a Gramian takes, and how exact it is."""

from __future__ import annotations

from collections.abc import Sequence

from mtlfast.bench.case import Case
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.solvers import call, error

__all__ = ["FIGURES", "cases"]

FIGURES = {**call.FIGURES, **error.FIGURES}


def cases(setting: Setting) -> Sequence[Case]:
    """All of them; errors need no quiet machine and come last."""
    return [*call.cases(setting), *error.cases(setting)]
