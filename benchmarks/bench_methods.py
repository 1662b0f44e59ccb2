"""What a method adds to its two passes over the gradients: next to nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import methods, workloads
from benchmarks.conftest import Interleaved
from benchmarks.report import Report, row
from mtlfast import ops

pytestmark = pytest.mark.benchmark(disable_gc=True)

FIGURE = "7. gramian + solve + combine over gramian + combine; P = 1e7, K = 8, 2 threads"
NUM_TASKS = 8
TARGET = 1.05


def two_passes(
    task_grads: list[list[Tensor]],
    out: list[Tensor | None],
    weights: Callable[[Tensor], Tensor],
) -> Callable[[], float]:
    """Time of both passes and whatever makes the weights between them."""

    def variant() -> float:
        start = time.perf_counter()
        ops.combine(task_grads, weights(ops.gramian(task_grads)), out)
        return time.perf_counter() - start

    return variant


def test_methods(interleaved: Interleaved, report: Report) -> None:
    """All of them in one round: drifts of the memory's speed meet the passes alone as well."""
    task_grads = workloads.task_gradients(NUM_TASKS, workloads.LARGE)
    out: list[Tensor | None] = [torch.empty_like(g) for g in task_grads[0]]
    mean = torch.full((NUM_TASKS,), 1.0 / NUM_TASKS, dtype=torch.float64)
    alone = two_passes(task_grads, out, lambda _: mean)
    variants: dict[str, Callable[[], float]] = {}
    names = [name for name in methods.names() if methods.make(name).num_batches == 1]
    for name in names:
        # One measurement of the passes alone before each method, to form its ratio with.
        variants[f"passes before {name}"] = alone
        weights = methods.weights_of(methods.make(name), NUM_TASKS)
        variants[name] = two_passes(task_grads, out, weights)
    found = interleaved(variants, rounds=20, warmup=2)
    for name in names:
        passes = found[f"passes before {name}"]
        ms = [statistics.median(samples) * 1e3 for samples in (found[name], passes)]
        report.add(
            row(
                FIGURE,
                name,
                "x",
                found[name] / passes,
                target=TARGET,
                others=interleaved.others,
                detail=f"{ms[0]:.1f} ms against {ms[1]:.1f}",
                extra={"seconds": found[name].tolist(), "passes": passes.tolist()},
            )
        )
