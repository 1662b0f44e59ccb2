"""The call of a method on a Gramian, on one thread, as a user makes it; beside the peers'."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mtlfast
from mtlfast import ops
from mtlfast.bench import methods, workloads
from mtlfast.bench.case import Case, Samples, Variant
from mtlfast.bench.peers import Peer, wanted
from mtlfast.bench.rows import Row
from mtlfast.bench.runner import said
from mtlfast.bench.setting import Setting

__all__ = ["FIGURES", "Call", "cases", "given"]

FIGURES = {
    "solvers/call": "whole call of a method on a Gramian, one thread, mean over 16 Gramians",
    "solvers/solve": "ops.solve alone",
    "solvers/aggregate": "mtlfast.aggregate of a float32 Jacobian [K, 2K]",
    "solvers/peers": "a peer's call over ours, one thread: on a Gramian, or with aggregate",
    "solvers/peer calls": "the peers' calls",
}
TARGETS = {2: 10, 8: 60, 40: 2000}
STRICTER = {"pcgrad": {2: 5, 8: 20, 40: 400}, "cagrad": {2: 10, 8: 40, 40: 1500}}
OPTIONS = {"pcgrad": (0.0, 0.0), "cagrad": (0.5, 0.0, 0.0)}  # the methods' defaults
SLOW = (
    "cagrad",
    "dualproj",
    "fairgrad",
    "gradvac",
    "mgda",
    "nash_mtl",
    "pcd",
    "pcgrad",
    "upgrad",
)
"""Where TorchJD calls quadprog, cvxpy or scipy, or loops in Python."""
FASTER = 10  # than those at K = 8, at least so many times
OURS, SOLVE, WHOLE = "mtlfast", "ops.solve", "mtlfast.aggregate"
PEER_SECONDS = 0.02  # of a sample, where one call does not take longer


class Call(Case):
    """One method at one number of tasks."""

    figure = "solvers/call"
    rounds = 40
    threads = 1

    def __init__(self, method: str, num_tasks: int, peers: Sequence[Peer] = ()) -> None:
        super().__init__()
        self.method = method
        self.num_tasks = num_tasks
        self.peers = peers
        self.beside: dict[str, str] = {}  # which of ours does the same as a peer's call
        self.on_cpu = True
        self.name = f"{method}, K = {num_tasks}"
        if num_tasks > 16 and peers:
            self.rounds = 16

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Every contestant goes through the same 16 problems, the slow ones from round to round."""
        device = setting.device
        self.on_cpu = device.type == "cpu"
        weighting = methods.make(self.method)
        gramians = [g.to(device) for g in methods.gramians(weighting, self.num_tasks)]
        calls = len(gramians) * (1 if self.num_tasks > 16 else 20)
        whole = methods.weights_of(weighting, self.num_tasks, device)
        variants = {OURS: mean_of(whole, gramians, calls, device)}
        if self.method in OPTIONS:
            rng = torch.tensor([0, 0], device=device) if self.method == "pcgrad" else None
            options = OPTIONS[self.method]
            variants[SOLVE] = mean_of(
                lambda g: ops.solve(self.method, g, options=options, rng=rng),
                gramians,
                calls,
                device,
            )
        for peer in self.peers:
            try:
                found = peer.weights(self.method, self.num_tasks)
                if found is None:
                    continue
                kind, theirs = found
                self.beside[peer.name] = WHOLE if kind == "direction" else OURS
                inputs = given(kind, workloads.jacobians(self.num_tasks), device)
                theirs(inputs[0])  # the first call of all may import and compile
                start = time.perf_counter()
                theirs(inputs[0])
                some = round(PEER_SECONDS / (time.perf_counter() - start))
                some = max(1, min(some, 4 * len(inputs)))
                variants[peer.name] = mean_of(theirs, inputs, some, device)
            except Exception as error:
                self.missing[peer.name] = said(error)
        if any(name in variants and ours == WHOLE for name, ours in self.beside.items()):
            inputs = given("direction", workloads.jacobians(self.num_tasks), device)
            variants[WHOLE] = mean_of(self._aggregate(device), inputs, calls, device)
        return variants

    def _aggregate(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        weighting = methods.make(self.method)
        losses = None
        if weighting.needs_losses:
            losses = torch.ones(self.num_tasks, dtype=torch.float64, device=device)
        return lambda jacobian: mtlfast.aggregate(jacobian, weighting, losses)

    def rows(self, samples: Samples) -> list[Row]:
        """Ours in microseconds, and each peer's over ours."""
        labels = {"K": self.num_tasks, "method": self.method}
        targets = STRICTER.get(self.method, TARGETS) if self.on_cpu else {}
        shown = [(self.figure, OURS, targets.get(self.num_tasks))]
        if self.method in OPTIONS:
            shown.append(("solvers/solve", SOLVE, targets.get(self.num_tasks)))
        if WHOLE in samples:
            shown.append(("solvers/aggregate", WHOLE, None))
        found = [
            self.row(
                "",
                samples,
                (name,),
                lambda seconds: seconds * 1e6,
                unit="us",
                figure=figure,
                target=target,
                labels={**labels, "contestant": name},
            )
            for figure, name, target in shown
        ]
        for peer in self.peers:
            if peer.name in samples or peer.name in self.missing:
                found += self._beside(peer, samples, {**labels, "contestant": peer.name})
        return found

    def _beside(self, peer: Peer, samples: Samples, labels: Mapping[str, Any]) -> list[Row]:
        bound = peer.name == "TorchJD" and self.method in SLOW and self.num_tasks == 8
        differs = peer.difference(self.method)
        beside = self.beside.get(peer.name, OURS)

        def detail() -> str:
            theirs, ours = (statistics.median(samples[n]) * 1e6 for n in (peer.name, beside))
            text = f"{theirs:.0f} us against {ours:.1f}"
            return f"{text}; {differs}" if differs else text

        ratio = self.row(
            peer.name,
            samples,
            (peer.name, beside),
            np.divide,
            figure="solvers/peers",
            target=FASTER if bound and self.on_cpu else None,
            at_least=True,
            versus=peer.name,
            detail=detail,
            labels=labels,
        )
        alone = self.row(
            peer.name,
            samples,
            (peer.name,),
            lambda seconds: seconds * 1e6,
            unit="us",
            figure="solvers/peer calls",
            detail=differs,
            labels=labels,
        )
        return [ratio, alone]


def mean_of(
    call: Callable[[Tensor], Any], inputs: list[Tensor], calls: int, device: torch.device
) -> Variant:
    """Mean time of so many calls; the next sample goes on where the last one ended."""
    source = cycle(inputs)

    def variant() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call(next(source))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / calls

    return variant


def given(kind: str, jacobians: list[Tensor], device: torch.device) -> list[Tensor]:
    """What a peer's weights are called with."""
    if kind == "gramian":
        return [(jacobian @ jacobian.T).to(device) for jacobian in jacobians]
    dtype = torch.float32 if kind == "direction" else torch.float64
    return [jacobian.to(device, dtype) for jacobian in jacobians]


def cases(setting: Setting) -> Sequence[Case]:
    """Every method; the peers at K = 8 and 40, and at what is asked for."""
    peers = wanted(setting)
    found = [
        Call(name, num_tasks, peers if setting.tasks or num_tasks > 2 else ())
        for num_tasks in setting.choose_tasks(2, 8, 40, quick=(8,))
        for name in methods.names()
    ]
    if not setting.tasks:  # LibMTL's runs for no other K
        found.append(Call("cagrad", 3, [peer for peer in peers if peer.name == "LibMTL"]))
    return found
