"""The Gramian's kernels: every element once, and how accurate the sums are."""

from __future__ import annotations

from collections.abc import Iterator

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
    assert_gramian,
    assert_same,
    engine,
    flatten,
    float64,
    random_rows,
)
from torch import Tensor

from mtlfast import ops, reference


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_agrees_with_reference(dtype: torch.dtype, num_tasks: int) -> None:
    rows = random_rows(num_tasks, SIZES, dtype, missing=0.3)
    for row in rows:
        row.insert(3, None)  # a tensor that no task reaches
    expected = reference.gramian(rows)
    assert_gramian(expected, rows, 1e-14)
    norms = expected.diagonal().sqrt()
    for isa in ISAS:
        with engine(isa):
            found = ops.gramian(rows)
        assert_same(found, found.T)
        error = 1e-14 if num_tasks <= 3 or dtype == torch.float64 else 1e-6
        scale = norms * norms[:, None]
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=error)


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_counts_once(dtype: torch.dtype, num_tasks: int) -> None:
    """Sums of small integers are exact in any order: nothing may be lost, or counted twice."""
    for missing in (0.0, 0.4):
        rows = random_rows(num_tasks, SIZES, dtype, missing=missing, integers=True)
        jacobian = flatten(rows)
        for isa in ISAS:
            with engine(isa):
                assert_same(ops.gramian(rows), jacobian @ jacobian.T)


@pytest.mark.parametrize("num_tasks", range(1, 14))
@pytest.mark.parametrize("isa", ISAS)
def test_every_size(isa: str, num_tasks: int) -> None:
    values = torch.randint(-3, 4, (num_tasks, 12_301)).float()
    whole = values.double()
    with engine(isa):
        for size in (*range(140), *range(2030, 2060), *range(4090, 4130), 8191, 8192, 12_300):
            found = ops.gramian([[row[1 : 1 + size]] for row in values])
            part = whole[:, 1 : 1 + size]
            assert_same(found, part @ part.T)


@pytest.mark.parametrize("num_tasks", [1, 3, 6, 8, 17])
@pytest.mark.parametrize("isa", ISAS)
def test_long_lists_are_shared_out_without_gaps(isa: str, num_tasks: int) -> None:
    """Shares of the columns begin and end inside tensors, and in the middle of empty ones."""
    for sizes in ((300_007,), (100_001, 0, 0, 150_003, 1), (16_384,) * 12, (97,) * 2500):
        rows = random_rows(num_tasks, sizes, missing=0.1 if len(sizes) > 1 else 0, integers=True)
        jacobian = flatten(rows)
        with engine(isa):
            assert_same(ops.gramian(rows), jacobian @ jacobian.T)


@pytest.mark.parametrize("num_tasks", [2, 9])
@pytest.mark.parametrize("name", ENGINES)
def test_empty_tensors(name: str, num_tasks: int) -> None:
    with engine(name):
        for sizes in ((10, 10, 0), (0, 10, 10), (10, 0, 0, 10), (5000, 0), (0, 0), (0,), ()):
            rows = random_rows(num_tasks, sizes, integers=True)
            jacobian = flatten(rows)
            assert_same(ops.gramian(rows), jacobian @ jacobian.T)
        nothing = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
        assert_same(ops.gramian([[None, None]] * num_tasks), nothing)


@pytest.mark.parametrize("name", ENGINES)
def test_dtypes_may_differ_between_tensors(name: str) -> None:
    rows: Rows = [[], [], []]
    for seed, dtype in enumerate((*DTYPES, *DTYPES)):
        for row, new in zip(rows, random_rows(3, (70, 3), dtype, seed=seed), strict=True):
            row.extend(new)
    with engine(name):
        assert_gramian(ops.gramian(rows), rows, 1e-14)


@pytest.mark.parametrize("name", ENGINES)
def test_answer_is_detached(name: str) -> None:
    leaf = torch.ones(4, requires_grad=True)
    with engine(name):
        found = ops.gramian([[leaf], [3 * leaf]])
    assert not found.requires_grad
    assert_same(found, torch.tensor([[4.0, 12.0], [12.0, 36.0]], dtype=torch.float64))


