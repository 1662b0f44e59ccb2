"""The CUDA kernel of ExcessMTL's sums, on fibers: against the CPU's kernel."""

from __future__ import annotations

from collections.abc import Sequence

import fiber_gpu
import pytest
import torch
from fiber_cases import NAMES, SIZES, awkward, missed_barriers, needs_native, on_cpu, on_fibers
from kernel_cases import DTYPES, Rows, assert_same, random_rows

from mtlfast import column_ops

pytestmark = needs_native


def sums_like(rows: Rows) -> Rows:
    generator = torch.Generator().manual_seed(8)
    return [
        [
            None
            if grad is None or float(torch.rand((), generator=generator)) < 0.2
            else torch.rand(grad.shape, generator=generator).to(
                torch.float64 if grad.dtype == torch.float64 else torch.float32
            )
            for grad in row
        ]
        for row in rows
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tasks", [1, 3, 130])
def test_excess(num_tasks: int, dtype: torch.dtype) -> None:
    """More tasks than one launch takes, too."""
    sizes: Sequence[int] = (*SIZES, 9000) if num_tasks < 100 else (1, 8, 40)
    rows = awkward(random_rows(num_tasks, sizes, dtype, missing=0.3 if num_tasks > 1 else 0.0))
    for known in (None, sums_like(rows)):
        excess, sums = on_fibers(column_ops.excess, rows, known, launched=f"excess_{NAMES[dtype]}_")
        wanted, wanted_sums = on_cpu(column_ops.excess, rows, known)
        assert_same(sums, wanted_sums)
        torch.testing.assert_close(excess, wanted, rtol=1e-13, atol=0)
        if known is not None:
            assert all(
                new is old
                for new_row, old_row, row in zip(sums, known, rows, strict=True)
                for new, old, grad in zip(new_row, old_row, row, strict=True)
                if grad is None
            )


def test_excess_of_all_dtypes() -> None:
    """Their sums are added, the same bits in every order of threads and blocks."""
    rows = [
        [part for dtype in DTYPES for part in random_rows(3, (3, 9000), dtype, seed=k)[0]]
        for k in range(3)
    ]
    found = [on_fibers(column_ops.excess, rows, order=order) for order in fiber_gpu.ORDERS]
    assert_same(found[1:], [found[0]] * 2)
    torch.testing.assert_close(found[0], on_cpu(column_ops.excess, rows), rtol=1e-13, atol=0)
    empty, _ = on_fibers(
        lambda: (*column_ops.excess([[torch.ones(0)], [None]]), column_ops.trimmed_mean(rows, 0))
    )[:2]
    assert_same(empty, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_excess_of_special_numbers(dtype: torch.dtype) -> None:
    """Sums stop at the largest number; what is not finite comes through."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    largest = torch.finfo(wide).max
    columns = torch.tensor([torch.finfo(dtype).max, 1, 0, -0.0, 1e-30, torch.nan, torch.inf, 2])
    known = torch.tensor([0, largest, 0, 0, 0, 1, 1, torch.nan], dtype=wide)
    rows: Rows = [[columns[c : c + 1].to(dtype)] for c in range(8)]
    old: Rows = [[known[c : c + 1]] for c in range(8)]
    found = on_fibers(column_ops.excess, rows, old)
    wanted = on_cpu(column_ops.excess, rows, old)
    assert_same(found[1], wanted[1])
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-13, atol=0, equal_nan=True)
    assert float(found[1][1][0]) == largest


def test_every_barrier_is_needed() -> None:
    rows = random_rows(5, (3000, 9000))
    for k, row in enumerate(rows):  # sums of a second launch are added to the first one's
        row += random_rows(1, (9000,), torch.float64, seed=k)[0]
    # Blocks run one after another here: that the first barrier of comes_last() has all of a block's
    # sums written before the block is counted, only a GPU can show.
    source = (fiber_gpu.ROOT / "csrc/kernels/gramian_sum.h").read_text().split("\n")
    first = next(i for i, text in enumerate(source) if "__threadfence();" in text) + 2
    assert missed_barriers(lambda: column_ops.excess(rows)) == [("gramian_sum.h", first)]
