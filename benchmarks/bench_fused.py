"""The fused step against combining into ``grad`` and torch's own step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import workloads
from benchmarks.conftest import Interleaved
from benchmarks.report import Report, row
from mtlfast import ops
from mtlfast.fused import Part, Update

pytestmark = pytest.mark.benchmark(disable_gc=True)

clock = time.perf_counter
FUSED = "combine + optimizer step over the fused step; P = 1e7, 2 threads"

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], int]] = {
    "SGD with momentum": (lambda params, **x: torch.optim.SGD(params, momentum=0.9, **x), 1),
    "AdamW": (torch.optim.AdamW, 2),
}
"""And how many state tensors a parameter has."""


@pytest.mark.parametrize("num_tasks", [2, 8])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused(name: str, num_tasks: int, interleaved: Interleaved, report: Report) -> None:
    """Traffic: K + 2 + 2 S against K + 1 and torch's 3 + 2 S where it is fused, too."""
    make, num_states = OPTIMIZERS[name]
    task_grads = workloads.task_gradients(num_tasks, workloads.LARGE)
    weights = torch.rand(num_tasks, dtype=torch.float64)

    def separate(**options: Any) -> Callable[[], float]:
        params = [torch.nn.Parameter(torch.randn_like(g)) for g in task_grads[0]]
        inner = make(params, lr=1e-4, **options)
        targets: list[torch.Tensor] = list(params)

        def call() -> float:
            for param in params:
                param.grad = None
            start = clock()
            ops.combine_(targets, task_grads, weights)
            inner.step()
            return clock() - start

        return call

    params: list[torch.Tensor] = [torch.nn.Parameter(torch.randn_like(g)) for g in task_grads[0]]
    inner = make(params, lr=1e-4)
    update = Update((Part(params, task_grads, weights),))

    def fused() -> float:
        start = clock()
        update.apply(inner, None)
        return clock() - start

    found = interleaved(
        {"ours": fused, "torch, fused": separate(fused=True), "torch": separate()}, rounds=15
    )
    ours = statistics.median(found["ours"]) * 1e3
    predicted = {
        "torch, fused": (num_tasks + 4 + 2 * num_states) / (num_tasks + 2 + 2 * num_states)
    }
    for other in ("torch, fused", "torch"):
        theirs = statistics.median(found[other]) * 1e3
        expected = f"; by traffic {predicted[other]:.2f}" if other in predicted else ""
        report.add(
            row(
                FUSED,
                f"{name}, K = {num_tasks}, {other}",
                "x",
                found[other] / found["ours"],
                others=interleaved.others,
                detail=f"{theirs:.1f} ms against {ours:.1f}{expected}",
                extra={key: samples.tolist() for key, samples in found.items()},
            )
        )
