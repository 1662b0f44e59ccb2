"""The CUDA kernel of the weighted sum, on fibers, and how tables of tensors reach a kernel."""

from __future__ import annotations

import fiber_gpu
import pytest
import torch
from fiber_cases import NAMES, PLAIN, SIZES, missed_barriers, needs_native, on_cpu
from kernel_cases import DTYPES, Rows, assert_same, engine, random_rows, weighted_sum
from torch import Tensor, nn

from mtlfast import column_ops, ops

pytestmark = needs_native

Out = list["Tensor | None"]


def weights_of(num_tasks: int) -> Tensor:
    """Some are zero, some below."""
    weights = torch.linspace(-0.3, 1.1, num_tasks, dtype=torch.float64)
    weights[1::4] = 0
    return weights


def unaligned(tensor: Tensor) -> Tensor:
    """The same numbers, off the 16 bytes."""
    shifted = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return shifted.copy_(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tasks", [1, 2, 4, 5, 9, 130])
def test_combine(num_tasks: int, dtype: torch.dtype) -> None:
    """The same bits as on the CPU, also of more weights than the kernel keeps near."""
    sizes = SIZES if num_tasks < 100 else SIZES[:6]
    rows = random_rows(num_tasks, sizes, dtype, missing=0.3 if num_tasks > 2 else 0.0)
    for row in rows:
        row.insert(2, None)
        row += [None if grad is None else unaligned(grad) for grad in row]
    weights = weights_of(num_tasks)
    wanted = on_cpu(ops.combine, rows, weights)
    for order in fiber_gpu.ORDERS:
        with engine(PLAIN), fiber_gpu.fibers(order):
            assert_same(ops.combine(rows, weights), wanted)
            (launched,) = fiber_gpu.launches()
        assert launched.startswith(f"mtlfast_combine_{NAMES[dtype]}_")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_of_zero_keeps_everything_out(bad: float, dtype: torch.dtype) -> None:
    rows = random_rows(6, (3000, 5), dtype, integers=True)
    for k in (1, 4):
        rows[k] = [torch.full_like(grad, bad) for grad in rows[k] if grad is not None]
    weights = torch.tensor([1, 0, 2, 0.5, 0, -1], dtype=torch.float64)
    with engine(PLAIN), fiber_gpu.fibers():
        found = ops.combine(rows, weights)
        assert_same(found, weighted_sum(rows, weights))
        assert all(grad is not None and bool(grad.isfinite().all()) for grad in found)
        weights[4] = 1e-300
        found = ops.combine(rows, weights)
        assert all(grad is not None and not bool(grad.isfinite().any()) for grad in found)


def grads_after(rows: Rows, weights: Tensor, accumulate: bool) -> list[Tensor | None]:
    """``p.grad`` of parameters that had one of some layout, or had none."""
    params: list[Tensor] = []
    for t, block in enumerate(zip(*rows, strict=True)):
        like = next((grad for grad in block if grad is not None), torch.ones(3))
        param: Tensor = nn.Parameter(torch.ones_like(like))
        start = torch.arange(like.numel()).remainder(5).view(like.shape).to(like.dtype)
        if t % 4 == 1:
            start = start.movedim(0, -1).contiguous().movedim(-1, 0)
        elif t % 4 == 2:
            start = torch.stack([start, start], -1)[..., 0]
        elif t % 4 == 3:
            start = unaligned(start)
        if t != 0:
            param.grad = start
        params.append(param)
    kept = [p.grad for p in params]
    versions = [-1 if grad is None else grad._version for grad in kept]
    ops.combine_(params, rows, weights, accumulate=accumulate)
    reached = [any(grad is not None for grad in block) for block in zip(*rows, strict=True)]
    for param, grad, version, is_reached in zip(params, kept, versions, reached, strict=True):
        assert grad is None or param.grad is grad
        assert grad is None or (grad._version > version) == is_reached
    return [p.grad for p in params]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grads(dtype: torch.dtype, accumulate: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    shapes = ((2500,), (7, 9), (33,), (5, 3), (2, 3, 40, 5), (3, 700), (1,), (2100,))
    rows: Rows = [
        [*(torch.randn(s, generator=generator).to(dtype) for s in shapes), None] for _ in range(5)
    ]
    rows[0][4] = rows[0][4].to(memory_format=torch.channels_last)  # type: ignore[union-attr]
    wanted = on_cpu(grads_after, rows, weights_of(5), accumulate)
    for order in fiber_gpu.ORDERS:
        with engine(PLAIN), fiber_gpu.fibers(order):
            assert_same(grads_after(rows, weights_of(5), accumulate), wanted)
            # One for the gradients that were there, one for the others.
            assert sum(fiber_gpu.launches().values()) == 2


def test_all_dtypes_in_one_call() -> None:
    rows = [
        [part for dtype in DTYPES for part in random_rows(5, (3, 2500), dtype, seed=k)[0]]
        for k in range(5)
    ]
    with engine(PLAIN), fiber_gpu.fibers("shuffled"):
        found = ops.combine(rows, weights_of(5))
        launched = fiber_gpu.launches()
    assert_same(found, on_cpu(ops.combine, rows, weights_of(5)))
    assert launched == {f"mtlfast_combine_{name}_s": 1 for name in NAMES.values()}


def test_rows_may_be_targets() -> None:
    values = torch.randn(5, 5000, generator=torch.Generator().manual_seed(1))
    copies: Rows = [[value.clone()] for value in values]
    wanted = on_cpu(ops.combine, [[value] for value in values], weights_of(5))
    with engine(PLAIN), fiber_gpu.fibers("reverse"):
        ops.combine(copies, weights_of(5), [copies[3][0]])
    assert_same(copies[3], wanted)
    assert_same(copies[4], [values[4]])


def test_nothing_beside_the_target_is_written() -> None:
    buffer = torch.full((6000,), 77.0)
    for start, size in ((4, 4096), (5, 4096), (8, 4099), (4, 3), (6, 1)):
        rows: Rows = [[torch.randn(size)] for _ in range(3)]
        with engine(PLAIN), fiber_gpu.fibers():
            ops.combine(rows, weights_of(3), [buffer[start : start + size]])
        assert bool((buffer[:start] == 77).all())
        assert bool((buffer[start + size :] == 77).all())
        assert not bool((buffer[start : start + size] == 77).any())
        buffer.fill_(77)


def test_nothing_to_write_launches_nothing() -> None:
    with engine(PLAIN), fiber_gpu.fibers():
        assert ops.combine([[None], [None]], weights_of(2)) == [None]
        (empty,) = ops.combine([[torch.ones(0)], [torch.ones(0)]], weights_of(2))
        assert fiber_gpu.launches() == {}
    assert_same(empty, torch.ones(0))


# Tables


def many(num_tasks: int, num_tensors: int) -> tuple[Rows, Out, Tensor]:
    """Rows, targets, weights."""
    sizes = [1 + 37 * t % 50 for t in range(num_tensors)]
    rows = random_rows(num_tasks, sizes)
    return rows, [torch.empty(size) for size in sizes], weights_of(num_tasks)


@pytest.mark.parametrize(
    ("num_tensors", "kernel"), [(11, "s"), (12, "l"), (95, "l"), (96, "remote")]
)
def test_where_a_table_lies(num_tensors: int, kernel: str) -> None:
    """In 4 KiB of parameters, in 32 KiB, or in the memory of the device: 340 bytes a tensor."""
    rows, out, weights = many(40, num_tensors)
    with engine(PLAIN), fiber_gpu.fibers("shuffled"):
        ops.combine(rows, weights, out)
        launched = fiber_gpu.launches()
    assert_same(out, on_cpu(ops.combine, rows, weights))
    if kernel == "remote":
        # Parameters hold 32,512 bytes of it at a time.
        assert launched == {"mtlfast_upload": 2, "mtlfast_combine_f32_s": 1}
    else:
        assert launched == {f"mtlfast_combine_f32_{kernel}": 1}


def test_a_table_is_uploaded_when_it_changes() -> None:
    rows, out, weights = many(40, 120)

    def uploads() -> int:
        """How many there were in this call, whose result is right."""
        before = fiber_gpu.launches().get("mtlfast_upload", 0)
        ops.combine(rows, weights, out)
        assert_same(out, weighted_sum(rows, weights))
        return fiber_gpu.launches()["mtlfast_upload"] - before

    with engine(PLAIN), fiber_gpu.fibers():
        assert uploads() == 2
        assert uploads() == 0
        for t, grad in enumerate(rows[3]):
            rows[3][t] = grad if grad is None or t != 119 else grad + 1
        assert uploads() == 2  # one pointer, in the last tensor
        assert uploads() == 0
        for grad in (rows[0][0], rows[39][119]):
            assert grad is not None
            grad += 1
        weights += 1
        assert uploads() == 0  # numbers are no part of it
        out[5] = torch.empty_like(out[5])  # type: ignore[arg-type]
        assert uploads() == 2
        rows[7][9] = None
        assert uploads() == 2
        assert uploads() == 0


def test_kernels_do_not_share_tables() -> None:
    """Two that take turns have one each."""
    rows, out, weights = many(40, 120)
    other: Out = [torch.empty_like(grad) for grad in out if grad is not None]
    with engine(PLAIN), fiber_gpu.fibers():
        for _ in range(3):
            ops.combine(rows, weights, out)
            column_ops.trimmed_mean(rows, 1, out=other)
        launched = fiber_gpu.launches()
    assert launched["mtlfast_upload"] == 4
    assert_same(out, on_cpu(ops.combine, rows, weights))
    assert_same(other, on_cpu(column_ops.trimmed_mean, rows, 1))


def test_every_barrier_is_needed() -> None:
    rows, _, weights = many(5, 3)
    assert missed_barriers(lambda: ops.combine(rows, weights)) == []
