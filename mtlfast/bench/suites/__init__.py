"""The suites: one module or package each.

A suite has ``FIGURES``, the title of each of its figures by name, and either ``cases(setting)``,
which lists what the runner measures, or ``run(setting, progress)``, which returns rows itself.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

from mtlfast.bench.case import Case
from mtlfast.bench.rows import Row
from mtlfast.bench.runner import Progress, measure
from mtlfast.bench.setting import Setting

__all__ = ["SUITES", "cases", "run", "titles"]

SUITES = {
    "kernels": "Gramian, combination and column kernels over given task gradients",
    "solvers": "the call of a method on a Gramian",
    "step": "a whole training step: engines, peers, and where its time goes",
    "memory": "peak memory of a training step",
    "quality": "what the methods reach on three jobs",
}


def run(name: str, setting: Setting, progress: Progress) -> list[Row]:
    """Runs a suite and returns its rows."""
    module = _module(name)
    if hasattr(module, "run"):
        found: list[Row] = module.run(setting, progress)
        return found
    return measure(cases(name, setting), setting, progress)


def cases(name: str, setting: Setting) -> Sequence[Case]:
    """The cases of a suite that are asked for, none if it runs by itself."""
    module = _module(name)
    found: Sequence[Case] = module.cases(setting) if hasattr(module, "cases") else ()
    return [case for case in found if re.search(setting.only, f"{case.figure}: {case.name}")]


def titles(name: str) -> dict[str, str]:
    """What the figures of a suite show, by their names."""
    found: dict[str, str] = _module(name).FIGURES
    return dict(found)


def _module(name: str) -> Any:
    if name not in SUITES:
        raise ValueError(f"suite: expected one of {', '.join(SUITES)}, found {name!r}")
    return importlib.import_module(f"mtlfast.bench.suites.{name}")