# Accuracy


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e18])
@pytest.mark.parametrize("isa", ISAS)
def test_float32_products_are_exact(isa: str, scale: float) -> None:
    """Short ranges, and few tasks at any length, lose only the rounding of float64 sums."""
    few = 6 if isa == "avx512" else 4
    with engine(isa):
        for num_tasks in TASKS:
            rows = random_rows(num_tasks, (1000,), scale=scale)
            assert_gramian(ops.gramian(rows), rows, 1e-14)
        for num_tasks in range(1, few + 1):
            rows = random_rows(num_tasks, (300_000,), scale=scale)
            assert_gramian(ops.gramian(rows), rows, 2e-14)


def jacobians(dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Long task gradients ``[9, 100 003]``, from easy to such whose float32 products fail."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(9, 100_003, generator=generator, dtype=torch.float64)
    columns = torch.arange(normal.shape[1])
    low, high = (-7.0, 4.0) if dtype == torch.float16 else (-20.0, 18.0)
    decades = torch.linspace(low, high, 9, dtype=torch.float64)[:, None]
    yield "normal", normal
    yield "one sign", normal.abs()
    yield "smallest", normal * 10**low
    yield "largest", normal * 10**high
    yield "decades between tasks", normal * 10**decades
    yield "one tiny, one huge", normal * float64(10**low, 10**high, *[1.0] * 7)[:, None]
    share = normal.roll(1, 1).clamp(-2, 2) / 4 + 0.5
    yield "decades within", normal * 10 ** (low + share * (high - low))
    yield "tiny, then one", torch.where(columns < 50_000, normal * 10**low, normal)
    yield "huge, then one", torch.where(columns < 50_000, normal * 10**high, normal)
    task = torch.arange(9)[:, None]
    yield "long stretches of zeros", torch.where((columns // 9000 + task) % 3 == 0, normal, 0.0)
    yield "zero tasks", torch.where(task % 2 == 0, normal, 0.0)
    yield "zeros and underflow", torch.where(task % 2 == 0, normal * 10**low, 0.0)
    yield "denormal", normal * (1e-6 if dtype == torch.float16 else 1e-41)
    yield "one denormal task", normal * float64(1e-41, *[1.0] * 8)[:, None]
    yield "a lone spike", torch.where(columns == 77_777, 10**high, normal)
    yield "constant", (0.5 + task / 11).expand(9, 100_003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_many_tasks_are_accurate_at_every_scale(isa: str, dtype: torch.dtype) -> None:
    for kind, jacobian in jacobians(dtype):
        matrix = jacobian.to(dtype)
        rows: Rows = [[row] for row in matrix]
        with engine(isa):
            found = ops.gramian(rows)
        try:
            assert_gramian(found, rows, 1e-6)
        except AssertionError as error:
            raise AssertionError(f"{kind}: {error}") from error


@pytest.mark.parametrize("isa", ISAS)
def test_constant_rows_do_not_gather_rounding_errors(isa: str) -> None:
    """A mean's gradient rounds the same way in every addition."""
    generator = torch.Generator().manual_seed(0)
    with engine(isa):
        for _ in range(30):
            values = torch.rand(8, generator=generator) + 0.5
            rows: Rows = [[value.expand(8192)] for value in values]
            assert_gramian(ops.gramian(rows), rows, 1e-6)


# NaN and Inf


@pytest.mark.parametrize("num_tasks", [1, 2, 4, 6, 7, 9, 65])
@pytest.mark.parametrize("name", ENGINES)
def test_nonfinite_elements_reach_their_entries_only(name: str, num_tasks: int) -> None:
    size = 5003 if name in ISAS else 50
    bad = num_tasks // 2
    for column in (0, 37, size // 2, size - 1):
        rows = random_rows(num_tasks, (size, 100), seed=column)
        clean = flatten(rows) @ flatten(rows).T
        clean_first = rows[bad][0]
        assert clean_first is not None
        for value in (float("nan"), float("inf"), float("-inf")):
            first = clean_first.clone()
            first[column] = value
            rows[bad][0] = first
            with engine(name):
                found = ops.gramian(rows)
            expected = clean.clone()
            at_column = torch.stack([row[0][column] for row in rows if row[0] is not None]).double()
            expected[bad] = expected[:, bad] = value * at_column
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-2, equal_nan=True)
        rows[bad][0] = clean_first


@pytest.mark.parametrize("num_tasks", [3, 8])
@pytest.mark.parametrize("name", ENGINES)
def test_nonfinite_elements_meet_zeros_and_none(name: str, num_tasks: int) -> None:
    rows: Rows = [[torch.ones(4200), torch.ones(3)] for _ in range(num_tasks)]
    rows[0] = [torch.full((4200,), float("inf")), torch.ones(3)]
    rows[1] = [torch.zeros(4200), torch.ones(3)]
    rows[2] = [None, torch.ones(3)]
    with engine(name):
        found = ops.gramian(rows)
    assert_same(found[0, 0], torch.tensor(float("inf"), dtype=torch.float64))
    assert bool(found[0, 1].isnan())  # Inf times zero
    assert_same(found[0, 2], torch.tensor(3.0, dtype=torch.float64))  # they share one tensor
    assert bool(found[0, 3:].isposinf().all())
    assert bool(found[1:, 1:].isfinite().all())


# Properties


@st.composite
def lists(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Rows:
    num_tasks = draw(st.integers(1, 9))
    shape = st.lists(st.integers(0, 9), max_size=3).map(tuple)
    shapes = draw(st.lists(st.one_of(shape, st.just((1025,))), max_size=5))
    seed, dtype = draw(st.integers(0, 999)), draw(st.sampled_from(dtypes))
    sizes = [torch.Size(s).numel() for s in shapes]
    rows = random_rows(num_tasks, sizes, dtype, seed=seed, missing=draw(st.sampled_from((0, 0.5))))
    return [
        [None if g is None else g.reshape(s) for g, s in zip(row, shapes, strict=True)]
        for row in rows
    ]


def property_test(max_examples: int) -> settings:
    return settings(max_examples=max_examples, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("isa", ISAS)
@property_test(60)
@given(rows=lists())
def test_symmetric_and_positive_semidefinite(isa: str, rows: Rows) -> None:
    with engine(isa):
        found = ops.gramian(rows)
    assert_gramian(found, rows, 1e-6)
    smallest = float(torch.linalg.eigvalsh(found)[0])
    assert smallest >= -1e-6 * float(found.diagonal().sum())


@pytest.mark.parametrize("isa", ISAS)
@property_test(60)
@given(rows=lists((torch.float32, torch.float64, torch.bfloat16)), data=st.data())
def test_powers_of_two_come_through_exactly(isa: str, rows: Rows, data: st.DataObject) -> None:
    exponents = data.draw(st.lists(st.integers(-12, 12), min_size=9, max_size=9))[: len(rows)]
    factors = 2.0 ** torch.tensor(exponents, dtype=torch.float64)
    scaled: Rows = [
        [None if g is None else g * float(factor) for g in row]
        for factor, row in zip(factors, rows, strict=True)
    ]
    with engine(isa):
        assert_same(ops.gramian(scaled), ops.gramian(rows) * factors * factors[:, None])


@pytest.mark.parametrize("isa", ISAS)
@property_test(60)
@given(rows=lists(), data=st.data())
def test_tasks_may_be_renamed_and_tensors_joined(isa: str, rows: Rows, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    with engine(isa):
        renamed = ops.gramian([rows[k] for k in order])
        found = ops.gramian(rows)
        joined = ops.gramian([[row] for row in flatten(rows)])
    error = 1e-6 * float(found.diagonal().max())
    torch.testing.assert_close(renamed, found[order][:, order], rtol=0, atol=error)
    torch.testing.assert_close(joined, found, rtol=0, atol=error)
