"""Peak memory of every engine's whole training step, against joint training and TorchJD."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.allocations import peak_bytes
from benchmarks.claims import Claims
from benchmarks.conftest import Interleaved
from benchmarks.engine_models import MODELS, EngineModel
from benchmarks.engine_steps import AUTOGRAM, AUTOJAC, SKETCH_SIZE, Field, Step
from benchmarks.report import Report, Row

PEAK = "engines: peak memory of a training step over joint training"
BOUNDS = "engines: peak memory over what it may be"
FLOAT = 4  # bytes


@pytest.mark.parametrize("num_tasks", [2, 4, 8])
@pytest.mark.parametrize("name", MODELS)
def test_peak(
    name: str, num_tasks: int, tmp_path: Path, interleaved: Interleaved, report: Report
) -> None:
    model = MODELS[name](num_tasks)
    field = Field(model)

    def peak(step: Step) -> float:
        """It starts with no gradient held from the step before."""
        step.model.zero_grad()
        return float(peak_bytes(step.all, tmp_path / "trace.json"))

    variants: dict[str, Callable[[], float]] = {
        n: partial(peak, step) for n, step in field.steps.items()
    }
    found = interleaved(variants, rounds=1, warmup=0)
    claims = Claims(PEAK, f"{name}, K = {num_tasks}", found, field.missing)
    claims.add(
        "joint",
        ("joint",),
        lambda joint: joint / 1e6,
        unit="MB",
        detail=lambda: f"P = {model.shared_elements() / 1e6:.2f}e6",
    )
    for contestant in field.contestants:
        claims.add(
            contestant,
            (contestant, "joint"),
            np.divide,
            detail=lambda n=contestant: (  # type: ignore[misc]
                f"{found[n].max() / 1e6:.1f} MB{field.engine(n)}"
            ),
        )
    report.add(*claims.rows, *bounds(claims, model, name))


def bounds(peaks: Claims, model: EngineModel, name: str) -> list[Row]:
    """What the peaks are held against."""
    num_tasks = len(model.heads)
    claims = Claims(BOUNDS, peaks.case, peaks.found, peaks.missing)
    for engine, extra, target in (
        ("stored", model.shared_elements(), 1.01),
        ("streaming", model.largest_layer(), 1.10),
        ("sketched", SKETCH_SIZE, 1.05),
    ):
        more = num_tasks * extra * FLOAT
        claims.add(
            f"{engine} / (joint + K {extra / 1e6:.2f}e6 elements)",
            (engine, "joint"),
            lambda peak, joint, more=more: peak / (joint + more),
            target,
            detail=lambda n=engine, more=more: (  # type: ignore[misc]
                f"{peaks.found[n].max() / 1e6:.1f} MB, "
                f"{(peaks.found['joint'].max() + more) / 1e6:.1f} at most"
            ),
        )
    claims.add(
        "stored / factored",
        ("stored", "factored"),
        np.divide,
        3.0 if (name, num_tasks) == ("MLP", 8) else None,
        at_least=True,
    )
    jacobians = [mode for mode in AUTOJAC if mode in peaks.found] or [AUTOJAC[0]]
    least = min(jacobians, key=lambda mode: float(np.max(peaks.found.get(mode, 0))))
    claims.add(f"auto / {least}", ("auto", least), np.divide, 1.0)
    claims.add(f"auto / {AUTOGRAM}", ("auto", AUTOGRAM), np.divide)
    return claims.rows
