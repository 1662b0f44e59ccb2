"""Kernels are loaded before a CUDA graph is captured: by a first step, or by warm_up()."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fiber_gpu
import pytest
import torch

from mtlfast import cuda, ops, weighting

pytestmark = pytest.mark.skipif(ops._native is None, reason="needs the native extension")


@contextlib.contextmanager
def capture() -> Iterator[None]:
    """Inside the block the fibers' stream says that it is being captured."""
    fiber_gpu.library().shim_capture(1)
    try:
        yield
    finally:
        fiber_gpu.library().shim_capture(0)


def test_a_kernel_is_not_loaded_during_a_capture() -> None:
    rows = [[torch.ones(3)], [torch.ones(3)]]
    with fiber_gpu.fibers():
        with capture(), pytest.raises(RuntimeError, match="mtlfast_gramian_f32x_k2_s is not"):
            ops.gramian(rows)
        expected = ops.gramian(rows)
        with capture():
            torch.testing.assert_close(ops.gramian(rows), expected)


def test_warm_up_loads_what_a_step_needs() -> None:
    method = weighting.RLW(seed=3)
    before = method.state_dict()
    with fiber_gpu.fibers():
        cuda.warm_up(3, [torch.float32, torch.bfloat16], ["pcgrad", method], device="cpu")
        launched = fiber_gpu.launches()
        for dtype in ("f32", "bf16"):
            for size in "sl":
                assert launched[f"mtlfast_combine_{dtype}_{size}"] > 0
                assert launched[f"mtlfast_gramian_{dtype}_k3_{size}"] > 0
                assert launched[f"mtlfast_gramian_{dtype}x_k3_{size}"] > 0
        for name in ("mtlfast_upload", "mtlfast_solve_Pcgrad"):
            assert launched[name] > 0
        assert not [name for name in launched if "f64" in name]
    assert str(method.state_dict()) == str(before)
