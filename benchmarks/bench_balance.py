"""Gramian + solve + combine: against the memory's floor, against TorchJD, and where it is small."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mtlfast
from benchmarks import workloads
from benchmarks.bandwidth import Bandwidth
from benchmarks.conftest import Interleaved
from benchmarks.report import Report, Row, row
from mtlfast import ops

pytestmark = pytest.mark.benchmark(disable_gc=True)

clock = time.perf_counter
FLOOR = "1. gramian + solve + combine over the floor of (2K+1) P elements; P = 1e7, 2 threads"
PEERS = "2. TorchJD's jac_to_grad over ours; same gradients into empty .grad, P = 1e7, 2 threads"
TINY = "3. gramian + solve + combine where overhead decides; P = 1e5, K = 4, 2 threads"
TARGETS = {2: 1.15, 4: 1.15, 8: 1.25, 16: 1.45}


class Balance:
    """One balancing of K task gradients into given tensors, with the time of each part."""

    def __init__(self, task_grads: list[list[Tensor]], weighting: mtlfast.Weighting) -> None:
        self.task_grads = task_grads
        self.weighting = weighting
        self.out: list[Tensor | None] = [torch.empty_like(g) for g in task_grads[0]]
        self.parts: list[tuple[float, float, float]] = []

    def __call__(self) -> float:
        t0 = clock()
        gramian = ops.gramian(self.task_grads)
        t1 = clock()
        weights = self.weighting(gramian)
        t2 = clock()
        ops.combine(self.task_grads, weights, self.out)
        t3 = clock()
        self.parts.append((t1 - t0, t2 - t1, t3 - t2))
        return t3 - t0

    def median_parts(self, rounds: int) -> tuple[float, float, float]:
        gramian, solve, combine = zip(*self.parts[-rounds:], strict=True)
        return statistics.median(gramian), statistics.median(solve), statistics.median(combine)


@pytest.mark.parametrize("num_tasks", [2, 4, 8, 16])
def test_floor(num_tasks: int, interleaved: Interleaved, memory: Bandwidth, report: Report) -> None:
    rounds = 40
    ours = Balance(workloads.task_gradients(num_tasks, workloads.LARGE), mtlfast.CAGrad())
    # Bandwidth on both sides of ours, so that a drift within the round favours neither.
    found = interleaved({"before": memory.best, "ours": ours, "after": memory.best}, rounds)
    bytes_ = (2 * num_tasks + 1) * workloads.LARGE * 4
    bandwidth = (found["before"] + found["after"]) / 2
    gramian, solve, combine = ours.median_parts(rounds)
    total, rate = statistics.median(found["ours"]), statistics.median(bandwidth)
    report.add(
        row(
            FLOOR,
            f"K = {num_tasks}, CAGrad",
            "x",
            found["ours"] * bandwidth / bytes_,
            target=TARGETS[num_tasks],
            others=interleaved.others,
            detail=f"{total * 1e3:.2f} ms = gramian {gramian * 1e3:.2f} + solve {solve * 1e3:.3f} "
            f"+ combine {combine * 1e3:.2f}; {bytes_ / total / 1e9:.1f} of {rate / 1e9:.1f} GB/s",
            extra={
                "seconds": found["ours"].tolist(),
                "bandwidth": {name: found[name].tolist() for name in ("before", "after")},
                "bandwidth_source": memory.source,
                "parts": {"gramian": gramian, "solve": solve, "combine": combine},
            },
        )
    )


def ours_into_grad(
    params: list[Tensor], task_grads: list[list[Tensor]], weighting: mtlfast.Weighting
) -> Callable[[], float]:
    """Our side of the comparison, into empty ``.grad`` as after ``zero_grad``."""

    def call() -> float:
        for param in params:
            param.grad = None
        start = clock()
        weights = weighting(ops.gramian(task_grads))
        ops.combine_(params, task_grads, weights)
        return clock() - start

    return call


def torchjd_into_grad(
    params: list[Tensor], jacobians: list[Tensor], aggregator: Any, optimized: bool
) -> Callable[[], float]:
    """TorchJD's side: ``.jac`` is filled before the clock starts."""
    from torchjd.autojac import jac_to_grad

    def call() -> float:
        for param, jacobian in zip(params, jacobians, strict=True):
            param.grad = None
            param.jac = jacobian  # type: ignore[attr-defined]
        start = clock()
        jac_to_grad(params, aggregator, optimize_gramian_computation=optimized)
        return clock() - start

    return call


