"""The engines on a GPU: time and peak memory of a whole training step, with TorchJD's beside."""

from __future__ import annotations

import statistics
from functools import partial

import torch

from benchmarks.gpu.machine import Call, Gpu
from mtlfast.bench.models import MODELS, EngineModel, convolutional, mlp, transformer
from mtlfast.bench.peers.torchjd import PEER
from mtlfast.bench.rows import Report, Row, row
from mtlfast.bench.steps import Field, Step

TIME = "8. a training step over joint training, from idle to idle; K = 8"
MEMORY = "9. peak memory of a training step beyond what is held before it, MB; K = 8"


def measure(name: str, gpu: Gpu, report: Report, rounds: int) -> None:
    """The rows of one model."""
    model = _small(name) if gpu.fibers else MODELS[name](8)
    field = Field(model.to(gpu.device), [PEER])
    steps = {n: step for n, step in field.steps.items() if n == "joint" or n in field.contestants}
    calls: dict[str, Call] = {n: partial(_run, step) for n, step in steps.items()}
    times = gpu.wall(calls, rounds)
    for contestant in ("joint", *field.contestants):
        case = f"{name}, {contestant}"
        if contestant not in steps:
            report.add(Row(TIME, case, "x", detail=field.missing[contestant]))
            continue
        step = steps[contestant]
        ratios = [a / b for a, b in zip(times[contestant], times["joint"], strict=True)]
        ms = statistics.median(times[contestant]) * 1e3 / step.count
        report.add(
            row(
                TIME,
                case,
                "x",
                [ratio / step.count for ratio in ratios],
                detail=f"{ms:.3f} ms{field.engine(contestant)}",
            )
        )
        if not gpu.fibers:
            report.add(row(MEMORY, case, "MB", [_peak(step)]))


def _run(step: Step, _: int) -> None:
    step.all()


def _peak(step: Step) -> float:
    if step.optimizer is not None:
        step.optimizer.zero_grad()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _small(name: str) -> EngineModel:
    """To try the script on fibers."""
    if name == "MLP":
        return mlp(2, widths=(4, 8, 8), batch=2)
    if name == "CNN":
        return convolutional(2, widths=(2, 2), batch=2, size=8)
    return transformer(2, width=8, hidden=16, depth=1, batch=2, tokens=3)
