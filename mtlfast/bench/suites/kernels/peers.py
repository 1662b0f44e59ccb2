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
    "pcgrad": ((4, 8), workloads.LARGE),
    "cagrad": ((4, 8), workloads.LARGE),
    "nash_mtl": ((8,), workloads.LARGE),
    "upgrad": ((8,), workloads.LARGE),
    "config": ((8,), workloads.LARGE // 10),  # its peers decompose the matrix: seconds at 1e7
}
"""Numbers of tasks, and of parameters."""

MAIN = ("pcgrad", "cagrad")  # in quick runs, and where overhead decides, too
TARGETS = {4: 2.0, 8: 3.0}  # of TorchJD's best mode, by K
FAST = ("TorchJD", "torch")  # of large gradients; the others take up to a hundred times longer


def cases(setting: Setting) -> Sequence[Case]:
    """The large ones first."""
    found: list[Case] = []
    for method, (usual, elements) in METHODS.items():
        if method in MAIN or not setting.quick:
            for num_tasks in setting.choose_tasks(*usual):
                for total in setting.choose_params(elements):
                    found += _large(setting, num_tasks, total, method)
    if setting.params is None:
        for method in MAIN:
            for num_tasks in setting.choose_tasks(4):
                small = Contest(setting, num_tasks, workloads.SMALL, method)
                small.rounds, small.turn = 60, 0.0
                found.append(small)
    return found


def _large(setting: Setting, num_tasks: int, total: int, method: str) -> list[Contest]:
    """The fast peers in many rounds, the slow ones in few; those not at all in a quick run."""
    fast = Contest(setting, num_tasks, total, method, takes=FAST.__contains__)
    if fast.measured_before and method in MAIN and num_tasks in TARGETS:
        fast.targets = {"TorchJD": TARGETS[num_tasks]}
    if method not in MAIN:
        fast.rounds = 10
    if setting.quick:
        return [fast]
    slow = Contest(setting, num_tasks, total, method, takes=lambda name: name not in FAST)
    slow.rounds, slow.warmup = 5, 0  # the check of the results warmed them up
    slow.tells_ours = False
    return [fast, slow]
