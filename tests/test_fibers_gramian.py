"""The Gramian's CUDA kernels, run by fibers: in registers, in triangles of tiles, and in pairs."""

from __future__ import annotations

import fiber_gpu
import pytest
import torch
from fiber_cases import NAMES, needs_native
from kernel_cases import DTYPES, Rows, assert_same, flatten, random_rows
from torch import Tensor

from mtlfast import ops, reference

pytestmark = needs_native

TASKS = (*range(1, 21), 24, 31, 32, 33, 40, 48, 64)
MANY_TASKS = (65, 80, 130)
FEW = (2, 7, 12, 16, 21, 40)
"""One for each kind of kernel, with and without rows that only fill up."""

SUMS = ("float32", "float64")
NARROW = (torch.float32, torch.bfloat16, torch.float16)


def exact(dtype: torch.dtype, sums: str) -> bool:
    return sums == "float64" or dtype == torch.float64


def kernel(num_tasks: int, dtype: torch.dtype, sums: str) -> str:
    """The kernel that has to run, without the suffix for the size of its parameters."""
    in_registers = (2, 3, 4, 6, 8) if exact(dtype, sums) else (2, 3, 4, 6, 8, 12)
    rows = next((k for k in (*in_registers, 16, 24, 32, 40, 48, 64) if k >= num_tasks), None)
    suffix = "x" if exact(dtype, sums) and dtype != torch.float64 else ""
    name = "pairs" if rows is None else f"k{rows}"
    return f"mtlfast_gramian_{NAMES[dtype]}{suffix}_{name}"


def launched() -> dict[str, int]:
    """By name without the suffix for the size of the parameters."""
    counts: dict[str, int] = {}
    for name, count in fiber_gpu.launches().items():
        stem = name.removesuffix("_s").removesuffix("_l")
        counts[stem] = counts.get(stem, 0) + count
    return counts


def run(rows: Rows, sums: str, order: str = "forward", seed: int = 0) -> Tensor:
    """The Gramian of rows of one dtype, by the kernel that is meant for it and no other."""
    dtype = next(g.dtype for row in rows for g in row if g is not None)
    with fiber_gpu.fibers(order, seed, sums):
        found = ops.gramian(rows)
        assert launched() == {kernel(len(rows), dtype, sums): 1}
    assert_same(found, found.T)
    return found


def assert_close(found: Tensor, expected: Tensor, error: float) -> None:
    """Compares relative to ``|g_i| |g_j|``."""
    norms = expected.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    scale = norms * norms[:, None]
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=error)


def tolerance(dtype: torch.dtype, sums: str) -> float:
    return 1e-14 if exact(dtype, sums) else 6e-7


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_reference(dtype: torch.dtype, num_tasks: int) -> None:
    rows = random_rows(num_tasks, (0, 70, 1, 263, 0), dtype, missing=0.2, seed=num_tasks)
    rows[0][0] = torch.zeros(0, dtype=dtype)
    for row in rows:
        row.insert(2, None)  # a tensor that no task reaches
    expected = reference.gramian(rows)
    for sums in SUMS if dtype in NARROW else ("auto",):
        assert_close(run(rows, sums), expected, tolerance(dtype, sums))


