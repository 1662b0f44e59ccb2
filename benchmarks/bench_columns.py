"""GradDrop, the trimmed mean and ExcessMTL: against the memory's floor and against TorchJD."""

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
from mtlfast import column_ops

pytestmark = pytest.mark.benchmark(disable_gc=True)

clock = time.perf_counter
FLOOR = "8. a column kernel over the floor of its reads and writes; P = 1e7, K = 4, float32"
PEERS = "9. TorchJD's aggregator over ours, its matrix ready; P = 1e7, K = 4, 2 threads"
NUM_TASKS = 4

Grads = list[list[Tensor]]
Kernel = Callable[[Grads, "list[Tensor | None]"], object]


def graddrop(task_grads: Grads, out: list[Tensor | None], leak: Tensor | None = None) -> object:
    return column_ops.graddrop(task_grads, leak=leak, rng=torch.tensor([0, 0]), out=out)


def graddrop_leak(task_grads: Grads, out: list[Tensor | None]) -> object:
    return graddrop(task_grads, out, torch.full((NUM_TASKS,), 0.25, dtype=torch.float64))


def trimmed_mean(task_grads: Grads, out: list[Tensor | None]) -> object:
    return column_ops.trimmed_mean(task_grads, 1, out=out)


# Name, call, elements read and written in units of P, target.
KERNELS: list[tuple[str, Kernel, int, float | None]] = [
    ("GradDrop", graddrop, NUM_TASKS + 1, 1.5),
    ("GradDrop, leak", graddrop_leak, NUM_TASKS + 1, None),
    ("TrimmedMean(1)", trimmed_mean, NUM_TASKS + 1, 1.5),
]


def timed(call: Callable[[], object]) -> Callable[[], float]:
    def variant() -> float:
        start = clock()
        call()
        return clock() - start

    return variant


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", KERNELS, ids=lambda case: str(case[0]))
def test_floor(
    case: tuple[str, Kernel, int, float | None],
    threads: int,
    interleaved: Interleaved,
    memory: Bandwidth,
    report: Report,
) -> None:
    torch.set_num_threads(threads)
    name, kernel, elements, target = case
    task_grads = workloads.task_gradients(NUM_TASKS, workloads.LARGE)
    out: list[Tensor | None] = [torch.empty_like(g) for g in task_grads[0]]
    # Bandwidth on both sides of ours, so that a drift within the round favours neither.
    found = interleaved(
        {
            "before": memory.best,
            "ours": timed(lambda: kernel(task_grads, out)),
            "after": memory.best,
        },
        rounds=40,
    )
    bytes_ = elements * workloads.LARGE * 4
    bandwidth = (found["before"] + found["after"]) / 2
    total, rate = statistics.median(found["ours"]), statistics.median(bandwidth)
    report.add(
        row(
            FLOOR,
            f"{name}, {threads} thread{'s' * (threads > 1)}",
            "x",
            found["ours"] * bandwidth / bytes_,
            target=target,
            others=interleaved.others,
            detail=f"{total * 1e3:.2f} ms; {bytes_ / total / 1e9:.1f} of {rate / 1e9:.1f} GB/s",
            extra={
                "seconds": found["ours"].tolist(),
                "bandwidth": {name: found[name].tolist() for name in ("before", "after")},
                "bandwidth_source": memory.source,
            },
        )
    )


@pytest.mark.parametrize("method", ["GradDrop", "TrimmedMean", "ExcessMTL"])
def test_torchjd(method: str, interleaved: Interleaved, report: Report) -> None:
    try:
        from torchjd import aggregation
    except ImportError as error:
        interleaved({"nothing": lambda: 0.0}, 1)
        report.add(Row(PEERS, method, "x", detail=f"TorchJD is missing ({error})"))
        return
    torch.manual_seed(0)
    jacobian = workloads.mixing(NUM_TASKS, 0) @ torch.randn(NUM_TASKS, workloads.LARGE)
    options: dict[str, Any] = {"trim_number": 1} if method == "TrimmedMean" else {}
    ours, peer = mtlfast.weighting.get(method, **options), getattr(aggregation, method)(**options)
    found = interleaved(
        {
            "ours": timed(lambda: mtlfast.aggregate(jacobian, ours)),
            "peer": timed(lambda: peer(jacobian)),
        },
        rounds=5,
        warmup=1,
    )
    ms = {name: statistics.median(samples) * 1e3 for name, samples in found.items()}
    report.add(
        row(
            PEERS,
            method,
            "x",
            found["peer"] / found["ours"],
            target=10 if method == "GradDrop" else None,
            at_least=True,
            others=interleaved.others,
            detail=f"{ms['peer']:.1f} ms against {ms['ours']:.1f}",
            extra={name: samples.tolist() for name, samples in found.items()},
        )
    )
