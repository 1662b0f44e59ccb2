"""How far a method's direction is from the true one: ours and the peers'.

True is what the reference finds in float64 at scale 1, which the tests certify.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

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
from mtlfast.bench.suites.solvers.call import given

__all__ = ["FIGURES", "Error", "cases", "distance", "problems", "truth"]

FIGURES = {
    "solvers/error": "distance of the direction from the true one, both of length 1; 1: none",
    "solvers/accuracy": "a peer's error over ours, none below what our tests certify",
}
SCALES = {"random": 0, "random, G x 1e-12": -20, "random, G x 1e12": 20, "uneven": 0}
"""Of the gradients, powers of two, by the kind of problem: 2^40 is 1.1e12."""
CERTIFIED = {"gramian": 1e-9, "jacobian": 1e-9, "direction": 1e-6}
"""What our tests hold a direction to, from float64 and as a float32 combined gradient."""
UNCOMPARED = ("gradnorm", "krum")
"""At first GradNorm's weights are 1 for all; TorchJD's Krum has another definition."""
OURS = {"gramian": "mtlfast", "jacobian": "mtlfast", "direction": "mtlfast, float32"}

Direction = Callable[[Tensor], Tensor]


class Error(Case):
    """One method on 16 problems of a kind."""

    figure = "solvers/error"
    rounds = 16
    warmup = 0
    passes = 1
    threads = 1

    def __init__(self, method: str, num_tasks: int, kind: str, peers: Sequence[Peer]) -> None:
        super().__init__()
        self.method = method
        self.num_tasks = num_tasks
        self.kind = kind
        self.peers = peers
        self.forms: dict[str, str] = {}  # what a contestant is called with
        self.failed: dict[str, list[str]] = {}
        self.name = f"{method}, K = {num_tasks}, {kind}"

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """A round is a problem; on the CPU, since what is compared are formulas."""
        del setting
        jacobians = problems(self.kind, self.num_tasks)
        scale = 2.0 ** SCALES[self.kind]
        inputs = [scale * jacobian for jacobian in jacobians]
        truths: dict[str | None, list[Tensor]] = {}  # by the order
        found: dict[str, Variant] = {}
        for peer in self.peers:
            try:
                weights = peer.weights(self.method, self.num_tasks)
            except Exception as error:
                self.missing[peer.name] = said(error)
                continue
            if weights is None:
                continue
            order = peer.order(self.method, self.num_tasks)
            if order is None and "order" in methods.make(self.method).inputs:
                self.missing[peer.name] = "the order that it draws is not known"
                continue
            self.forms[peer.name] = weights[0]
            key = None if order is None else str(order.tolist())
            if key not in truths:
                truths[key] = [truth(self.method, jacobian, order) for jacobian in jacobians]
            expected = truths[key]
            ours = OURS[weights[0]]
            if ours not in found:
                self.forms[ours] = weights[0]
                direction = _ours(self.method, order, weights[0] == "direction")
                found[ours] = self._errors(ours, direction, inputs, expected)
            found[peer.name] = self._errors(
                peer.name, _theirs(peer, self.method, self.num_tasks), inputs, expected
            )
        return found

    def _errors(
        self, name: str, direction: Direction, inputs: list[Tensor], expected: list[Tensor]
    ) -> Variant:
        """The error on the next problem; who fails at the first one is no contestant."""
        self.failed[name] = []
        source: Iterator[tuple[int, tuple[Tensor, Tensor]]] = enumerate(
            zip(inputs, expected, strict=True)
        )

        def variant() -> float:
            turn, (jacobian, wanted) = next(source)
            try:
                found = direction(jacobian)
            except Exception as error:
                if turn == 0:
                    raise
                self.failed[name].append(said(error))
                return 1.0
            far = distance(found, wanted)
            if far is None:
                self.failed[name].append("zero or not finite")
            return 1.0 if far is None else far

        return variant

    def rows(self, samples: Samples) -> list[Row]:
        """Everyone's error, and the peers' over ours."""
        labels = {"K": self.num_tasks, "method": self.method, "kind": self.kind}
        found = []
        names = [n for n in dict.fromkeys([*self.forms, *self.missing]) if n]
        for name in sorted(names, key=lambda n: not n.startswith("mtlfast")):
            certified = CERTIFIED[self.forms[name]] if name in OURS.values() else None
            found.append(
                self.row(
                    name,
                    samples,
                    (name,),
                    lambda errors: errors,
                    unit="",
                    target=certified,
                    detail=self._said(name),
                    others=None,
                    labels={**labels, "contestant": name},
                )
            )
        for peer in self.peers:
            if peer.name not in names:
                continue
            form = self.forms.get(peer.name, "gramian")
            least = CERTIFIED[form]
            found.append(
                self.row(
                    peer.name,
                    samples,
                    (peer.name, OURS[form]),
                    lambda theirs, ours, least=least: (
                        np.maximum(theirs, least) / np.maximum(ours, least)
                    ),
                    figure="solvers/accuracy",
                    versus=peer.name,
                    detail=self._said(peer.name),
                    others=None,
                    labels={**labels, "contestant": peer.name},
                )
            )
        return found

    def _said(self, name: str) -> str:
        """Why there is no direction, and what a peer computes instead."""
        texts = [peer.difference(self.method) for peer in self.peers if peer.name == name]
        failed = self.failed.get(name)
        if failed:
            texts.insert(0, f"no direction in {len(failed)} of {self.rounds}: {failed[0]}")
        return "; ".join(text for text in texts if text)


def problems(kind: str, num_tasks: int) -> list[Tensor]:
    """16 Jacobians ``[K, 2K]`` at scale 1, float64 and exact in float32."""
    found = workloads.jacobians(num_tasks)
    if kind == "uneven":  # lengths over four decades
        lengths = torch.logspace(-2, 2, num_tasks, dtype=torch.float64)[:, None]
        found = [lengths * jacobian for jacobian in found]
    return [jacobian.float().double() for jacobian in found]


def truth(method: str, jacobian: Tensor, order: Tensor | None) -> Tensor:
    """``[P]`` float64: the reference's direction."""
    with ops.use_backend("reference"):
        return _ours(method, order, False)(jacobian)


