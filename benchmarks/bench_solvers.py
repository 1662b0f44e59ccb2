"""The K x K solvers alone, on one thread, as a user calls them; beside TorchJD's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import methods, workloads
from benchmarks.conftest import Interleaved
from benchmarks.report import Report, Row, row
from mtlfast import ops

pytestmark = [pytest.mark.benchmark(disable_gc=True), pytest.mark.usefixtures("single_thread")]

SOLVERS = "4. whole call of a method on a Gramian, one thread, mean over 16 Gramians"
PEERS = "6. TorchJD's weighting over ours, K = 8, one thread, mean over 16 Gramians"
TARGETS = {2: 10, 8: 60, 40: 2000}
STRICTER = {"pcgrad": {2: 5, 8: 20, 40: 400}, "cagrad": {2: 10, 8: 40, 40: 1500}}
OPTIONS = {"pcgrad": (0.0, 0.0), "cagrad": (0.5, 0.0, 0.0)}  # the methods' defaults
FASTER = 10  # at least so many times


def mean_of(
    call: Callable[[Tensor], Any], matrices: list[Tensor], repeats: int
) -> Callable[[], float]:
    """Mean time of a call, over all matrices, some times."""

    def variant() -> float:
        source, calls = cycle(matrices), len(matrices) * repeats
        start = time.perf_counter()
        for _ in range(calls):
            call(next(source))
        return (time.perf_counter() - start) / calls

    return variant


@pytest.mark.parametrize("num_tasks", [2, 8, 40])
@pytest.mark.parametrize("name", methods.names())
def test_solver(name: str, num_tasks: int, interleaved: Interleaved, report: Report) -> None:
    method = methods.make(name)
    gramians = methods.gramians(method, num_tasks)
    repeats = 1 if num_tasks == 40 else 20
    whole = methods.weights_of(method, num_tasks)
    variants = {"Weighting call": mean_of(whole, gramians, repeats)}
    if name in OPTIONS:
        rng = torch.tensor([0, 0]) if name == "pcgrad" else None
        options = OPTIONS[name]
        variants["ops.solve"] = mean_of(
            lambda g: ops.solve(name, g, options=options, rng=rng), gramians, repeats
        )
    found = interleaved(variants, rounds=60)
    for variant, samples in found.items():
        report.add(
            row(
                SOLVERS,
                f"{name}, K = {num_tasks}, {variant}",
                "us",
                samples * 1e6,
                target=STRICTER.get(name, TARGETS)[num_tasks],
                others=interleaved.others,
            )
        )


@pytest.mark.parametrize("name", [*methods.SLOW_PEERS, *methods.OTHER_PEERS])
def test_torchjd(name: str, interleaved: Interleaved, report: Report) -> None:
    num_tasks = methods.PEER_TASKS
    try:
        from torchjd import aggregation
    except ImportError as error:
        interleaved({"nothing": lambda: 0.0}, 1)
        report.add(Row(PEERS, name, "x", detail=f"TorchJD is missing ({error})"))
        return
    jacobians = workloads.jacobians(num_tasks)
    gramians = workloads.gramians(num_tasks)
    peer = {**methods.SLOW_PEERS, **methods.OTHER_PEERS}[name](aggregation)
    seen = jacobians if name in methods.TAKES_JACOBIAN else gramians
    whole = methods.weights_of(methods.make(name), num_tasks)
    found = interleaved(
        {"ours": mean_of(whole, gramians, 20), "TorchJD": mean_of(peer, seen, 1)}, rounds=20
    )
    ours, theirs = (statistics.median(found[key]) * 1e6 for key in ("ours", "TorchJD"))
    report.add(
        row(
            PEERS,
            name,
            "x",
            found["TorchJD"] / found["ours"],
            target=FASTER if name in methods.SLOW_PEERS else None,
            at_least=True,
            others=interleaved.others,
            detail=f"{theirs:.0f} us against {ours:.1f}",
        )
    )
