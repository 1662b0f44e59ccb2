"""Ours against the peers: methods of the Gramian, large and small."""

from __future__ import annotations

from collections.abc import Sequence

from mtlfast.bench import workloads
from mtlfast.bench.case import Case
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels.contest import Contest

__all__ = ["FIGURES", "cases"]

FIGURES = {
    "kernels/peers": "a peer's time over ours: the same gradients into empty .grad",
    "kernels/peers-time": "everyone's time of it",
}
METHODS = {
    "pcgrad": (4, 8),
    "cagrad": (4, 8),
    "nash_mtl": (8,),
    "upgrad": (8,),
    "config": (8,),
}
"""And numbers of tasks; the first two also where overhead decides."""

QUICK = SMALL = ("pcgrad", "cagrad")
TARGETS = {4: 2.0, 8: 3.0}  # of TorchJD's best mode, by K


def cases(setting: Setting) -> Sequence[Case]:
    """The large ones first."""
    found: list[Case] = []
    for method, usual in METHODS.items():
        if setting.quick and method not in QUICK:
            continue
        for num_tasks in setting.choose_tasks(*usual):
            for total in setting.choose_params(workloads.LARGE):
                contest = Contest(setting, num_tasks, total, method)
                if contest.measured_before and method in QUICK and num_tasks in TARGETS:
                    contest.targets = {"TorchJD": TARGETS[num_tasks]}
                if method == "config":
                    contest.rounds = 4  # the others take seconds
                found.append(contest)
    if setting.params is None:
        for method in SMALL:
            for num_tasks in setting.choose_tasks(4):
                contest = Contest(setting, num_tasks, workloads.SMALL, method)
                contest.rounds = 60
                found.append(contest)
    return found
