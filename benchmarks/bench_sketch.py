"""Folding a gradient into a sketch, against the machine's best read of as many bytes."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from benchmarks import workloads
from benchmarks.bandwidth import Bandwidth
from benchmarks.conftest import Interleaved
from benchmarks.report import Report, row
from mtlfast import sketch_ops

pytestmark = pytest.mark.benchmark(disable_gc=True)

clock = time.perf_counter
SKETCH = "10. sketch_ over a read of the gradient; 60 tensors, P = 1e7"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_buckets", [1024, 65536])
def test_read(
    num_buckets: int,
    dtype: torch.dtype,
    threads: int,
    interleaved: Interleaved,
    memory: Bandwidth,
    report: Report,
) -> None:
    torch.set_num_threads(threads)
    grads = [grad.to(dtype) for grad in workloads.task_gradients(1, workloads.LARGE)[0]]
    sketch, norm = torch.zeros(num_buckets), torch.zeros(1, dtype=torch.float64)

    def ours() -> float:
        start = clock()
        sketch_ops.sketch_(sketch, norm, grads, 0, 1)
        return clock() - start

    # Bandwidth on both sides of ours, so that a drift within the round favours neither.
    found = interleaved({"before": memory.read, "ours": ours, "after": memory.read}, rounds=40)
    bytes_ = sum(grad.numel() * grad.element_size() for grad in grads)
    bandwidth = (found["before"] + found["after"]) / 2
    total, rate = statistics.median(found["ours"]), statistics.median(bandwidth)
    name = str(dtype).removeprefix("torch.")
    report.add(
        row(
            SKETCH,
            f"S = {num_buckets}, {name}, {threads} thread{'s' * (threads > 1)}",
            "x",
            found["ours"] * bandwidth / bytes_,
            others=interleaved.others,
            detail=f"{total * 1e3:.2f} ms; {bytes_ / total / 1e9:.1f} of {rate / 1e9:.1f} GB/s",
            extra={
                "seconds": found["ours"].tolist(),
                "bandwidth": {name: found[name].tolist() for name in ("before", "after")},
                "bandwidth_source": memory.source,
            },
        )
    )
