"""The doctor's test of a GPU, on a GPU made of fibers: that it passes, and that it can fail."""

from __future__ import annotations

import fiber_gpu
import pytest
import torch

from mtlfast import doctor, ops, self_test

CPU = torch.device("cpu")


def test_passes() -> None:
    with fiber_gpu.fibers("shuffled"):
        assert doctor.gpu_self_test(CPU) == "ok"
        ran = " ".join(fiber_gpu.launches())
    for kernel in ("gramian_f32_k3_", "gramian_bf16x_k6_", "gramian_f32_k24", "solve_Upgrad"):
        assert kernel in ran
    assert self_test.run(CPU) == "ok"


def test_finds_wrong_gramians_and_combinations(monkeypatch: pytest.MonkeyPatch) -> None:
    gramian, combine = ops.gramian, ops.combine
    with monkeypatch.context() as patch:
        patch.setattr(ops, "gramian", lambda rows: gramian(rows) * (1 + 1e-5))
        found = self_test.run(CPU)
        assert found.startswith("3 tasks of torch.float32, summed in float32: the Gramian is wrong")
        patch.setattr(ops, "gramian", lambda rows: gramian(rows) * float("nan"))
        assert "wrong by nan" in self_test.run(CPU)
    monkeypatch.setattr(ops, "combine", lambda rows, weights: combine(rows, weights * 1.001))
    assert self_test.run(CPU).endswith("the combination is wrong")


def test_finds_wrong_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = iter(("reference", "native"))
    solve = ops.solve

    def wrong(name: str, *arguments: object, **options: object) -> torch.Tensor:
        return solve(name, *arguments, **options) + (next(backends) == "native")  # type: ignore[arg-type]

    monkeypatch.setattr(ops, "solve", wrong)
    assert "the weights of AlignedMTL are wrong" in self_test.run(CPU)


def test_an_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rows: object) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(ops, "gramian", fail)
    assert doctor.gpu_self_test(CPU) == "RuntimeError: no such device"
