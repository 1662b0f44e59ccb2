"""The kernels on a device: gramian and combine against float64, for all layouts and types."""

from __future__ import annotations

import pytest
import torch
from devices import Rows, launched, moved, skip_beyond
from kernel_cases import (
    DTYPES,
    assert_gramian,
    assert_same,
    float64,
    random_rows,
    weighted_sum,
)
from torch import Tensor

from mtlfast import ops

SIZES = (0, 1, 7, 8, 33, 255, 2047, 2049, 4096, 9000)
TASKS = (1, 2, 3, 4, 5, 8)
ERRORS = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-6, torch.float16: 1e-6}


def on_cpu(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.cpu() for t in tensors]


def spread(num_tasks: int) -> Tensor:
    """Weights of both signs, and a zero."""
    weights = torch.linspace(-1.0, 2.0, num_tasks, dtype=torch.float64)
    weights[num_tasks // 2] = 0.0 if num_tasks > 1 else 0.75
    return weights


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gramian_and_combine(device: torch.device, dtype: torch.dtype, num_tasks: int) -> None:
    rows = random_rows(num_tasks, SIZES, dtype, seed=num_tasks, missing=0.2)
    there = moved(rows, device)
    gramian = ops.gramian(there)
    assert gramian.device == device
    assert_gramian(gramian.cpu(), rows, ERRORS[dtype])
    assert_same(ops.gramian(there), gramian)  # bit for bit, whatever ran first
    weights = spread(num_tasks)
    found = ops.combine(there, weights.to(device))
    torch.testing.assert_close(on_cpu(found), weighted_sum(rows, weights))


@pytest.mark.parametrize("num_tasks", [9, 12])
def test_many_tasks(device: torch.device, num_tasks: int) -> None:
    skip_beyond(device, num_tasks)
    rows = random_rows(num_tasks, (5, 3000), torch.float32, seed=3)
    assert_gramian(ops.gramian(moved(rows, device)).cpu(), rows, 1e-6)


def test_types_together(device: torch.device) -> None:
    """One launch for each type adds to the same Gramian."""
    rows: Rows = [[], []]
    for i, dtype in enumerate(DTYPES):
        for row, more in zip(rows, random_rows(2, (40, 3), dtype, seed=i), strict=True):
            row.extend(more)
    assert_gramian(ops.gramian(moved(rows, device)).cpu(), rows, 1e-6)
    weights = float64(0.5, -2.0)
    found = ops.combine(moved(rows, device), weights.to(device))
    torch.testing.assert_close(on_cpu(found), weighted_sum(rows, weights))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(device: torch.device, dtype: torch.dtype) -> None:
    """Unaligned views, channels_last, transposed and strided tensors; results laid out alike."""
    generator = torch.Generator().manual_seed(0)

    def vector(size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype).to(device)

    def row(k: int) -> list[Tensor | None]:
        image = vector(2 * 3 * 5 * 7).view(2, 3, 5, 7)
        return [
            vector(1001)[1:],  # each element in its place, the first not a multiple of 16 bytes
            vector(1003)[k % 3 : k % 3 + 1000],  # of every row another misalignment
            image.to(memory_format=torch.channels_last),
            vector(600).view(20, 30).T,
            vector(600).view(20, 30).T if k else vector(600).view(30, 20),  # rows differ
            vector(900)[::3],
            vector(64).view(4, 1, 16).expand(4, 5, 16),
        ]

    rows = [row(k) for k in range(3)]
    there = [[None if g is None else g.cpu() for g in r] for r in rows]
    assert_gramian(ops.gramian(rows).cpu(), there, ERRORS[dtype])
    weights = spread(3)
    found = ops.combine(rows, weights.to(device))
    torch.testing.assert_close(on_cpu(found), weighted_sum(there, weights))


@pytest.mark.parametrize("scale", [1e-20, 1e18])
@pytest.mark.parametrize("num_tasks", [3, 8, 12])
def test_scales(device: torch.device, scale: float, num_tasks: int) -> None:
    """Squares that float32 cannot hold."""
    skip_beyond(device, num_tasks)
    rows = random_rows(num_tasks, (3000, 17), torch.float32, scale=scale)
    assert_gramian(ops.gramian(moved(rows, device)).cpu(), rows, 1e-6)


def test_nan_of_a_task_without_weight(device: torch.device) -> None:
    rows = random_rows(3, (100, 9), torch.float32)
    rows[1] = [torch.full((100,), torch.nan), torch.full((9,), torch.inf)]
    weights = float64(1.0, 0.0, -1.0)
    found = ops.combine(moved(rows, device), weights.to(device))
    torch.testing.assert_close(on_cpu(found), weighted_sum(rows, weights))
    gramian = ops.gramian(moved(rows, device)).cpu()
    assert gramian[1].isnan().all()
    assert gramian[::2, ::2].isfinite().all()


@pytest.mark.parametrize("accumulate", [False, True])
def test_into_grad(device: torch.device, accumulate: bool) -> None:
    rows = random_rows(2, (50, 3000), torch.float32)
    weights = float64(0.5, -1.5)
    params = [torch.zeros(size, device=device, requires_grad=True) for size in (50, 3000)]
    for param in params:
        param.grad = torch.ones_like(param)
    ops.combine_(params, moved(rows, device), weights.to(device), accumulate=accumulate)
    for param, expected in zip(params, weighted_sum(rows, weights), strict=True):
        assert param.grad is not None
        assert expected is not None
        torch.testing.assert_close(param.grad.cpu(), expected + 1.0 if accumulate else expected)


def test_out_is_written_everywhere(device: torch.device) -> None:
    rows = random_rows(4, SIZES, torch.float32)
    out: list[Tensor | None] = [torch.full((size,), torch.nan, device=device) for size in SIZES]
    weights = spread(4)
    assert ops.combine(moved(rows, device), weights.to(device), out) is out
    torch.testing.assert_close(on_cpu(out), weighted_sum(rows, weights))


@pytest.mark.parametrize(
    ("num_tasks", "num_tensors"),
    [(4, 20), (8, 160), (8, 400), (12, 20), (12, 200), (12, 600), (40, 20), (40, 200)],
)
def test_tables(device: torch.device, num_tasks: int, num_tensors: int) -> None:
    """The pointers in small and in large parameters, and in the memory of the device."""
    skip_beyond(device, num_tasks)
    sizes = [1 + t % 9 for t in range(num_tensors)]
    rows = random_rows(num_tasks, sizes, torch.float32)
    there = moved(rows, device)
    weights = spread(num_tasks)
    out: list[Tensor | None] = [torch.empty(size, device=device) for size in sizes]
    for attempt in range(2):  # a table that is there is not uploaded again
        found: list[Tensor] = []
        kernels = launched(lambda: found.append(ops.gramian(there)))  # noqa: B023
        assert_gramian(found[0].cpu(), rows, 1e-6)
        uploads = kernels.pop("mtlfast_upload", 0)
        assert sum(kernels.values()) == 1
        # 8 bytes for each pointer and size, 4 for each first chunk; 32,512 fit the parameters.
        assert (uploads > 0) == ((8 * num_tasks + 12) * num_tensors > 32400 and attempt == 0)
        ops.combine(there, weights.to(device), out)
        torch.testing.assert_close(on_cpu(out), weighted_sum(rows, weights))
    there[0][5] = torch.ones(sizes[5], device=device)  # the same sizes, another pointer
    rows[0][5] = torch.ones(sizes[5])
    assert_gramian(ops.gramian(there).cpu(), rows, 1e-6)
