"""Memory as autograd and users leave it: strides, alignment, aliases; outputs past the cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from kernel_cases import DTYPES, ENGINES, ISAS, Rows, assert_same, engine, float64
from torch import Tensor

from mtlfast import ops

SHAPE = (3, 4, 5, 6)
Layout = Callable[[Tensor], Tensor]  # the same values, laid out in another way


def in_larger(step: int, start: int = 0) -> Layout:
    """Every ``step``-th element of a larger tensor, from ``start`` on."""

    def layout(values: Tensor) -> Tensor:
        size = values.shape[-1]
        buffer = torch.full((*values.shape[:-1], step * size + start), 99.0, dtype=values.dtype)
        view = buffer[..., start::step]
        return view.copy_(values)

    return layout


def permuted(*order: int) -> Layout:
    def layout(values: Tensor) -> Tensor:
        inverse = torch.tensor(order).argsort().tolist()
        return values.permute(order).contiguous().permute(inverse)

    return layout


def shifted(elements: int) -> Layout:
    """Contiguous, off the allocator's alignment by some elements."""

    def layout(values: Tensor) -> Tensor:
        buffer = torch.full((values.numel() + elements,), 99.0, dtype=values.dtype)
        return buffer[elements:].view(values.shape).copy_(values)

    return layout


def off_by_one_byte(values: Tensor) -> Tensor:
    """Contiguous, at an address that is no multiple of the element's size."""
    memory = bytearray(values.numel() * values.element_size() + 1)
    view = torch.frombuffer(memory, dtype=values.dtype, offset=1, count=values.numel())
    return view.view(values.shape).copy_(values)


def imaginary(values: Tensor) -> Tensor:
    """A view with the negative bit, as ``conj`` leaves it; halves have no complex partner."""
    if values.dtype not in (torch.float32, torch.float64):
        return values
    return torch.complex(torch.zeros_like(values), -values).conj().imag


LAYOUTS: dict[str, Layout] = {
    "contiguous": torch.clone,
    "channels_last": lambda values: values.contiguous(memory_format=torch.channels_last),
    "permuted": permuted(1, 0, 2, 3),
    "reversed": permuted(3, 2, 1, 0),
    "strided": in_larger(2),
    "cut out": in_larger(1, 3),
    "shifted": shifted(1),
    "off by a byte": off_by_one_byte,
    "negative": imaginary,
}
PAIRS = [*product(LAYOUTS, repeat=2)]


def integers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """In [-3, 3]: sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).to(dtype)


def assert_both(rows: Rows, values: Tensor) -> None:
    """The answers are those of the values ``[K, ...]`` in plain memory."""
    flat = values.double().reshape(len(values), -1)
    assert_same(ops.gramian(rows), flat @ flat.T)
    weights = torch.arange(1, len(values) + 1, dtype=torch.float64)
    expected = (weights @ flat).reshape(values.shape[1:]).to(values.dtype)
    assert_same(ops.combine(rows, weights), [expected])


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_layouts_may_differ_between_tasks(
    name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """In one element all strides look plain, and only the negative bit is left to see."""
    values = integers(2, *shape, dtype=dtype) + 4
    with engine(name):
        for first, second in PAIRS:
            assert_both([[LAYOUTS[first](values[0])], [LAYOUTS[second](values[1])]], values)


@pytest.mark.parametrize("name", ENGINES)
def test_layouts_may_differ_between_many_tasks_and_tensors(name: str) -> None:
    """More copies in each call than in the one before."""
    with engine(name):
        for num_tensors in (1, 2, 7, 40):
            values = integers(9, num_tensors, *SHAPE, seed=num_tensors)
            rows: Rows = [
                [
                    layout(tensor)
                    for tensor, layout in zip(task, [*LAYOUTS.values()][k:] * 40, strict=False)
                ]
                for k, task in enumerate(values)
            ]
            flat = values.double().reshape(9, -1)
            assert_same(ops.gramian(rows), flat @ flat.T)
            found = ops.combine(rows, torch.ones(9, dtype=torch.float64))
            assert_same(found, list(values.sum(0)))


@pytest.mark.parametrize("name", ENGINES)
def test_expanded_tensors(name: str) -> None:
    """What the backward of a sum leaves: no strides at all."""
    with engine(name):
        for shape in ((5,), (3, 4), (2, 3, 4)):
            for base in (integers(3), integers(3, seed=1)):
                scalars = [value.expand(shape) for value in base]
                assert_both([[s] for s in scalars], torch.stack(scalars))
                dense = integers(*shape)
                mixed = [scalars[0], dense, scalars[1]]
                assert_both([[m] for m in mixed], torch.stack(mixed))
        rows = integers(3, 4)[:, None].expand(3, 6, 4)
        assert_both([[row] for row in rows], rows)
        for count in (1, 2, 50):  # more copies in each call than in the one before
            lists: Rows = [[torch.ones(1).expand(7) for _ in range(count)] for _ in range(3)]
            assert_same(ops.gramian(lists), torch.full((3, 3), 7.0 * count, dtype=torch.float64))


@pytest.mark.parametrize("name", ENGINES)
def test_shapes_of_one_element_and_of_none(name: str) -> None:
    with engine(name):
        for shape in ((), (1,), (1, 1, 1), (0,), (3, 0, 2), (1, 5), (5, 1), (1, 3, 1, 4)):
            values = integers(3, *shape)
            assert_both([[v] for v in values], values)
            turned = values.movedim(1, -1) if shape else values
            assert_both([[v] for v in turned], turned)


class Lazy(Sequence[Tensor]):
    """Makes its tensors when asked, and keeps none of them."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: Any) -> Any:
        return self.tensors[index].clone()


