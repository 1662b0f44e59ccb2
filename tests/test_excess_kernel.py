"""The kernel of ExcessMTL: sums of squares, and what a gradient weighs under them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend
from kernel_cases import DTYPES, ENGINES, ISAS, SIZES, Rows, assert_same, engine, random_rows
from torch import Tensor

from mtlfast import column_ops

Sums = list[list["Tensor | None"]]


def sums_like(rows: Rows, seed: int) -> Sums:
    """Random sums of squares of the gradients' shapes; some are None."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            None
            if grad is None or float(torch.rand((), generator=generator)) < 0.2
            else torch.rand(grad.shape, generator=generator, dtype=torch.float64).to(
                torch.float64 if grad.dtype == torch.float64 else torch.float32
            )
            for grad in row
        ]
        for row in rows
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tasks", [1, 2, 5, 16])
def test_native_agrees_with_reference(num_tasks: int, dtype: torch.dtype) -> None:
    rows = random_rows(num_tasks, SIZES, dtype, missing=0.2)
    for row in rows:
        row.insert(2, None)
    known = sums_like(rows, 1)
    with engine("reference"):
        wanted = column_ops.excess(rows, known)
    step = 1e-15 if dtype == torch.float64 else 0.0  # squares of the others are exact
    for isa in ISAS:
        with engine(isa):
            excess, sums = column_ops.excess(rows, known)
        torch.testing.assert_close(excess, wanted[0], rtol=1e-13, atol=0)
        torch.testing.assert_close(sums, wanted[1], rtol=step, atol=0)


@pytest.mark.parametrize("name", ENGINES)
def test_by_hand(name: str) -> None:
    rows: Rows = [[torch.tensor([3.0, 0.0, -4.0])], [torch.tensor([1.0, 2.0, 0.0])]]
    with engine(name):
        excess, sums = column_ops.excess(rows)
        assert_same(sums, [[torch.tensor([9.0, 0, 16])], [torch.tensor([1.0, 4, 0])]])
        expected = torch.tensor([3.0 + 4.0, 1.0 + 2.0], dtype=torch.float64)
        torch.testing.assert_close(excess, expected, rtol=1e-7, atol=0)
        again, _ = column_ops.excess(rows, sums)
        torch.testing.assert_close(again, expected / 2**0.5, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_large_tensors(isa: str, dtype: torch.dtype) -> None:
    """Past the cache, off the cache line."""
    values = torch.randint(-3, 4, (3, 900_001)).to(dtype)
    rows: Rows = [[v[1:], v[:7]] for v in values]
    with engine(isa):
        excess, sums = column_ops.excess(rows, column_ops.excess(rows)[1])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for row, value in zip(sums, values, strict=True):
        assert_same(row, [2 * value[1:].to(wide).square(), 2 * value[:7].to(wide).square()])
    entries = torch.cat([values[:, 1:], values[:, :7]], 1).double()
    expected = (entries.square() / (2 * entries.square() + 1e-7).sqrt()).sum(1)
    torch.testing.assert_close(excess, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ENGINES)
def test_layouts_and_missing_rows(name: str) -> None:
    shape = (2, 3, 4, 5)
    dense = torch.randint(-3, 4, shape).float()
    last = dense.to(memory_format=torch.channels_last)
    known = torch.rand(shape)
    old: Sums = [[known, None], [known.to(memory_format=torch.channels_last), torch.ones(3)]]
    negative = torch.complex(torch.zeros(3), -torch.arange(3.0)).conj().imag
    rows: Rows = [[last, torch.ones(1).expand(3)], [dense, None]]
    before = copy.deepcopy(old)
    with engine(name):
        _, sums = column_ops.excess(rows, old)
        for row in sums:
            torch.testing.assert_close(row[0], known + dense.square(), rtol=0, atol=0)
        assert_same(sums[0][1], torch.ones(3))
        assert sums[1][1] is old[1][1]  # nothing new was seen
        assert_same(old, before)
        _, sums = column_ops.excess([[negative]], [[negative]])
        assert_same(sums[0][0], torch.tensor([0.0, 2.0, 6.0]))
        assert column_ops.excess([[None], [None]])[1] == [[None], [None]]


@pytest.mark.parametrize("name", ENGINES)
def test_sums_stop_at_the_largest_number(name: str) -> None:
    rows: Rows = [[torch.full((70,), 3e38)]]
    with engine(name):
        excess, sums = column_ops.excess(rows)
        assert_same(sums[0][0], torch.full((70,), torch.finfo(torch.float32).max))
        torch.testing.assert_close(float(excess), 70 * 3e38)
        excess, sums = column_ops.excess([[torch.ones(70)]], sums)
        assert_same(sums[0][0], torch.full((70,), torch.finfo(torch.float32).max))
        assert 0 < float(excess) < 1e-15


@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_sums(name: str) -> None:
    ones = torch.ones(3)
    rows: Rows = [[ones, ones], [ones, None]]
    wrong: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "squares: expected a list", ((ones, ones), (ones, ones))),
        (ValueError, "squares: expected a list of 2 .*found 1", [[ones, ones]]),
        (ValueError, r"squares\[1\]: expected a list of 2 .*found 1", [[ones, ones], [ones]]),
        (ValueError, r"squares\[1\]: expected a list .*found int", [[ones, ones], 3]),
        (TypeError, r"squares\[0\]\[1\]: expected a tensor .*int", [[ones, 3], [ones, ones]]),
        (ValueError, r"squares\[0\]\[1\]: expected .*3.*found", [[ones, ones[:2]], [None, None]]),
        (ValueError, r"squares\[1\]\[0\]: expected .*", [[ones, ones], [ones.double(), None]]),
        (ValueError, r"squares\[1\]\[0\]: expected .*", [[ones, ones], [ones.half(), None]]),
        (ValueError, r"squares\[1\]\[0\]: expected .*", [[ones, ones], [ones.to("meta"), None]]),
    ]
    with backend(name):
        for error, message, squares in wrong:
            with pytest.raises(error, match="^" + message):
                column_ops.excess(rows, squares)
