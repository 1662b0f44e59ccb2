"""The kernels of the weighted sum: every element once, rounded as torch rounds."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_cases import (
    DTYPES,
    ENGINES,
    ISAS,
    SIZES,
    TASKS,
    Rows,
    assert_same,
    engine,
    flatten,
    float64,
    random_rows,
    weighted_sum,
)
from torch import Tensor

from mtlfast import ops, reference

HALVES = (torch.bfloat16, torch.float16)


def short_weights(num_tasks: int, seed: int = 0) -> Tensor:
    """``[K]`` float64 of 24 bits: products with float32 are exact, with or without fusing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tasks, generator=generator).double()


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_agrees_with_reference(dtype: torch.dtype, num_tasks: int) -> None:
    rows = random_rows(num_tasks, SIZES, dtype, missing=0.3)
    for row in rows:
        row.insert(3, None)  # a tensor that no task reaches
    weights = short_weights(num_tasks)
    expected = reference.combine(rows, weights)
    assert expected[3] is None
    for isa in ISAS:
        with engine(isa):
            found = ops.combine(rows, weights)
        if dtype == torch.float64:  # only here a fused multiply-add may differ
            size = sum(flatten(rows).abs().max(1).values * weights.abs())
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-15 * float(size))
        else:
            assert_same(found, expected)


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("name", ENGINES)
def test_sums_are_float64(name: str, num_tasks: int) -> None:
    """Bitwise the float64 sum, cast once, also where large terms cancel."""
    signs = torch.tensor([1.0, -1.0]).repeat(num_tasks)[:num_tasks]
    for dtype in DTYPES:
        rows = random_rows(num_tasks, (1, 31, 1025, 2600), dtype, missing=0.1)
        # Powers of two: exact products in every dtype.
        weights = 2.0 ** torch.arange(num_tasks).remainder(9).sub(4).double() * signs
        with engine(name):
            assert_same(ops.combine(rows, weights), weighted_sum(rows, weights))
        if dtype in HALVES or num_tasks < 3:
            continue
        big, small = rows[0], rows[1]
        cancel = [small, [None if g is None else 1e6 * g for g in big], *rows[2:-1]]
        cancel.append([None if g is None else -g for g in cancel[1]])
        weights = torch.ones(num_tasks, dtype=torch.float64)
        with engine(name):
            assert_same(ops.combine(cancel, weights), weighted_sum(cancel, weights))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_every_size_and_number_of_rows(isa: str, dtype: torch.dtype) -> None:
    """Nothing is left out, and nothing beside the output is touched."""
    values = torch.randint(-3, 4, (10, 4200)).to(dtype)
    expected = values[1:].double().cumsum(0).to(dtype)
    buffer = torch.full((4300,), 77.0, dtype=dtype)
    untouched = buffer.clone()
    with engine(isa):
        for num_tasks in range(1, 10):
            weights = torch.ones(num_tasks, dtype=torch.float64)
            for size in (*range(70), 127, 128, 129, 1023, 1024, 1025, 1060, 2047, 2049, 4097):
                start = 5 + size % 7
                out = buffer[start : start + size]
                rows = [[row[3 : 3 + size]] for row in values[1 : 1 + num_tasks]]
                ops.combine(rows, weights, [out])
                assert_same(out, expected[num_tasks - 1, 3 : 3 + size])
                out.fill_(77)
                assert_same(buffer, untouched)


@pytest.mark.parametrize("name", ENGINES)
def test_empty_tensors(name: str) -> None:
    weights = float64(2, 3)
    with engine(name):
        for sizes in ((10, 10, 0), (0, 10, 10), (0, 0), (0,), ()):
            rows = random_rows(2, sizes, integers=True)
            assert_same(ops.combine(rows, weights), weighted_sum(rows, weights))
        assert ops.combine([[None, None], [None, None]], weights) == [None, None]
        ones = torch.ones(4)
        assert_same(ops.combine([[None, ones], [None, None]], weights), [None, 2 * ones])
        out: list[Tensor | None] = [torch.full((3,), 7.0), torch.empty(4)]
        assert ops.combine([[None, ones], [None, None]], weights, out) is out
        assert_same(out, [torch.full((3,), 7.0), 2 * ones])


@pytest.mark.parametrize("num_tasks", [2, 8])
@pytest.mark.parametrize("isa", ISAS)
def test_long_lists_are_shared_out_without_gaps(isa: str, num_tasks: int) -> None:
    weights = torch.ones(num_tasks, dtype=torch.float64)
    for sizes in ((300_007,), (100_001, 0, 0, 150_003, 1), (97,) * 2500):
        rows = random_rows(num_tasks, sizes, missing=0.1 if len(sizes) > 1 else 0, integers=True)
        with engine(isa):
            assert_same(ops.combine(rows, weights), weighted_sum(rows, weights))