@pytest.mark.parametrize("name", ENGINES)
def test_tuples_and_other_sequences(name: str) -> None:
    values = integers(3, 4, 30_000)
    flat = values.double().reshape(3, -1)
    weights = float64(1, 2, 3)
    expected = list((weights @ flat).float().view(4, 30_000))
    with engine(name):
        for rows in (
            tuple(tuple(row) for row in values),
            [Lazy(list(row)) for row in values],
            deque(deque(row) for row in values),
        ):
            assert_same(ops.gramian(rows), flat @ flat.T)
            assert_same(ops.combine(rows, weights), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_out_of_any_layout(name: str, dtype: torch.dtype) -> None:
    values = integers(2, *SHAPE, dtype=dtype)
    expected = values[0] + 2 * values[1]
    with engine(name):
        for rows_in, out_in in PAIRS:
            out = LAYOUTS[out_in](torch.full(SHAPE, 55.0, dtype=dtype))
            version, address = out._version, out.data_ptr()
            rows = [[LAYOUTS[rows_in](v)] for v in values]
            outs: list[Tensor | None] = [out]
            assert ops.combine(rows, float64(1, 2), outs) is outs
            assert outs[0] is out
            assert out.data_ptr() == address
            assert out._version > version
            assert_same(out, expected)


@pytest.mark.parametrize("name", ENGINES)
def test_strided_out_leaves_the_gaps_alone(name: str) -> None:
    buffer = torch.full((40, 30), 9.0)
    values = integers(2, 20, 10)
    with engine(name):
        ops.combine([[v] for v in values], float64(1, 1), [buffer[1::2, 2::3]])
    assert_same(buffer[1::2, 2::3], values.sum(0))
    buffer[1::2, 2::3] = 9
    assert_same(buffer, torch.full((40, 30), 9.0))


@pytest.mark.parametrize("name", ENGINES)
def test_negative_out_of_one_element(name: str) -> None:
    """Its strides look plain; only the negative bit tells it apart."""
    memory = torch.zeros(1, dtype=torch.complex64)
    with engine(name):
        ops.combine([[torch.tensor([5.0])]], float64(1), [memory.conj().imag])
    assert_same(memory, torch.tensor([-5j], dtype=torch.complex64))


@pytest.mark.parametrize("name", ENGINES)
def test_out_may_be_one_of_the_rows(name: str) -> None:
    for size in (1, 31, 5000, 70_000):
        values = integers(6, size)
        for k in range(6):
            rows: list[list[Tensor]] = [[v.clone()] for v in values]
            with engine(name):
                ops.combine(rows, torch.ones(6, dtype=torch.float64), [rows[k][0]])
            assert_same(rows[k][0], values.sum(0))
            assert_same(rows[k - 1][0], values[k - 1])
    square = integers(2, 8, 8)
    row = square[0].clone()
    with engine(name):
        ops.combine([[row], [square[1]]], float64(1, 1), [row.t()])
    assert_same(row.t(), square.sum(0))


# More than 2^21 columns: the result is written past the cache, which needs aligned addresses.

MANY = (1 << 21) + 777


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_large_outputs_at_every_alignment(isa: str, dtype: torch.dtype) -> None:
    values = integers(2, MANY + 64, dtype=dtype)
    line = 64 // values.element_size()
    buffer = torch.empty(MANY + 64, dtype=dtype)
    first = -buffer.data_ptr() % 64 // buffer.element_size()  # the start of a cache line
    with engine(isa):
        for offset in range(line):
            start = first + offset
            buffer.fill_(99)
            rows: Rows = [[v[offset : offset + MANY]] for v in values]
            ops.combine(rows, float64(1, -2), [buffer[start : start + MANY]])
            expected = values[0, offset : offset + MANY] - 2 * values[1, offset : offset + MANY]
            assert torch.equal(buffer[start : start + MANY], expected)
            assert bool((buffer[:start] == 99).all())
            assert bool((buffer[start + MANY :] == 99).all())


@pytest.mark.parametrize("num_tasks", [1, 4, 5, 9])
@pytest.mark.parametrize("isa", ISAS)
def test_large_ragged_outputs(isa: str, num_tasks: int) -> None:
    """Tensors that end before the next cache line; not a byte around them is written."""
    sizes = [1 << 20, 0, 1, 3, 7, 13, 31, 1025, 15, 1 << 20, 4097, 2]
    values = integers(num_tasks, sum(sizes) + 1)[:, 1:]
    rows: Rows = [list(torch.split(task, sizes)) for task in values]
    buffer = torch.full((sum(sizes) + 20 * len(sizes),), 99.0)
    expected = buffer.clone()
    outs: list[Tensor | None] = []
    begin = 5
    for size, total in zip(sizes, torch.split(values.sum(0), sizes), strict=True):
        outs.append(buffer[begin : begin + size])
        expected[begin : begin + size] = total
        begin += size + 17
    with engine(isa):
        ops.combine(rows, torch.ones(num_tasks, dtype=torch.float64), outs)
    assert torch.equal(buffer, expected)


@pytest.mark.parametrize("name", ENGINES)
def test_large_output_off_by_one_byte(name: str) -> None:
    values = integers(1, MANY)
    out = off_by_one_byte(torch.zeros(MANY))
    with engine(name):
        ops.combine([[values[0]]], float64(3), [out])
    assert torch.equal(out, 3 * values[0])
