"""What the tests of the CUDA kernels on fibers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fiber_gpu
import pytest
import torch
from kernel_cases import ISAS, Rows, engine

needs_native = pytest.mark.skipif(not ISAS, reason="needs the native extension")

# Around a packet, a step of a block, and a chunk.
SIZES = (0, 1, 7, 8, 255, 257, 2047, 2048, 2049, 4100)
PLAIN = "baseline"  # this instruction set has no fused multiply-add, nor have the fibers
NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


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


def missed_barriers(call: Callable[[], Any]) -> list[tuple[str, int]]:
    """Files and lines of the barriers of a call that could be left out."""
    fiber_gpu.barriers()
    on_fibers(call)
    found = fiber_gpu.barriers()
    assert found
    return [(file, line) for file, line, _ in found if not _seen_without(call, file, line)]


def _seen_without(call: Callable[[], Any], file: str, line: int) -> bool:
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