@pytest.mark.parametrize("name", ENGINES)
def test_weight_of_exactly_zero_drops_the_task(name: str) -> None:
    bad = torch.full((2049,), float("nan"))
    fine = torch.randn(2049)
    with engine(name):
        for zero in (0.0, -0.0):
            found = ops.combine([[bad], [fine], [-bad]], float64(zero, 2, zero))
            assert_same(found, [2 * fine])
            assert_same(ops.combine([[bad], [bad]], float64(zero, 0)), [torch.zeros(2049)])
        found = ops.combine([[bad], [fine]], float64(5e-324, 1))
        assert_same(found, [bad])
        for payload in (1 << 51, (1 << 52) - 1):  # the quiet NaN with the least and the most bits
            nan = torch.tensor([(0x7FF << 52) | payload]).view(torch.float64)
            for dtype in DTYPES:
                assert_same(ops.combine([[fine.to(dtype)]], nan), [bad.to(dtype)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ENGINES)
def test_nonfinite_elements_stay_in_their_column(name: str, value: float) -> None:
    for dtype in DTYPES:
        rows = random_rows(5, (1100,), dtype)
        bad = rows[4][0]
        assert bad is not None
        for column in (0, 5, 517, 1030, 1099):
            bad[column] = value
        weights = short_weights(5).abs()
        with engine(name):
            (found,) = ops.combine(rows, weights)
        assert found is not None
        expected = torch.full((5,), value, dtype=dtype)
        assert_same(found[[0, 5, 517, 1030, 1099]], expected)
        assert int(found.isfinite().sum()) == 1095


# Rounding to half precision, against torch's own casts


def every_half(dtype: torch.dtype) -> Tensor:
    """All 65 536 values, NaN and Inf among them, so that the next one in size is the next one."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_every_half_value_comes_back(name: str, dtype: torch.dtype) -> None:
    values = every_half(dtype)
    with engine(name):
        assert_same(ops.combine([[values]], float64(1)), [values])
        # One element short of a whole vector: the partial loads and stores.
        assert_same(
            [ops.combine([[part]], float64(1))[0] for part in torch.split(values, 15)],
            list(torch.split(values, 15)),
        )
        assert_same(ops.combine([[values]], float64(-2)), [(values.double() * -2).to(dtype)])
        some = values[~values.isnan()][::997]
        squares = ops.gramian([[value] for value in some]).diagonal()
        assert_same(squares, some.double().square())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_every_tie_goes_to_even(name: str, dtype: torch.dtype) -> None:
    """Halfway between all neighbours, subnormal ones too, and a hair off to either side."""
    values = every_half(dtype)
    rows: Rows = [[values], [values.roll(-1)], [values]]
    for nudge in (0.0, 2.0**-20, -(2.0**-20)):
        weights = float64(0.5, 0.5, nudge)
        with engine(name):
            assert_same(ops.combine(rows, weights), weighted_sum(rows, weights))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_random_floats_round_to_half(name: str, dtype: torch.dtype) -> None:
    """Three halves side by side hold any float32."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (3, 100_000), generator=generator).to(torch.int16)
    rows: Rows = [[row] for row in bits.view(dtype)]
    step = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    with engine(name):
        for scale in (1.0, 1e-3, 8.0):
            weights = (scale * float64(1, step, step**2)).float().double()
            assert_same(ops.combine(rows, weights), weighted_sum(rows, weights))


@pytest.mark.parametrize("name", ENGINES)
def test_edges_of_the_range(name: str) -> None:
    inf = float("inf")
    largest16 = torch.finfo(torch.bfloat16).max
    largest32 = torch.finfo(torch.float32).max
    with engine(name):
        for dtype, value, weight, expected in (
            (torch.float16, 65504.0, 65519.9 / 65504, 65504.0),
            (torch.float16, 65504.0, 65520.1 / 65504, inf),
            (torch.float16, 32768.0, -2.0, -inf),
            (torch.float16, 2.0**-24, 0.5, 0.0),
            (torch.float16, 2.0**-24, 0.5001, 2.0**-24),
            (torch.float16, 2.0**-24, 1.5, 2.0**-23),
            (torch.float16, 1.0, 2.0**-14 - 2.0**-25, 2.0**-14),  # the first normal number
            (torch.float16, 1.0, 1e300, inf),
            (torch.bfloat16, largest16, 1 + 2.0**-10, largest16),
            (torch.bfloat16, largest16, 1 + 2.0**-8, inf),
            (torch.bfloat16, 1.0, 2.0**-133, 2.0**-133),  # the smallest subnormal number
            (torch.bfloat16, 1.0, 2.0**-135, 0.0),
            (torch.float32, largest32, 2.0, inf),
            (torch.float32, largest32, -1 - 2.0**-26, -largest32),
            (torch.float32, 1.0, 2.0**-149, 2.0**-149),
            (torch.float32, 1.0, 2.0**-150, 0.0),
            (torch.float64, 1e308, 10.0, inf),
        ):
            for size in (1, 40):  # a partial vector, and whole ones
                (found,) = ops.combine([[torch.full((size,), value, dtype=dtype)]], float64(weight))
                assert_same(found, torch.full((size,), expected, dtype=dtype))


# Properties


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data(), num_tasks=st.integers(1, 9), seed=st.integers(0, 999))
def test_linear_in_the_weights(isa: str, data: st.DataObject, num_tasks: int, seed: int) -> None:
    sizes = data.draw(st.lists(st.integers(0, 80), max_size=4))
    rows = random_rows(num_tasks, sizes, torch.float64, seed=seed, missing=0.3)
    first, second = short_weights(num_tasks, seed), short_weights(num_tasks, seed + 1)
    a, b = data.draw(st.tuples(st.floats(-9, 9), st.floats(-9, 9)))
    with engine(isa):
        both = ops.combine(rows, a * first + b * second)
        parts = zip(ops.combine(rows, first), ops.combine(rows, second), strict=True)
    for whole, (one, other) in zip(both, parts, strict=True):
        if whole is None or one is None or other is None:
            assert whole is one is other is None
        else:
            torch.testing.assert_close(whole, a * one + b * other, rtol=0, atol=1e-11)
