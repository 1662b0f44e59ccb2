"""Time and exactness of every engine's whole training step, against joint training and TorchJD."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks.claims import Claims
from benchmarks.conftest import Interleaved
from benchmarks.engine_models import MODELS, EngineModel
from benchmarks.engine_steps import (
    AUTOGRAM,
    EXACT,
    STEPS_PER_GRAMIAN,
    TORCHJD,
    Field,
    Step,
    meetings,
)
from benchmarks.report import Report, Row
from benchmarks.workloads import relative_difference

TIME = "engines: time of a training step over joint training, 2 threads"
BESIDE = "engines: times beside each other"
EXACTNESS = "engines: |gradient - stored's| over |stored's|, float32, worst step"
SKETCHED = "engines: error of the sketched cosines, root mean square over pairs and steps"

ROUNDS = {"MLP": (8, 1), "CNN": (8, 1), "transformer": (5, 1)}
"""And to warm up; a step of the transformer takes three times the others'."""
BATCHES = {2: 6, 4: 2, 8: 1}
"""On which gradients are compared, by K: the fewer pairs, the more."""
FACTORED = {2: 1.45, 4: 2.1, 8: 3.0}
FASTER = {"MLP": 2.5, "CNN": 1.1, "transformer": 1.1}

each_case = pytest.mark.parametrize(
    ("name", "num_tasks"), [(name, num_tasks) for name in MODELS for num_tasks in (2, 4, 8)]
)


def time_target(model: EngineModel, name: str, contestant: str) -> float | None:
    """The bound of a contestant's time over joint training, where there is one."""
    num_tasks = len(model.heads)
    if name == "MLP" and contestant == "factored":
        return FACTORED[num_tasks]
    last_block = f"gramian_params, {next(iter(model.last_blocks))}"
    if num_tasks == 8 and contestant in (last_block, "features"):
        return 1.3
    return 1.4 if contestant == f"update_every={STEPS_PER_GRAMIAN}" else None


def fastest(found: Mapping[str, Any]) -> str:
    """TorchJD's best mode here; any where there is none."""
    modes = [name for name in TORCHJD if name in found]
    return min(modes, key=lambda name: statistics.median(found[name]), default=next(iter(TORCHJD)))


@each_case
def test_time(name: str, num_tasks: int, interleaved: Interleaved, report: Report) -> None:
    model = MODELS[name](num_tasks)
    field = Field(model)
    inner = field.steps["joint"].optimizer
    assert inner is not None

    def bare_step() -> float:
        """SGD's own part of every step, with the gradients of the joint one before."""
        start = time.perf_counter()
        inner.step()
        return time.perf_counter() - start

    variants: dict[str, Callable[[], float]] = {"joint": field.steps["joint"].seconds}
    variants["SGD"] = bare_step
    variants |= {n: step.seconds for n, step in field.steps.items()}
    found = interleaved(variants, *ROUNDS[name])
    ms = {n: statistics.median(samples) * 1e3 for n, samples in found.items()}

    claims = Claims(TIME, f"{name}, K = {num_tasks}", found, field.missing, interleaved.others)
    claims.add(
        "joint",
        ("joint",),
        lambda joint: joint * 1e3,
        unit="ms",
        detail=lambda: f"P = {model.shared_elements() / 1e6:.2f}e6; SGD's part {ms['SGD']:.1f} ms",
        extra={n: samples.tolist() for n, samples in found.items()},
    )
    for contestant in field.contestants:
        claims.add(
            contestant,
            (contestant, "joint"),
            np.divide,
            time_target(model, name, contestant),
            detail=lambda n=contestant: f"{ms[n]:.1f} ms{field.engine(n)}",  # type: ignore[misc]
        )
    report.add(*claims.rows)
    report.add(*beside_each_other(claims, FASTER[name] if num_tasks == 8 else 1.0))