def distance(found: Tensor, expected: Tensor) -> float | None:
    """Between their unit vectors; None where ``found`` is no direction."""
    found = found.detach().double()
    length = float(found.abs().max())
    if not np.isfinite(length) or length == 0.0:
        return None
    found = found / length  # its square may not exist
    return float((found / found.norm() - expected / expected.norm()).norm())


def _ours(method: str, order: Tensor | None, in_float32: bool) -> Direction:
    """By a fresh method each time: some have a state."""
    inputs = {} if order is None else {"order": order}

    def direction(jacobian: Tensor) -> Tensor:
        # A peer that skips its own gradient has it first in its order, where it changes nothing.
        whole = method == "pcgrad"
        weighting = mtlfast.PCGrad(include_self=True) if whole else methods.make(method)
        losses = torch.ones(len(jacobian), dtype=torch.float64) if weighting.needs_losses else None
        if in_float32:
            combined: Tensor = mtlfast.aggregate(jacobian.float(), weighting, losses, **inputs)
            return combined
        return weighting(jacobian @ jacobian.T, losses, **inputs) @ jacobian

    return direction


def _theirs(peer: Peer, method: str, num_tasks: int) -> Direction:
    def direction(jacobian: Tensor) -> Tensor:
        weights = peer.weights(method, num_tasks)
        assert weights is not None
        form, call = weights
        (seen,) = given(form, [jacobian], jacobian.device)
        peer.seed()
        found = torch.as_tensor(call(seen))
        return found if form == "direction" else found.double() @ jacobian

    return direction


def cases(setting: Setting) -> Sequence[Case]:
    """What some peer has, on every kind of problem; its own K for LibMTL's CAGrad."""
    peers = wanted(setting)
    if not peers:
        return []
    kinds = list(SCALES)[:2] if setting.quick else list(SCALES)
    pairs = [(name, k) for k in setting.choose_tasks(8, quick=(8,)) for name in methods.names()]
    found = [
        Error(name, num_tasks, kind, peers)
        for name, num_tasks in pairs
        if name not in UNCOMPARED and any(_has(peer, name, num_tasks) for peer in peers)
        for kind in kinds
    ]
    if not setting.tasks:
        libmtl = [peer for peer in peers if peer.name == "LibMTL"]
        found += [Error("cagrad", 3, kind, libmtl) for kind in kinds if libmtl]
    return found


def _has(peer: Peer, method: str, num_tasks: int) -> bool:
    """A peer that cannot be asked has it, so that it is named as missing."""
    try:
        return peer.weights(method, num_tasks) is not None
    except Exception:
        return True