@pytest.mark.parametrize("num_tasks", MANY_TASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tasks_agree_with_reference(dtype: torch.dtype, num_tasks: int) -> None:
    rows = random_rows(num_tasks, (3, 50), dtype, missing=0.1)
    expected = reference.gramian(rows)
    for sums in SUMS if dtype in NARROW else ("auto",):
        assert_close(run(rows, sums), expected, tolerance(dtype, sums))


@pytest.mark.parametrize("num_tasks", [*FEW, 66])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_counts_once(dtype: torch.dtype, num_tasks: int) -> None:
    """Sums of small integers are exact in any order: nothing may be lost, or counted twice."""
    sizes = (*range(20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257)
    if num_tasks <= 16:
        sizes = (*sizes, 2047, 2048, 2049)
    elif num_tasks > 64:
        sizes = (1, 31, 65)
    rows = random_rows(num_tasks, sizes, dtype, missing=0.1, integers=True)
    jacobian = flatten(rows)
    for sums in SUMS if num_tasks <= 16 and dtype != torch.float64 else ("float32",):
        assert_same(run(rows, sums), jacobian @ jacobian.T)


@pytest.mark.parametrize("num_tasks", FEW)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_rows(dtype: torch.dtype, num_tasks: int) -> None:
    """Views that begin anywhere; one of them is enough to make its tensor unaligned."""
    rows = random_rows(num_tasks, (90, 90, 90), dtype, integers=True)
    for k, row in enumerate(rows):
        _, shifted, mixed = row
        assert shifted is not None
        assert mixed is not None
        row[1] = shifted[1 + k % 5 : 80 + k % 5]
        row[2] = mixed[1:] if k == num_tasks - 1 else mixed[:-1]
    jacobian = flatten(rows)
    assert_same(run(rows, "float32"), jacobian @ jacobian.T)


@pytest.mark.parametrize("num_tasks", [*FEW, 65])
@pytest.mark.parametrize("sums", SUMS)
def test_orders_and_repeats_give_the_same_bits(sums: str, num_tasks: int) -> None:
    sizes = (300, 17, 5) if num_tasks < 65 else (40, 17)
    for dtype in (torch.float32, torch.bfloat16):
        rows = random_rows(num_tasks, sizes, dtype, missing=0.1)
        first = run(rows, sums)
        assert_same(run(rows, sums), first)
        for order in fiber_gpu.ORDERS[1:]:
            assert_same(run(rows, sums, order, seed=3), first)


@pytest.mark.parametrize("num_tasks", [*FEW, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_float32_has_no_squares_of_these(scale: float, dtype: torch.dtype, num_tasks: int) -> None:
    """They are added in float64. One row is of the usual size: its products count as well."""
    rows = random_rows(num_tasks, (130, 40), dtype, scale=scale)
    rows[-1] = random_rows(1, (130, 40), dtype, seed=1)[0]
    expected = reference.gramian(rows)
    found = run(rows, "float32")
    # Beyond 64 tasks a block may have the usual row and no need for exact sums.
    assert_close(found, expected, 6e-7 if num_tasks > 64 else 1e-14)
    assert_close(found[:-1, :-1], expected[:-1, :-1], 1e-14)


@pytest.mark.parametrize("num_tasks", [*FEW, 65])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonfinite_elements(dtype: torch.dtype, num_tasks: int) -> None:
    """They reach the products with every row that is there, and no others."""
    for bad in (float("nan"), float("inf")):
        rows = random_rows(num_tasks, (50, 20), dtype)
        gradient = rows[1][0]
        assert gradient is not None
        gradient[7] = bad
        rows[0][0] = None
        expected = reference.gramian(rows)
        for sums in SUMS:
            found = run(rows, sums)
            assert_same(found.isnan(), expected.isnan())
            assert_same(found.isinf(), expected.isinf())
            finite = expected.isfinite()
            assert finite.any()
            torch.testing.assert_close(found[finite], expected[finite], rtol=1e-5, atol=2e-5 * 70)


@pytest.mark.parametrize("num_tasks", [3, 16, 40, 65])
def test_dtypes_are_added_up(num_tasks: int) -> None:
    blocks = [random_rows(num_tasks, (60, 9), dtype, missing=0.1) for dtype in DTYPES]
    rows = [[g for block in blocks for g in block[k]] for k in range(num_tasks)]
    with fiber_gpu.fibers(sums="float32"):
        found = ops.gramian(rows)
        assert launched() == {kernel(num_tasks, dtype, "float32"): 1 for dtype in DTYPES}
    assert_close(found, reference.gramian(rows), 6e-7)


@pytest.mark.parametrize("num_tasks", [2, 12, 16, 40])
def test_squares_are_hardly_cut_off(num_tasks: int) -> None:
    """Fibers cut off what tensor cores cut off; errors of one sign do not shrink with the size."""
    for dtype in NARROW:
        rows = random_rows(num_tasks, (4000,), dtype)
        exactly = flatten(rows).square().sum(1)
        errors = run(rows, "float32").diagonal() / exactly - 1
        torch.testing.assert_close(errors.mean(), torch.zeros(()).double(), rtol=0, atol=1.5e-7)


def test_table_in_the_parameters_and_in_memory() -> None:
    """Of 64 rows and 200 tensors: too large for parameters, and uploaded when it changes."""
    for num_tensors, large in ((2, False), (40, True)):
        rows = random_rows(16, (5,) * num_tensors, integers=True)
        with fiber_gpu.fibers(sums="float32"):
            assert_same(ops.gramian(rows), flatten(rows) @ flatten(rows).T)
            assert fiber_gpu.launches() == {f"mtlfast_gramian_f32_k16_{'l' if large else 's'}": 1}
    rows = random_rows(64, (5,) * 200, integers=True)
    expected = flatten(rows) @ flatten(rows).T
    with fiber_gpu.fibers(sums="float32"):
        for _ in range(2):
            assert_same(ops.gramian(rows), expected)
        counts = fiber_gpu.launches()
        uploads = counts["mtlfast_upload"]
        assert counts == {"mtlfast_gramian_f32_k64_s": 2, "mtlfast_upload": uploads}
        assert uploads > 1  # the table is larger than the parameters of one launch
        rows[3][150] = torch.ones(5)
        assert_same(ops.gramian(rows), flatten(rows) @ flatten(rows).T)
        assert fiber_gpu.launches()["mtlfast_upload"] == 2 * uploads


def test_little_shared_memory() -> None:
    """Of an old GPU: the largest triangle does not fit, so its tasks go in pairs of blocks."""
    rows = random_rows(64, (40,), integers=True)
    for shared, name in ((99 * 1024, "k64"), (64 * 1024, "pairs")):
        with fiber_gpu.fibers(sums="float32", shared_bytes=shared):
            assert_same(ops.gramian(rows), flatten(rows) @ flatten(rows).T)
            assert launched() == {f"mtlfast_gramian_f32_{name}": 1}


@pytest.mark.parametrize("num_tasks", [2, 16, 65])
def test_many_blocks(num_tasks: int) -> None:
    """Their sums make a tree of several levels, whose counters the next launch finds at zero."""
    rows = random_rows(num_tasks, (3,) * 40, integers=True)
    expected = flatten(rows) @ flatten(rows).T
    for order in fiber_gpu.ORDERS:
        with fiber_gpu.fibers(order, 1, "float32", multiprocessors=60):
            for _ in range(2):
                assert_same(ops.gramian(rows), expected)


def shows_in_some_order(rows: Rows, expected: Tensor, sums: str) -> bool:
    """Whether one of three Gramians is wrong, or never ends, in some order of the threads.

    Each differs from the one before, whose sums may still lie where the next ones belong.
    """
    for order in fiber_gpu.ORDERS:
        with fiber_gpu.fibers(order, 0, sums, multiprocessors=30):
            for factor in (1, 2, 3):
                scaled: Rows = [[None if g is None else g * factor for g in row] for row in rows]
                try:
                    found = ops.gramian(scaled)
                except RuntimeError:
                    return True
                if not torch.equal(found, expected * factor**2):
                    return True
    return False


def publishing_barrier() -> tuple[str, int]:
    """All threads of a block have to leave their sums before the block says that it is done.

    On fibers one block ends before the next one starts, which then finds these sums anyway.
    """
    name = "gramian_sum.h"
    lines = (fiber_gpu.ROOT / "csrc/kernels" / name).read_text().splitlines()
    fence = next(i for i, line in enumerate(lines) if "__threadfence()" in line)
    assert "__syncthreads()" in lines[fence + 1]
    return name, fence + 2


@pytest.mark.parametrize(
    ("num_tasks", "sums", "unseen"),
    [(3, "float32", {publishing_barrier()}), (16, "float64", set()), (65, "float32", set())],
)
def test_every_barrier_is_needed(num_tasks: int, sums: str, unseen: set[tuple[str, int]]) -> None:
    """In the tree of many sums the publishing barrier shows too: levels share a variable."""
    sizes = (3,) * 20
    first = random_rows(num_tasks, sizes, integers=True)
    second = random_rows(num_tasks, sizes, torch.bfloat16, integers=True)
    rows = [a + b for a, b in zip(first, second, strict=True)]
    expected = flatten(rows) @ flatten(rows).T
    fiber_gpu.barriers()
    assert not shows_in_some_order(rows, expected, sums)
    barriers = {(file, line) for file, line, _ in fiber_gpu.barriers()}
    assert len(barriers) == 3
    for file, line in barriers:
        with fiber_gpu.without_barrier(file, line):
            assert shows_in_some_order(rows, expected, sums) == ((file, line) not in unseen)
