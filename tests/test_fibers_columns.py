"""The CUDA kernels of GradDrop and the trimmed mean, on fibers: against the CPU's kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import fiber_gpu
import pytest
import torch
from fiber_cases import (
    NAMES,
    PLAIN,
    SIZES,
    awkward,
    missed_barriers,
    needs_native,
    on_cpu,
    on_fibers,
)
from kernel_cases import DTYPES, Rows, assert_same, engine, flatten, random_rows
from torch import Tensor, nn

from mtlfast import column_ops

pytestmark = needs_native

Out = list["Tensor | None"]


def rng(counter: int = 3, seed: int = -7) -> Tensor:
    return torch.tensor([seed, counter])


def leaks(num_tasks: int) -> Tensor:
    return torch.linspace(0, 0.7, num_tasks, dtype=torch.float64)


def drop(rows: Rows, leak: Tensor | None = None, out: Out | None = None) -> Out:
    return column_ops.graddrop(rows, leak=leak, rng=rng(), out=out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tasks", [1, 2, 4, 5, 9, 130])
def test_graddrop(num_tasks: int, dtype: torch.dtype) -> None:
    sizes = SIZES if num_tasks < 100 else SIZES[:6]
    rows = awkward(random_rows(num_tasks, sizes, dtype, missing=0.3 if num_tasks > 2 else 0.0))
    for leak, kernel in ((None, "graddrop"), (leaks(num_tasks), "leaky_graddrop")):
        found = on_fibers(drop, rows, leak, launched=f"{kernel}_{NAMES[dtype]}")
        assert_same(found, on_cpu(drop, rows, leak))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4, 5, 6, 9])
def test_trimmed_mean(num_tasks: int, dtype: torch.dtype) -> None:
    """Entries are added in the same order where those to leave out are listed."""
    rows = awkward(random_rows(num_tasks, SIZES, dtype, missing=0.3 if num_tasks > 2 else 0.0))
    for trim in range(min(2, (num_tasks - 1) // 2) + 1):
        launched = f"trim{trim}_{NAMES[dtype]}"
        found = on_fibers(column_ops.trimmed_mean, rows, trim, launched=launched)
        assert_same(found, on_cpu(column_ops.trimmed_mean, rows, trim))


@pytest.mark.parametrize("integers", [True, False], ids=["integers", "normal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tasks", [7, 8, 33, 129])
def test_trimmed_mean_of_any(num_tasks: int, dtype: torch.dtype, integers: bool) -> None:
    """What is kept is the same; it is added up in another order. Integers tie."""
    rows = awkward(random_rows(num_tasks, (0, 1, 40, 300), dtype, missing=0.2, integers=integers))
    for trim in {3, (num_tasks - 1) // 3, (num_tasks - 1) // 2} - {2}:
        found = on_fibers(column_ops.trimmed_mean, rows, trim, launched="trim_any")
        wanted = on_cpu(column_ops.trimmed_mean, rows, trim)
        if integers:
            assert_same(found, wanted)
        else:
            size = float(flatten(rows).abs().max())
            step = torch.finfo(dtype).eps
            torch.testing.assert_close(found, wanted, rtol=step, atol=1e-15 * size)


def special_columns(num_tasks: int, dtype: torch.dtype) -> Tensor:
    """Every column has one or two special entries, in every place."""
    generator = torch.Generator().manual_seed(num_tasks)
    values = torch.randint(-3, 4, (num_tasks, 0, 1), generator=generator).to(dtype)
    for first in (torch.nan, -torch.nan, torch.inf, -torch.inf, 0.0, -0.0):
        for second in (None, torch.nan, torch.inf, -torch.inf):
            block = torch.randint(-3, 4, (num_tasks, num_tasks, 1), generator=generator).to(dtype)
            block[range(num_tasks), range(num_tasks)] = first
            if second is not None:
                block[range(num_tasks), [(k + 1) % num_tasks for k in range(num_tasks)]] = second
            values = torch.cat([values, block], 1)
    return values[:, :, 0].contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tasks", [1, 3, 5, 7, 9])
def test_special_numbers(num_tasks: int, dtype: torch.dtype) -> None:
    values = special_columns(num_tasks, dtype)
    largest = torch.finfo(dtype).max
    rows: Rows = [[row, torch.full((9,), largest, dtype=dtype)] for row in values]
    for leak in (None, leaks(num_tasks)):
        assert_same(on_fibers(drop, rows, leak), on_cpu(drop, rows, leak))
    for trim in range((num_tasks - 1) // 2 + 1):
        found = on_fibers(column_ops.trimmed_mean, rows, trim)
        wanted = on_cpu(column_ops.trimmed_mean, rows, trim)
        step = 0 if trim <= 2 else torch.finfo(dtype).eps
        torch.testing.assert_close(found, wanted, rtol=step, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", fiber_gpu.ORDERS)
def test_all_dtypes_in_one_call(order: str) -> None:
    """Each has a launch of its own; they share the columns' numbering and one counter."""
    rows = [
        [part for dtype in DTYPES for part in random_rows(5, (3, 2500), dtype, seed=k)[0]]
        for k in range(5)
    ]
    counters = [rng(), rng()]
    with engine(PLAIN):
        first = column_ops.graddrop(rows, rng=counters[0])
        second = column_ops.graddrop(rows, rng=counters[0])
    with engine(PLAIN), fiber_gpu.fibers(order):
        assert_same(column_ops.graddrop(rows, rng=counters[1]), first)
        assert_same(counters[1], rng(4))
        assert_same(column_ops.graddrop(rows, rng=counters[1]), second)
        launched = fiber_gpu.launches()
    assert_same(counters[1], counters[0])
    wanted = {f"mtlfast_graddrop_{name}_s": 2 for name in NAMES.values()}
    assert launched == {**wanted, "mtlfast_advance": 2}
    assert not torch.equal(first[1], second[1])  # type: ignore[arg-type]
    for trim in (0, 1, 2):
        found = on_fibers(column_ops.trimmed_mean, rows, trim, order=order)
        assert_same(found, on_cpu(column_ops.trimmed_mean, rows, trim))


