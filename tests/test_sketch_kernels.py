"""The kernel that folds gradients into sketches: every instruction set, and the reference."""

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
    assert_same,
    engine,
)
from sketches import SEED, SMALL, sign_by_hand, sketched, splitmix, vectors

from mtlfast import sketch_ops
from mtlfast.reference.sketch import draw_signs

FIRSTS = (0, 1, 63, 64, 1000, 12_345, 2**33 + 7, 2**60 - 200_000)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- what it computes ----------------------------------------------------------------------------


def test_signs_by_hand() -> None:
    assert splitmix(0) == 0xE220A8397B1DCDAF  # the generator's published first output
    numbers = [*range(130), 2**40 - 1, 2**40, 2**60 - 1]
    for seed in (0, 1, -1, 2**63 - 1, -(2**63)):
        expected = torch.tensor([sign_by_hand(seed, number) for number in numbers])
        assert_same(draw_signs(seed, torch.tensor(numbers)), expected)


@pytest.mark.parametrize("name", ENGINES)
def test_by_hand(name: str) -> None:
    """Two elements fall into one bucket; what was there before stays."""
    long = torch.arange(1.0, SMALL + 3)
    with engine(name):
        sketch, norm = sketched([torch.tensor([[3.0, -4.0]]), long], first=1022, start=1.0)
    expected = torch.ones(SMALL)
    for at, value in enumerate([3.0, -4.0, *long.tolist()]):
        expected[(1022 + at) % SMALL] += value * sign_by_hand(SEED, 1022 + at)
    assert_same(sketch, expected)
    assert float(norm) == 1 + 25 + float((long.double() ** 2).sum())


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_agrees_with_reference(dtype: torch.dtype, first: int) -> None:
    """The same bits: a bucket adds in the same order."""
    grads = vectors(SIZES, dtype)
    for num_buckets in (1024, 16384):
        with engine("reference"):
            sketch, norm = sketched(grads, first, num_buckets=num_buckets, start=0.5)
        for isa in ISAS:
            with engine(isa):
                found = sketched(grads, first, num_buckets=num_buckets, start=0.5)
            assert_same(found[0], sketch)
            torch.testing.assert_close(found[1], norm, rtol=1e-14, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_all_dtypes_in_one_call(isa: str) -> None:
    grads = [part for dtype in DTYPES for part in vectors((3, 2500, 130), dtype)]
    with engine("reference"):
        sketch, norm = sketched(grads, 77)
    with engine(isa):
        found = sketched(grads, 77)
    assert_same(found[0], sketch)
    torch.testing.assert_close(found[1], norm, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_every_size_and_start(name: str, dtype: torch.dtype) -> None:
    """Nothing is left out or read twice, nothing beside the gradient is read."""
    buffer = torch.full((400,), torch.nan).to(dtype)
    signs = draw_signs(SEED, torch.arange(2 * SMALL))
    for size in (*range(0, 140, 3), 127, 128, 129, 191, 192, 193):
        for first in (0, 5, 63, 64, 1000, 1023):
            grad = buffer[7 : 7 + size]
            grad.copy_(torch.arange(1, size + 1) % 5 - 2)
            numbers = torch.arange(first, first + size)
            expected = torch.zeros(SMALL).index_add(
                0, numbers % SMALL, signs[numbers] * grad.float()
            )
            with engine(name):
                sketch, norm = sketched([grad], first)
            assert_same(sketch, expected)
            assert float(norm) == float(grad.double().square().sum())
            grad.fill_(torch.nan)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_a_list_may_be_split(name: str, dtype: torch.dtype) -> None:
    grads = vectors((700, 0, 33, 5000, 1, 2048, 64, 9000), dtype)
    with engine(name):
        whole, norm = sketched(grads, 31)
        sketch, square = torch.zeros(SMALL), torch.zeros((), dtype=torch.float64)
        first = 31
        for grad in grads:
            sketch_ops.sketch_(sketch, square, [grad], first, SEED)
            first += grad.numel()
    assert_same(sketch, whole)
    torch.testing.assert_close(square, norm[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ENGINES)
def test_tensors_may_come_in_any_order(name: str) -> None:
    grads = vectors((700, 33, 5000, 2048), integers=True)
    firsts = [0, 700, 733, 5733]
    with engine(name):
        whole = sketched(grads)
        sketch, norm = torch.zeros(SMALL), torch.zeros(1, dtype=torch.float64)
        for t in (2, 0, 3, 1):
            sketch_ops.sketch_(sketch, norm, [grads[t]], firsts[t], SEED)
    assert_same((sketch, norm), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_any_number_of_threads(isa: str, dtype: torch.dtype) -> None:
    grads = vectors((120_001, 0, 7, 60_000, *range(1, 300, 7), 200_000), dtype)
    with engine(isa):
        for num_buckets in (1024, 65536):
            torch.set_num_threads(1)
            expected = sketched(grads, 99, num_buckets=num_buckets)
            for threads in (1, 2, 3, 2):
                torch.set_num_threads(threads)
                found = sketched(grads, 99, num_buckets=num_buckets)
                assert found[0].equal(expected[0])
                assert found[1].equal(expected[1])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=5),
    first=st.integers(0, 2**59),
    seed=st.integers(-(2**63), 2**63 - 1),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=5, max_size=5),
)
def test_any_list(sizes: list[int], first: int, seed: int, dtypes: list[torch.dtype]) -> None:
    grads = [vectors([size], dtype)[0] for size, dtype in zip(sizes, dtypes, strict=False)]
    with engine("reference"):
        sketch, norm = sketched(grads, first, seed=seed)
    numbers = torch.arange(first, first + sum(sizes))
    expected = torch.zeros(SMALL, dtype=torch.float64).index_add(
        0,
        numbers % SMALL,
        draw_signs(seed, numbers).double() * torch.cat([g.double() for g in grads]),
    )
    torch.testing.assert_close(sketch.double(), expected, rtol=0, atol=1e-5)
    for isa in ISAS:
        with engine(isa):
            found = sketched(grads, first, seed=seed)
        assert_same(found[0], sketch)
        torch.testing.assert_close(found[1], norm, rtol=1e-14, atol=0)
