"""Ours against every mode of every peer, on the same gradients into empty ``.grad``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlfast import ops
from mtlfast.bench import methods, workloads
from mtlfast.bench.case import Samples, Variant, timed
from mtlfast.bench.peers import Into, Peer, wanted
from mtlfast.bench.rows import Row
from mtlfast.bench.runner import said
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels.balance import Sized

__all__ = ["OURS", "Contest", "Contestant", "balance"]

OURS = "mtlfast"
SAME = 1e-2  # relative; a product of float32 matrices alone is off by up to 8e-3 at P = 2.5e7
ROUNDINGS = 8  # of a type as coarse as that

Call = Callable[[], object]


@dataclass(frozen=True)
class Contestant:
    """One mode of a peer that computes what we do.

    Attributes:
        peer: Its name.
        mode: Of the peer.
        difference: Of its gradient from ours, relative.
    """

    peer: str
    mode: str
    difference: float = 0.0


def balance(weighting: Any, into: Into, **inputs: Tensor) -> Call:
    """Ours, from task gradients to ``.grad``, as the optimizer makes it."""
    params, rows = into.params, into.task_grads
    if weighting.family == "column":
        return lambda: weighting.combine_(params, rows, **inputs)
    if weighting.needs_gramian:
        return lambda: ops.combine_(params, rows, weighting(ops.gramian(rows), **inputs))
    losses = torch.ones(len(rows), dtype=torch.float64, device=rows[0][0].device)

    def of_elements() -> None:
        moved = weighting.transform(rows, losses)
        weighting.combine_(params, moved, weighting(None, losses, **inputs))

    return of_elements


class Contest(Sized):
    """One method at one size.

    All see the same gradients in every round, so a peer whose solver starts from its last solution
    has the best of cases. A contestant whose gradient is not ours is named and not timed.

    Args:
        figures: Of the ratios, and of the times.
        targets: Least ratios, by the name of the peer; of every mode, hence of its best.
        takes: Which peers take part; default: all.

    Attributes:
        tells_ours: Whether our own time is among the rows.
    """

    rounds = 15
    warmup = 1
    turn = 0.1

    def __init__(
        self,
        setting: Setting,
        num_tasks: int,
        total: int,
        method: str,
        figures: tuple[str, str] = ("kernels/peers", "kernels/peers-time"),
        targets: Mapping[str, float] | None = None,
        takes: Callable[[str], bool] = lambda _: True,
    ) -> None:
        super().__init__(setting, num_tasks, total, method, method=method)
        self.figure, self.figure_of_times = figures
        self.method = method
        self.targets = targets or {}
        self.takes = takes
        self.tells_ours = True
        self.contestants: dict[str, Contestant] = {}
        self.calls = max(1, min(3, workloads.LARGE // 10 // total))

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Ours, and the contestants that agree with it."""
        into = Into(self.gradients())
        ours = balance(methods.make(self.method), into)
        found = {OURS: self._turn(into.clear, ours)}
        for peer in filter(lambda peer: self.takes(peer.name), wanted(setting)):
            try:
                modes = peer.balances(self.method, into)
            except Exception as error:
                self._fail(Contestant(peer.name, ""), said(error))
                continue
            for mode, (before, call) in modes.items():
                try:
                    difference = self._difference(peer, into, before, call)
                except Exception as error:
                    self._fail(Contestant(peer.name, mode), said(error))
                    continue
                entry = Contestant(peer.name, mode, difference)
                if difference <= max(SAME, ROUNDINGS * torch.finfo(self.dtype).eps):
                    name = self._enter(entry)
                    found[name] = self._turn(before, call)
                else:
                    reason = peer.difference(self.method, mode)
                    why = f" ({reason})" if reason else ""
                    self._fail(entry, f"computes something else: {difference:.1e} from ours{why}")
        into.clear()
        return found

    def rows(self, samples: Samples) -> list[Row]:
        """For every contestant its time over ours, then everyone's milliseconds."""
        ratios, times = [], []
        if self.tells_ours:
            labels = self._labels(OURS, "")
            times.append(self.duration(OURS, samples, self.figure_of_times, OURS, labels=labels))
        for name, entry in self.contestants.items():
            labels = self._labels(entry.peer, entry.mode)

            def says(name: str = name, entry: Contestant = entry) -> str:
                theirs, ours = (statistics.median(samples[n]) * 1e3 for n in (name, OURS))
                text = f"{theirs:.3g} ms against {ours:.3g}"
                return f"{text}; results differ by {entry.difference:.1e}"

            ratios.append(
                self.row(
                    name,
                    samples,
                    (name, OURS),
                    lambda theirs, ours: theirs / ours,
                    detail=says,
                    target=self.targets.get(entry.peer),
                    at_least=True,
                    versus=entry.peer,
                    labels=labels,
                )
            )
            times.append(self.duration(name, samples, self.figure_of_times, name, labels=labels))
        return ratios + times

    def _labels(self, contestant: str, mode: str) -> dict[str, str | int | float]:
        return {**self.labels, "contestant": contestant, "mode": mode}

    def _enter(self, entry: Contestant) -> str:
        name = f"{entry.peer}, {entry.mode}" if entry.mode else entry.peer
        self.contestants[name] = entry
        return name

    def _fail(self, entry: Contestant, why: str) -> None:
        self.missing[self._enter(entry)] = why

    def _turn(self, before: Call, call: Call) -> Variant:
        once = timed(call, self.device)

        def variant() -> float:
            seconds = 0.0
            for _ in range(self.calls):
                before()
                seconds += once()
            return seconds / self.calls

        return variant

    def _difference(self, peer: Peer, into: Into, before: Call, call: Call) -> float:
        """Of its first gradient from that of a new weighting, by the same random numbers."""
        before()
        peer.seed()
        call()
        found = [param.grad for param in into.params]
        into.clear()
        order = peer.order(self.method, self.num_tasks)
        options = {"include_self": True} if self.method == "pcgrad" and order is not None else {}
        weighting = methods.make(self.method, **options)
        inputs = {} if order is None else {"order": order.to(self.device)}
        peer.seed()
        if "uniform" in weighting.inputs:
            inputs["uniform"] = torch.rand(self.total, dtype=self.dtype, device=self.device)
        balance(weighting, into, **inputs)()
        expected = [param.grad for param in into.params]
        into.clear()
        if any(grad is None for grad in found):
            raise ValueError("expected every .grad to be filled, found None")
        return workloads.relative_difference(
            (grad for grad in found if grad is not None),
            (grad for grad in expected if grad is not None),
        )
