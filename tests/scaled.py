"""Trainings with a ``GradScaler``, and the methods that can be trained with one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from cases import ROWS, Row
from engine_models import Trunk
from models import (
    Mlp,
)
from torch import nn

from mtlfast import MultiTaskOptimizer

SCALED = [
    row
    for row in ROWS
    if not row.make(3).needs_task_grads
    or row.make(3).compares_raw
    or row.make(3).family == "column"
]
"""Methods that carry no gradients from step to step."""
each_row = pytest.mark.parametrize("row", SCALED, ids=str)


def scaler(growth_interval: int = 2) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=growth_interval)


def train(
    model: Mlp,
    optimizer: MultiTaskOptimizer,
    scaler: torch.amp.GradScaler | None,
    step: int,
    *,
    broken: bool = False,
    clip: float | None = None,
) -> None:
    """One step, which a scaler skips where a loss is broken."""
    torch.manual_seed(step)
    batches = [model.losses(10 * step + b) for b in range(optimizer.weighting.num_batches)]
    if broken:
        batches[0][1] = batches[0][1] * math.inf
    optimizer.zero_grad()
    optimizer.backward(*batches, scaler=scaler)
    if scaler is None:
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return
    if clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()


def pair(row: Row, **options: Any) -> list[tuple[Mlp, MultiTaskOptimizer]]:
    """The same training twice; a method's own parameters are trained with the model's."""
    model = Mlp(3, torch.float32)
    sides = []
    for net in (model, copy.deepcopy(model)):
        torch.manual_seed(0)
        method = row.make(3)
        inner = torch.optim.SGD([*net.parameters(), *method.parameters()], lr=0.1, momentum=0.9)
        sides.append((net, MultiTaskOptimizer(inner, method, **options)))
    return sides


def small(dtype: torch.dtype = torch.float32) -> Trunk:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
    return Trunk(nn.Sequential(layers, nn.Linear(8, 4)), dtype=dtype)
