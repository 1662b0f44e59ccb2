"""The CUDA kernel of sketches: on fibers against the CPU's kernel, and on a GPU."""

from __future__ import annotations

import fiber_gpu
import pytest
import torch
from devices import launched, no_synchronisation
from fiber_cases import PLAIN, missed_barriers, needs_native, on_cpu, on_fibers
from kernel_cases import DTYPES, assert_same, engine
from sketches import SMALL, sketched, vectors
from torch import Tensor

from mtlfast import ops, sketch_ops

# Around a warp, a hash, a block, and a turn around the sketch.
SIZES = (0, 1, 7, 31, 32, 33, 63, 64, 65, 127, 129, 1000, 1023, 1024, 1025, 2049, 40_000)

pytestmark = needs_native


@pytest.mark.parametrize("first", [0, 1, 63, 1000, 12_345, 2**33 + 7, 2**60 - 200_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sketch(dtype: torch.dtype, first: int) -> None:
    grads = vectors(SIZES, dtype)
    grads.append(torch.cat([grads[-1][:1], grads[-1]])[1:])  # off the 16 bytes
    wanted = on_cpu(sketched, grads, first, start=0.5)
    for order in fiber_gpu.ORDERS:
        found = on_fibers(sketched, grads, first, start=0.5, order=order, launched="sketch_s")
        assert_same(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-14, atol=0)


def test_every_size_and_start() -> None:
    buffer = torch.full((400,), torch.nan)
    with engine(PLAIN), fiber_gpu.fibers():
        for size in (*range(0, 140, 9), 127, 128, 193):
            for first in (0, 5, 63, 1000, 1023):
                grad = buffer[7 : 7 + size]
                grad.copy_(torch.arange(1, size + 1) % 5 - 2)
                found = sketched([grad], first)
                with fiber_gpu.paused():
                    wanted = sketched([grad], first)
                assert_same(found, wanted)
                grad.fill_(torch.nan)


@pytest.mark.parametrize("order", fiber_gpu.ORDERS)
def test_all_dtypes_in_one_launch(order: str) -> None:
    """A bucket adds in the order of the list, whatever the types."""
    grads = [part for dtype in DTYPES for part in vectors((3, 2500, 130), dtype)] * 2
    wanted = on_cpu(sketched, grads, 77, num_buckets=4096)
    with engine(PLAIN), fiber_gpu.fibers(order):
        found = sketched(grads, 77, num_buckets=4096)
        assert fiber_gpu.launches() == {"mtlfast_sketch_s": 1}
    assert_same(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-14, atol=0)


def test_the_same_bits_in_any_order() -> None:
    grads = vectors((5000, 33, 20_000))
    found = [on_fibers(sketched, grads, 9, order=order) for order in fiber_gpu.ORDERS]
    assert found[0][1].equal(found[1][1])
    assert found[0][1].equal(found[2][1])


def test_the_size_of_the_gpu_does_not_matter() -> None:
    grads = vectors((5000, 33, 20_000))
    norms = []
    for multiprocessors in (1, 7):
        with engine(PLAIN), fiber_gpu.fibers(multiprocessors=multiprocessors):
            norms.append(sketched(grads, 9)[1])
    assert norms[0].equal(norms[1])


@pytest.mark.parametrize(("num_tensors", "kernel"), [(100, "s"), (700, "l"), (2000, "remote")])
def test_tables(num_tensors: int, kernel: str) -> None:
    """In small and in large parameters, and in the memory of the device: 28 bytes a tensor."""
    grads = vectors([t % 40 for t in range(num_tensors)])
    with engine(PLAIN), fiber_gpu.fibers("shuffled"):
        found = sketched(grads, 3)
        launches = fiber_gpu.launches()
    assert_same(found[0], on_cpu(sketched, grads, 3)[0])
    if kernel == "remote":
        assert launches == {"mtlfast_upload": 2, "mtlfast_sketch_s": 1}
    else:
        assert launches == {f"mtlfast_sketch_{kernel}": 1}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_numbers(dtype: torch.dtype) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).max, torch.finfo(dtype).tiny):
        grad = torch.ones(2000).to(dtype)
        grad[[5, 700]] = bad
        found, wanted = (where(sketched, [grad], 100) for where in (on_fibers, on_cpu))
        assert_same(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-14, atol=0, equal_nan=True)


def test_nothing_to_add_launches_nothing() -> None:
    with engine(PLAIN), fiber_gpu.fibers():
        for grads in ([], [torch.ones(0)]):
            assert_same(sketched(grads, 5, start=2.0)[0], torch.full((SMALL,), 2.0))
        with pytest.raises(ValueError, match=r"^first: expected"):
            sketched([torch.ones(3)], -1)
        assert fiber_gpu.launches() == {}


def test_every_barrier_is_needed() -> None:
    """All but those of comes_last(), which the tests of other sums look at.

    With a single sum only one warp has work left after it.
    """
    source = (fiber_gpu.ROOT / "csrc/kernels/gramian_sum.h").read_text().split("\n")
    first = next(i for i, text in enumerate(source) if "__threadfence();" in text) + 2
    barriers = [("gramian_sum.h", first), ("gramian_sum.h", first + 3)]
    grads = vectors((3000, 9000))
    fiber_gpu.barriers()
    on_fibers(sketched, grads)
    assert len(fiber_gpu.barriers()) > len(barriers)
    assert set(missed_barriers(lambda: sketched(grads))) <= set(barriers)


# ---- on a device ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_and_cpu_agree(device: torch.device, dtype: torch.dtype) -> None:
    """The same bits in the sketch, wherever it is made."""
    grads = vectors((3, 40_000, 0, 1000), dtype)
    wanted = on_cpu_alone(grads)
    found: list[tuple[Tensor, Tensor]] = []
    there = [grad.to(device) for grad in grads]
    kernels = launched(lambda: found.append(sketched(there, 50, num_buckets=16384)))
    assert kernels == {"mtlfast_sketch_s": 1}
    sketch, norm = found[0]
    assert sketch.device == norm.device == device
    assert_same(sketch.cpu(), wanted[0])
    torch.testing.assert_close(norm.cpu(), wanted[1], rtol=1e-14, atol=0)


def on_cpu_alone(grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    with fiber_gpu.paused(), ops.use_backend("auto"):
        return sketched(grads, 50, num_buckets=16384)


def test_gramian_of_sketches(device: torch.device) -> None:
    rows = [vectors((30_000,))[0] + 0.5 * k for k in range(3)]
    there = [row.to(device) for row in rows]
    sketches = torch.zeros(3, 16384, device=device)
    norms = torch.zeros(3, dtype=torch.float64, device=device)
    with no_synchronisation(device):
        for k, row in enumerate(there):
            sketch_ops.sketch_(sketches[k], norms[k], [row], 7, 11)
        found = sketch_ops.sketched_gramian(sketches, norms)
    assert found.device == device
    wanted = torch.stack([row.double() for row in rows])
    gramian = wanted @ wanted.T
    lengths = gramian.diagonal().sqrt()
    torch.testing.assert_close(found.cpu().diagonal(), gramian.diagonal(), rtol=1e-13, atol=0)
    error = (found.cpu() - gramian) / lengths / lengths[:, None]
    assert float(error.abs().max()) < 4 / 128
