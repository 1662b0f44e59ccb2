"""The suite of whole training steps: engines, peers, methods, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlfast.bench.case import Case
from mtlfast.bench.contestants import Make
from mtlfast.bench.models import MODELS, small, tiny
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.step import breakdown, cost, exact, methods, training

__all__ = ["FIGURES", "MAKERS", "cases"]

FIGURES = {
    **training.FIGURES,
    **exact.FIGURES,
    **methods.FIGURES,
    **breakdown.FIGURES,
    **cost.FIGURES,
}

MAKERS: Mapping[str, Make] = {**MODELS, "small MLP": small, "tiny MLP": tiny}


def cases(setting: Setting, makers: Mapping[str, Make] = MAKERS) -> Sequence[Case]:
    """All of them, the tiny model's first; sizes P are those of the models.

    Args:
        setting: Of the run.
        makers: The models by their names here, to try the suite on smaller ones.
    """
    found: list[Case] = []
    names = [name for name in MODELS if name == "MLP" or not setting.quick]
    chosen = [(name, count) for name in names for count in setting.choose_tasks(2, 4, 8)]
    small = [("tiny MLP", count) for count in setting.choose_tasks(2, quick=(2,))]
    found += [training.Training(name, count, makers[name]) for name, count in [*small, *chosen]]
    found += [
        training.Others(name, count, makers[name])
        for name, count in [*small, *chosen]
        if name in ("MLP", "tiny MLP") or count == 4 or setting.tasks
    ]
    found += [exact.Exact(name, count, makers[name]) for name, count in chosen]
    for count in setting.choose_tasks(4, 8):
        of_peers = methods.of_peers(setting, count)
        few = setting.quick or (count == 8 and setting.tasks is None)
        found += [
            methods.Method(name, "small MLP", count, makers["small MLP"])
            for name in of_peers
            if not few or name in methods.FEW
        ]
    found += [
        breakdown.Breakdown(name, count, makers[name])
        for name, count in [*small, *chosen]
        if name in ("MLP", "tiny MLP") or count == 4 or setting.tasks
    ]
    found += [
        cost.Cost(name, count, makers[name])
        for name in ("tiny MLP", "MLP")
        for count in setting.choose_tasks(4)
        if name == "tiny MLP" or not setting.quick
    ]
    # Cheap ones first: what a large one takes beyond its share of a budget, they would lack.
    return sorted(found, key=lambda case: not case.name.startswith("tiny MLP"))