def test_blocks_of_random_numbers() -> None:
    """Keys change every 2^20 columns, also in the middle of a chunk."""
    block = 1 << 20
    entry = torch.ones(block + 3000)
    entry[::3] = 2
    rows: Rows = [[part, part[:5].clone()] for part in (entry, -entry)]
    for sizes in ((), (700,)):
        for row in rows:
            row[:0] = [torch.ones(size) for size in sizes]
        found = on_fibers(drop, rows)
        assert_same(found, on_cpu(drop, rows))
    kept = found[1]
    assert kept is not None
    assert 0.45 < float((kept > 0).double().mean()) < 0.55


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_given_chances(dtype: torch.dtype) -> None:
    """In the order of the elements, whatever the layout; the counter stays."""
    shapes = ((3, 4, 5, 6), (7,), (0,), (2, 33), (1500,), (1, 1))
    generator = torch.Generator().manual_seed(0)
    rows: Rows = [[torch.randn(s, generator=generator).to(dtype) for s in shapes] for _ in range(5)]
    for row in rows:
        row[0] = row[0].to(memory_format=torch.channels_last)  # type: ignore[union-attr]
        row[3] = row[3].T.contiguous().T  # type: ignore[union-attr]
    uniform = torch.rand(flatten(rows).shape[1], generator=generator, dtype=torch.float64)
    counter = rng()
    found = on_fibers(column_ops.graddrop, rows, uniform=uniform, rng=counter, launched="graddrop")
    assert_same(found, on_cpu(column_ops.graddrop, rows, uniform=uniform))
    assert_same(counter, rng())


