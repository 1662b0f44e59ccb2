"""The CUDA kernels that work column by column, on fibers: against the CPU's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import fiber_gpu
import pytest
import torch
from kernel_cases import DTYPES, ISAS, Rows, assert_same, engine, flatten, random_rows
from torch import Tensor, nn

from mtlfast import column_ops

pytestmark = pytest.mark.skipif(not ISAS, reason="needs the native extension")

Out = list["Tensor | None"]

# Around a packet, a step of a block, and a chunk.
SIZES = (0, 1, 7, 8, 255, 257, 2047, 2048, 2049, 4100)
PLAIN = "baseline"  # this instruction set has no fused multiply-add, nor have the fibers
NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


def rng(counter: int = 3, seed: int = -7) -> Tensor:
    return torch.tensor([seed, counter])


def leaks(num_tasks: int) -> Tensor:
    return torch.linspace(0, 0.7, num_tasks, dtype=torch.float64)


def awkward(rows: Rows) -> Rows:
    """The same, with a tensor that no task reaches and one off the 16 bytes."""
    for row in rows:
        last = row[-1]
        if last is not None:
            row.append(torch.cat([last[:1], last])[1:])
        else:
            row.append(None)
        row.insert(3, None)
    return rows


def drop(rows: Rows, leak: Tensor | None = None, out: Out | None = None) -> Out:
    return column_ops.graddrop(rows, leak=leak, rng=rng(), out=out)


def on_cpu(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with engine(PLAIN):
        return call(*args, **kwargs)


def on_fibers(
    call: Callable[..., Any], *args: Any, order: str = "shuffled", launched: str = "", **kwargs: Any
) -> Any:
    """The call's result; ``launched`` is a kernel that must have run."""
    with engine(PLAIN), fiber_gpu.fibers(order):
        found = call(*args, **kwargs)
        names = fiber_gpu.launches()
    assert any(name.startswith(f"mtlfast_{launched}") for name in names), names
    return found


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
    for i, writers in enumerate(
        [
            [lambda *a, c=c, **k: column_ops.graddrop_(*a, rng=c, **k) for c in counters],
            [lambda *a, c=c, **k: column_ops.graddrop_(*a, rng=c, leak=leaks(7), **k)
             for c in counters],
            *([lambda *a, trim=trim, **k: column_ops.trimmed_mean_(*a, trim, **k)] * 2
              for trim in (0, 1, 2, 3)),
        ]
    ):  # fmt: skip
        wanted = on_cpu(grads_after, writers[0], rows, accumulate)
        found = on_fibers(grads_after, writers[1], rows, accumulate)
        step = torch.finfo(dtype).eps if i == 5 else 0
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


def seen_without(call: Callable[[], Any], file: str, line: int) -> bool:
    """Whether a call's result changes in some order when a barrier is left out."""
    wanted = on_cpu(call)
    for order in fiber_gpu.ORDERS:
        with engine(PLAIN), fiber_gpu.fibers(order), fiber_gpu.without_barrier(file, line):
            found = call()
        try:
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0, equal_nan=True)
        except AssertionError:
            return True
    return False


def test_every_barrier_is_needed() -> None:
    rows = random_rows(5, (3000, 9000))
    for k, row in enumerate(rows):  # sums of a second launch are added to the first one's
        row += random_rows(1, (9000,), torch.float64, seed=k)[0]
    missed = []
    for call in (
        lambda: drop(rows, leaks(5)),
        lambda: column_ops.excess(rows),
    ):
        fiber_gpu.barriers()
        on_fibers(call)
        found = fiber_gpu.barriers()
        assert found
        missed += [(file, line) for file, line, _ in found if not seen_without(call, file, line)]
    # Blocks run one after another here: that the first barrier of comes_last() has all of a block's
    # sums written before the block is counted, only a GPU can show.
    source = (fiber_gpu.ROOT / "csrc/kernels/gramian_sum.h").read_text().split("\n")
    first = next(i for i, text in enumerate(source) if "__threadfence();" in text) + 2
    assert missed == [("gramian_sum.h", first)]


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
