"""Streams, threads, devices, sizes beyond 32 bits, and the other way to get the kernels."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from devices import no_synchronisation
from kernel_cases import assert_gramian, random_rows, weighted_sum
from torch import Tensor

from mtlfast import ops

pytestmark = pytest.mark.cuda
CAGRAD = (0.5, 0.0, 0.0)
TICKS = 50_000_000  # of the clock: some tens of milliseconds


def gradients(gpu: torch.device, seed: int, num_tasks: int = 4) -> list[list[Tensor | None]]:
    generator = torch.Generator(device=gpu).manual_seed(seed)
    sizes = (100_003, 17, 4096)
    return [
        [torch.randn(size, generator=generator, device=gpu) for size in sizes]
        for _ in range(num_tasks)
    ]


def balance(rows: list[list[Tensor | None]]) -> list[Tensor]:
    gramian = ops.gramian(rows)
    weights = ops.solve("cagrad", gramian, options=CAGRAD)
    return [gramian, weights, *(d for d in ops.combine(rows, weights) if d is not None)]


def test_current_stream(gpu: torch.device) -> None:
    """What a side stream is still writing is read there, and after it was written."""
    rows = gradients(gpu, 1)
    expected = balance(rows)
    late: list[list[Tensor | None]] = [
        [None if g is None else torch.full_like(g, torch.nan) for g in row] for row in rows
    ]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        torch.cuda._sleep(TICKS)  # type: ignore[no-untyped-call]
        for to, source in zip(late, rows, strict=True):
            for x, g in zip(to, source, strict=True):
                assert x is not None
                assert g is not None
                x.copy_(g)
        found = balance(late)
    side.synchronize()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_nothing_waits(gpu: torch.device) -> None:
    rows = gradients(gpu, 2)
    balance(rows)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    torch.cuda._sleep(TICKS)  # type: ignore[no-untyped-call]
    with no_synchronisation(gpu):
        balance(rows)
    done.record()
    assert not done.query(), "the call came back after the device was done"  # type: ignore[no-untyped-call]


def test_many_calls_in_flight(gpu: torch.device) -> None:
    """Two streams in turn, on different data; nobody waits before the end."""
    data = [gradients(gpu, seed) for seed in range(6)]
    expected = [balance(rows) for rows in data]
    streams = [torch.cuda.Stream() for _ in range(2)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    found: list[tuple[int, list[Tensor]]] = []
    for turn in range(60):
        with torch.cuda.stream(streams[turn % 2]):
            found.append((turn % 6, balance(data[turn % 6])))
    torch.cuda.synchronize()
    for number, answer in found:
        torch.testing.assert_close(answer, expected[number], rtol=0, atol=0)


def test_other_threads(gpu: torch.device) -> None:
    """A thread that has not used the device yet."""
    rows = gradients(gpu, 3)
    expected = balance(rows)
    torch.cuda.synchronize()
    found: list[list[Tensor]] = []
    threads = [threading.Thread(target=lambda: found.append(balance(rows))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert len(found) == 3
    for answer in found:
        torch.testing.assert_close(answer, expected, rtol=0, atol=0)


def test_second_device(gpu: torch.device) -> None:
    """The device of the tensors counts, not the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU only")
    other = torch.device("cuda", 1 - gpu.index)
    rows = gradients(gpu, 4)
    there = [[None if g is None else g.to(other) for g in row] for row in rows]
    found = balance(there)
    assert {x.device for x in found} == {other}
    assert torch.cuda.current_device() == gpu.index
    torch.testing.assert_close([x.to(gpu) for x in found], balance(rows))
    with pytest.raises(ValueError, match=r"^task_grads\[1\]\[0\]: expected a tensor on cuda"):
        ops.gramian([rows[0], there[1]])


@pytest.mark.parametrize("num_tasks", [16, 40, 64, 65, 100])
def test_many_tasks(gpu: torch.device, num_tasks: int) -> None:
    for dtype, error in ((torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float64, 1e-13)):
        rows = random_rows(num_tasks, (5000, 1, 77), dtype, missing=0.1)
        there = [[None if g is None else g.to(gpu) for g in row] for row in rows]
        assert_gramian(ops.gramian(there).cpu(), rows, error)
        weights = torch.linspace(-1.0, 1.0, num_tasks, dtype=torch.float64)
        found = ops.combine(there, weights.to(gpu))
        torch.testing.assert_close(
            [None if d is None else d.cpu() for d in found], weighted_sum(rows, weights)
        )


def test_beyond_32_bits(gpu: torch.device) -> None:
    """One tensor of more than 2^31 elements."""
    size = 2**31 + 4099
    free, _ = torch.cuda.mem_get_info(gpu)
    if free < 8 * size:
        pytest.skip(f"needs {8 * size / 2**30:.0f} GiB, {free / 2**30:.0f} are free")
    rows = [torch.ones(size, dtype=torch.bfloat16, device=gpu) for _ in range(2)]
    marked = (0, 2**31 - 1, 2**31, size - 1)
    for place in marked:
        rows[1][place] = 3.0
    gramian = ops.gramian([[row] for row in rows]).cpu()
    expected = torch.tensor([[0, 2], [2, 8]], dtype=torch.float64) * len(marked) + size
    torch.testing.assert_close(gramian, expected, rtol=1e-7, atol=0)
    weights = torch.tensor([2.0, -1.0], dtype=torch.float64, device=gpu)
    (found,) = ops.combine([[row] for row in rows], weights)
    assert found is not None
    assert [float(found[place]) for place in marked] == [-1.0] * len(marked)
    for place in marked:
        found[place] = 1.0
    assert float(found.min()) == float(found.max()) == 1.0
    del rows, found
    torch.cuda.empty_cache()


SCRIPT = """
import torch
from mtlfast import ops
generator = torch.Generator("cuda").manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    rows = [[torch.randn(5000, generator=generator, device="cuda").to(dtype)] for _ in range(5)]
    gramian = ops.gramian(rows)
    flat = torch.stack([row[0].double() for row in rows])
    torch.testing.assert_close(gramian, flat @ flat.T, rtol=1e-5, atol=1e-2)
    weights = ops.solve("cagrad", gramian, options=(0.5, 0.0, 0.0))
    (found,) = ops.combine(rows, weights)
    torch.testing.assert_close(found, (weights @ flat).to(dtype))
print("done")
"""


@pytest.mark.parametrize("which", ["compiled", "cupy"])
def test_where_kernels_come_from(gpu: torch.device, which: str, tmp_path: Path) -> None:
    """Each way by itself, in a process of its own; the second time from the cache."""
    if which == "cupy" and importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    given = {"MTLFAST_CUDA_BACKEND": which, "MTLFAST_BACKEND": "native"}
    cache = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **given, **cache},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout.endswith("done\n"), done.stderr