def grads_after(write: Callable[..., None], rows: Rows, accumulate: bool) -> list[Tensor | None]:
    """``p.grad`` of parameters that had one, had one of another layout, or had none."""
    params: list[Tensor] = []
    for t, block in enumerate(zip(*rows, strict=True)):
        like = next((g for g in block if g is not None), torch.ones(3))
        param = nn.Parameter(torch.ones_like(like))
        if t != 1:
            param.grad = torch.full_like(like, 3)
        if t == 3:
            param.grad = torch.full(like.shape, 3, dtype=like.dtype).T.contiguous().T
        params.append(param)
    write(params, rows, accumulate=accumulate)
    return [p.grad for p in params]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grads(dtype: torch.dtype, accumulate: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    shapes = ((2500,), (33,), (5,), (7, 9), (2, 3, 4, 5), (1,))
    rows: Rows = [
        [*(torch.randn(s, generator=generator).to(dtype) for s in shapes), None] for _ in range(7)
    ]
    counters = [rng(), rng()]
    for leak in (None, leaks(7)):
        wanted, found = (
            where(
                grads_after,
                partial(column_ops.graddrop_, rng=counter, leak=leak),
                rows,
                accumulate,
            )
            for where, counter in zip((on_cpu, on_fibers), counters, strict=True)
        )
        assert_same(found, wanted)
    for trim in (0, 1, 2, 3):
        write = partial(column_ops.trimmed_mean_, trim_number=trim)
        wanted, found = (
            where(grads_after, write, rows, accumulate) for where in (on_cpu, on_fibers)
        )
        step = torch.finfo(dtype).eps if trim == 3 else 0
        torch.testing.assert_close(found, wanted, rtol=step, atol=step)
    assert_same(counters[1], rng(5))  # one for each call, though each had two lists of targets
    assert_same(counters[0], counters[1])


@pytest.mark.parametrize("num_tasks", [3, 9])
def test_rows_may_be_targets(num_tasks: int) -> None:
    values = torch.randn(num_tasks, 5000, generator=torch.Generator().manual_seed(1))
    trims = (0, 1) if num_tasks == 3 else (0, 1, 2, 4)
    for call in (drop, *(lambda r, out=None, t=t: column_ops.trimmed_mean(r, t, out=out)
                         for t in trims)):  # fmt: skip
        wanted = on_fibers(call, [[v] for v in values])
        copies: Rows = [[v.clone()] for v in values]
        on_fibers(call, copies, out=[copies[-1][0]])
        assert_same(copies[-1], wanted)
        assert_same(copies[0], [values[0]])


def test_nothing_beside_the_target_is_written() -> None:
    buffer = torch.full((6000,), 77.0)
    for start, size in ((4, 4096), (5, 4096), (8, 4099), (4, 3), (6, 1)):
        rows: Rows = [[torch.randn(size)] for _ in range(3)]
        for call in (drop, lambda r, out: column_ops.trimmed_mean(r, 1, out=out)):
            on_fibers(call, rows, out=[buffer[start : start + size]])
            assert bool((buffer[:start] == 77).all())
            assert bool((buffer[start + size :] == 77).all())
            assert not bool((buffer[start : start + size] == 77).any())
            buffer.fill_(77)


def test_every_barrier_is_needed() -> None:
    rows = random_rows(5, (3000, 9000))
    assert missed_barriers(lambda: drop(rows, leaks(5))) == []


def test_wrong_arguments_launch_nothing() -> None:
    rows: Rows = [[torch.ones(3)], [torch.ones(3)]]
    wrong: list[dict[str, Any]] = [
        {},
        {"rng": torch.zeros(2, dtype=torch.int64, device="meta")},
        {"rng": torch.zeros(3, dtype=torch.int64)},
        {"rng": rng(), "leak": torch.ones(3, dtype=torch.float64)},
        {"rng": rng(), "uniform": torch.ones(4)},
    ]
    with engine(PLAIN), fiber_gpu.fibers():
        for options in wrong:
            with pytest.raises((TypeError, ValueError), match=r"^(rng|leak|uniform): expected"):
                column_ops.graddrop(rows, **options)
        with pytest.raises(ValueError, match=r"^trim_number: expected"):
            column_ops.trimmed_mean(rows, 1)
        assert fiber_gpu.launches() == {}
