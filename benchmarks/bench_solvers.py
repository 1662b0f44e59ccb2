"""The K x K solvers alone, on one thread: as a user calls them, and without the Python around."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from torch import Tensor

import mtlfast
from benchmarks import workloads
from benchmarks.conftest import Interleaved
from benchmarks.report import Report, row
from mtlfast import ops

pytestmark = pytest.mark.benchmark(disable_gc=True)

FIGURE = "4. solver alone, one thread, mean over 16 Gramians"
TARGETS = {"pcgrad": {2: 5, 8: 20, 40: 400}, "cagrad": {2: 10, 8: 40, 40: 1500}}
OPTIONS = {"pcgrad": (0.0, 0.0), "cagrad": (0.5, 0.0, 0.0)}  # the methods' defaults


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("num_tasks", [2, 8, 40])
@pytest.mark.parametrize("method", ["pcgrad", "cagrad"])
def test_solver(method: str, num_tasks: int, interleaved: Interleaved, report: Report) -> None:
    gramians = workloads.gramians(num_tasks)
    calls = len(gramians) * (1 if num_tasks == 40 else 20)
    weighting = mtlfast.weighting.get(method)
    options, rng = OPTIONS[method], torch.tensor([0, 0]) if method == "pcgrad" else None

    def mean_of(call: Callable[[Tensor], Tensor]) -> Callable[[], float]:
        def variant() -> float:
            source = cycle(gramians)
            start = time.perf_counter()
            for _ in range(calls):
                call(next(source))
            return (time.perf_counter() - start) / calls

        return variant

    found = interleaved(
        {
            "Weighting call": mean_of(weighting),
            "ops.solve": mean_of(lambda g: ops.solve(method, g, options=options, rng=rng)),
        },
        rounds=60,
    )
    for name, samples in found.items():
        report.add(
            row(
                FIGURE,
                f"{method}, K = {num_tasks}, {name}",
                "us",
                samples * 1e6,
                target=TARGETS[method][num_tasks],
                others=interleaved.others,
            )
        )
