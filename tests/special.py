"""Methods that keep buffers, compare several batches or combine columns: steps, and by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from cases import PLAIN, ROWS
from models import Snapshot
from torch import Tensor, nn

from mtlfast import MultiTaskOptimizer, aggregate, ops
from mtlfast.weighting import Weighting

SPECIAL = [row for row in ROWS if row not in PLAIN]

Batches = list[list[Tensor]]


def batches(model: Any, method: Weighting, step: int) -> Batches:
    """As many independent batches as the method compares, of K losses each."""
    return [model.losses(step + 1000 * batch) for batch in range(method.num_batches)]


def by_hand(losses: Batches, params: Iterable[Tensor], weighting: Weighting) -> None:
    """Adds to ``.grad`` what aggregate makes of the shared part, and the tasks' own gradients."""
    params = [param for param in params if param.requires_grad]
    num_tasks = len(losses[0])
    rows = [
        torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        for batch in losses
        for loss in batch
    ]
    reach = [
        sum(any(row[t] is not None for row in rows[k::num_tasks]) for k in range(num_tasks))
        for t in range(len(params))
    ]
    shared = [t for t, count in enumerate(reach) if count >= min(2, num_tasks)]
    flat = [
        torch.cat([(0 * params[t] if row[t] is None else row[t]).flatten() for t in shared])
        for row in rows
    ]
    values = torch.stack([torch.stack(batch).detach() for batch in losses]).mean(0)
    weights = torch.ones(num_tasks).double()
    if weighting.weights_losses:
        weights = next_weights(weighting, flat, values)
    own = weighting.own_weights(weights, values) / len(losses)
    combined = aggregate(torch.stack(flat), weighting, values)
    parts = dict(zip(shared, combined.split([params[t].numel() for t in shared]), strict=True))
    for t, param in enumerate(params):
        if not reach[t]:
            continue
        total = parts[t].view_as(param) if t in parts else torch.zeros_like(param)
        if t not in parts:
            for k, row in enumerate(rows):
                total = total + (0.0 if row[t] is None else own[k % num_tasks] * row[t])
        param.grad = total.clone() if param.grad is None else param.grad + total


def next_weights(weighting: Weighting, flat: list[Tensor], values: Tensor) -> Tensor:
    """``[K]`` of a step with these gradients, which is not made."""
    method = copy.deepcopy(weighting)
    rows = method.transform([[row] for row in flat], values)
    return method(ops.gramian(rows) if method.needs_gramian else None, values)


def train(model: Any, optimizer: MultiTaskOptimizer, steps: Iterable[int]) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        optimizer.backward(*batches(model, optimizer.weighting, step))
        optimizer.step()


def spoil(losses: Batches, task: int, bad: float) -> Batches:
    """The last batch's task has a loss and a gradient that are not finite."""
    losses[-1][task] = losses[-1][task] * bad
    return losses


def finite(model: nn.Module) -> bool:
    return all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def refused(
    optimizer: MultiTaskOptimizer, losses: Sequence[Any], error: type[Exception], message: str
) -> None:
    """The call raises this, and parameters, grads, states and task gradients are as before."""
    snapshot = Snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.backward(*losses)
    snapshot.check()


# Points of the simplex


def assert_on_simplex(weights: Tensor) -> None:
    assert bool((weights >= 0).all())
    torch.testing.assert_close(float(weights.sum()), 1.0, rtol=0, atol=1e-12)


def nearest_on_simplex(point: Tensor) -> Tensor:
    """By bisection of the threshold."""
    low, high = float(point.max()) - 1, float(point.max())
    for _ in range(200):
        middle = (low + high) / 2
        if float((point - middle).clamp(min=0).sum()) > 1:
            low = middle
        else:
            high = middle
    return (point - high).clamp(min=0)


def assert_stationary(slopes: Tensor, weights: Tensor) -> None:
    """No way down along the simplex: the support has the smallest slope."""
    lowest = float(slopes.min())
    assert float((weights * (slopes - lowest)).sum()) < 1e-9 * float(slopes.abs().max())
