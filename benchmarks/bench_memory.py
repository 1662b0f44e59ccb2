"""Peak memory of a balanced step beyond joint training, by the allocator's own events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mtlfast
from benchmarks import workloads
from benchmarks.allocations import peak_bytes
from benchmarks.conftest import Interleaved
from benchmarks.report import Report, row

FIGURE = "5. peak memory of a balanced step beyond joint training, in units of K P elements"


def training_step(
    model: workloads.MultiTaskModel, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """One step of joint or balanced training. It starts with no gradient held from the last."""

    def step() -> None:
        losses = model.losses()
        if isinstance(optimizer, mtlfast.MultiTaskOptimizer):
            optimizer.backward(losses)
        else:
            torch.autograd.backward(losses)
        optimizer.step()

    for _ in range(2):
        step()  # AdamW's state is allocated once, at the first step
        optimizer.zero_grad()
    return step


@pytest.mark.parametrize("num_tasks", [2, 4, 8])
def test_memory(num_tasks: int, tmp_path: Path, interleaved: Interleaved, report: Report) -> None:
    torch.manual_seed(0)
    model = workloads.MultiTaskModel(num_tasks)

    def peak(optimizer: torch.optim.Optimizer) -> float:
        step = training_step(model, optimizer)
        found = peak_bytes(step, tmp_path / "trace.json")
        optimizer.zero_grad()
        return float(found)

    def adamw() -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters())

    found = interleaved(
        {
            "joint": lambda: peak(adamw()),
            "balanced": lambda: peak(mtlfast.MultiTaskOptimizer(adamw(), mtlfast.CAGrad())),
        },
        rounds=3,
        warmup=1,
    )
    unit = num_tasks * model.shared_elements() * 4
    joint, balanced = (found[name].max() / 1e6 for name in ("joint", "balanced"))
    report.add(
        row(
            FIGURE,
            f"K = {num_tasks}, P = {model.shared_elements() / 1e6:.1f}e6, AdamW",
            "KP",
            (found["balanced"] - found["joint"]) / unit,
            target=1.01,
            detail=f"peak {balanced:.1f} MB against {joint:.1f}",
        )
    )