def beside_each_other(times: Claims, faster: float) -> list[Row]:
    """What an engine's time is held against, but for joint training."""
    claims = Claims(BESIDE, times.case, times.found, times.missing, times.others)
    claims.add("stored / K backwards", ("stored", "K backwards"), np.divide, 1.05)
    # The bare passes make no step, and gradients that are dropped leave warm memory to the next
    # ones: without both, what is left is Gramian, solver and combination.
    claims.add(
        "(stored - SGD) / K backwards, kept",
        ("stored", "SGD", "K backwards, kept"),
        lambda stored, step, bare: (stored - step) / bare,
    )
    claims.add("factored / stored", ("factored", "stored"), np.divide, 1.05)
    claims.add("batched / vmap batch", ("batched", "vmap batch"), np.divide, 1.0)
    claims.add(
        "(batched - SGD) / vmap batch",
        ("batched", "SGD", "vmap batch"),
        lambda batched, step, bare: (batched - step) / bare,
    )
    claims.add(
        "(streaming - batched) / joint",
        ("streaming", "batched", "joint"),
        lambda streaming, batched, joint: (streaming - batched) / joint,
        1.1,
    )
    claims.add(
        "(sketched - K backwards) / joint",
        ("sketched", "K backwards", "joint"),
        lambda sketched, bare, joint: (sketched - bare) / joint,
        1.3,
    )
    best = fastest(times.found)
    claims.add(
        "TorchJD's best / auto",
        (best, "auto"),
        np.divide,
        faster,
        at_least=True,
        detail=lambda: best,
    )
    return claims.rows


class Comparison:
    """Gradients of several steps on the same batches, a new batch for every round."""

    def __init__(self, steps: dict[str, Step], num_tasks: int) -> None:
        self.steps = steps
        self.order = meetings(num_tasks)
        self.rounds = 0

    def stored(self) -> float:
        """Draws the next batch; what the others are compared with differs from itself by 0."""
        self.rounds += 1
        for step in self.steps.values():
            step.model.draw(self.rounds)
        self.expected = self.steps["stored"].gradients(self.order)
        return 0.0

    def difference(self, name: str) -> float:
        """Of this step's gradient from the stored engine's, all parameters together."""
        found = self.steps[name].gradients(self.order)
        return relative_difference(iter(found), iter(self.expected))

    def cosines(self) -> float:
        """Mean square of what sketching changes the cosines by."""
        self.difference("sketched")
        pairs = np.triu_indices(len(self.order), 1)
        found, expected = (self.steps[n].last().cosines for n in ("sketched", "stored"))
        assert found is not None
        assert expected is not None
        return float(np.square((found - expected).numpy()[pairs]).mean())


@each_case
def test_exact(name: str, num_tasks: int, interleaved: Interleaved, report: Report) -> None:
    field = Field(
        MODELS[name](num_tasks), {"stored", "sketched", "TorchJD, one chunk", AUTOGRAM, *EXACT}
    )
    comparison = Comparison(field.steps, num_tasks)
    variants: dict[str, Callable[[], float]] = {"stored": comparison.stored}
    for contestant in field.contestants:
        if contestant == "sketched" and contestant in field.steps:
            variants[contestant] = comparison.cosines
        elif contestant != "stored" and contestant in field.steps:
            variants[contestant] = partial(comparison.difference, contestant)
    found = interleaved(variants, BATCHES[num_tasks], warmup=0)
    case = f"{name}, K = {num_tasks}"
    exact = Claims(EXACTNESS, case, found, field.missing)
    for contestant in (*EXACT, "TorchJD, one chunk", AUTOGRAM):
        exact.add(
            contestant,
            (contestant,),
            lambda errors: [errors.max()],
            1e-6 if contestant in EXACT else None,
            unit="",
        )
    sketched = Claims(SKETCHED, case, found, field.missing)
    sketched.add("sketched", ("sketched",), lambda squares: [squares.mean() ** 0.5], 0.01, unit="")
    report.add(*exact.rows, *sketched.rows)