def difference(
    params: list[Tensor], task_grads: list[list[Tensor]], weighting: mtlfast.Weighting, peer: Any
) -> float:
    """How far TorchJD's gradient is from ours, by its own call and the same random orders."""
    num_tasks = len(task_grads)
    torch.manual_seed(1)
    order = torch.stack([torch.randperm(num_tasks) for _ in range(num_tasks)])
    gramian = ops.gramian(task_grads)
    inputs = {"order": order} if "order" in weighting.inputs else {}
    expected = ops.combine(task_grads, weighting(gramian, **inputs))
    torch.manual_seed(1)
    peer()
    found = [param.grad for param in params]
    return workloads.relative_difference(
        (grad for grad in found if grad is not None), (d for d in expected if d is not None)
    )


@pytest.mark.parametrize("num_tasks", [4, 8])
@pytest.mark.parametrize("method", ["PCGrad", "CAGrad"])
def test_torchjd(num_tasks: int, method: str, interleaved: Interleaved, report: Report) -> None:
    case = f"{method}, K = {num_tasks}"
    try:
        from torchjd import aggregation
    except ImportError as error:
        interleaved({"nothing": lambda: 0.0}, 1)
        report.add(Row(PEERS, case, "x", detail=f"TorchJD is missing ({error})"))
        return
    task_grads = workloads.task_gradients(num_tasks, workloads.LARGE)
    jacobians = [torch.stack(block) for block in zip(*task_grads, strict=True)]
    params = [torch.zeros_like(g, requires_grad=True) for g in task_grads[0]]
    # Same normalisation: TorchJD's CAGrad is ours with rescale=0 and reduction="mean".
    weighting, aggregator = {
        "PCGrad": (mtlfast.PCGrad(), aggregation.PCGrad()),
        "CAGrad": (mtlfast.CAGrad(c=0.5), aggregation.CAGrad(c=0.5)),
    }[method]
    best = torchjd_into_grad(params, jacobians, aggregator, optimized=True)
    error_ = difference(params, task_grads, weighting, best)
    found = interleaved(
        {
            "ours": ours_into_grad(params, task_grads, weighting),
            "best": best,
            "default": torchjd_into_grad(params, jacobians, aggregator, optimized=False),
        },
        rounds=20,
    )
    ms = {name: statistics.median(samples) * 1e3 for name, samples in found.items()}
    common: dict[str, Any] = {
        "others": interleaved.others,
        "extra": {name: samples.tolist() for name, samples in found.items()},
    }
    report.add(
        row(
            PEERS,
            f"{case}, its best mode",
            "x",
            found["best"] / found["ours"],
            target={4: 2.0, 8: 3.0}[num_tasks],
            at_least=True,
            detail=f"{ms['best']:.1f} ms against {ms['ours']:.1f}; results differ by {error_:.1e}",
            **common,
        ),
        row(
            PEERS,
            f"{case}, its default mode",
            "x",
            found["default"] / found["ours"],
            detail=f"{ms['default']:.1f} ms against {ms['ours']:.1f}",
            **common,
        ),
    )
    assert error_ < 1e-3, "not the same computation: the comparison would mean nothing"


def test_small(interleaved: Interleaved, report: Report) -> None:
    calls, rounds = 50, 100
    # One set of gradients for both methods: apart, a drift would pass for a difference.
    task_grads = workloads.task_gradients(4, workloads.SMALL)
    ours = {
        "PCGrad": Balance(task_grads, mtlfast.PCGrad()),
        "CAGrad": Balance(task_grads, mtlfast.CAGrad()),
    }

    def mean_of(balance: Balance) -> Callable[[], float]:
        return lambda: sum(balance() for _ in range(calls)) / calls

    found = interleaved({name: mean_of(balance) for name, balance in ours.items()}, rounds)
    for name, balance in ours.items():
        gramian, solve, combine = (part * 1e6 for part in balance.median_parts(calls * rounds))
        report.add(
            row(
                TINY,
                name,
                "us",
                found[name] * 1e6,
                target=80,
                others=interleaved.others,
                detail=f"gramian {gramian:.1f} + solve {solve:.1f} + combine {combine:.1f}",
                extra={"seconds": found[name].tolist()},
            )
        )
