"""Mixed precision: autocast under every engine, and what ``scaler=`` refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import ROWS, Row
from engine_modes import Mode, each_mode, task_gradients
from models import (
    BY_ID,
    Mlp,
    assert_same_params,
    last_weights,
    wrap,
)
from scaled import SCALED, pair, scaler, small, train
from torch import Tensor

from mtlfast import PCGrad
from mtlfast.weighting import Weighting

# Autocast


@each_mode
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(mode: Mode, dtype: torch.dtype) -> None:
    """Right up to the rounding of 16-bit activations; weights and ``grad`` keep their dtype."""
    model = small()
    optimizer = mode.wrap(model)
    scaling = scaler() if dtype is torch.float16 else None
    for step in range(2):
        with torch.autocast("cpu", dtype):
            hidden, losses = model.hidden_and_losses(step)
        optimizer.zero_grad()
        params, rows = task_gradients(losses, model)
        mode.backward(optimizer, hidden, losses, scaler=scaling)
        if scaling is not None:
            scaling.unscale_(optimizer)
        every = [grad.abs().max() for row in rows for grad in row if grad is not None]
        largest = float(torch.stack(every).max())
        eps = float(torch.finfo(dtype).eps)
        weights = last_weights(optimizer)
        for t, param in enumerate(params):
            assert param.grad is not None
            assert param.grad.dtype is torch.float32
            column = [row[t] for row in rows]
            alone = sum(grad is not None for grad in column) == 1
            total = sum(
                (1.0 if alone else float(weight)) * grad
                for weight, grad in zip(weights, column, strict=True)
                if grad is not None
            )
            bound = 4 * eps * largest * float(weights.abs().sum())
            torch.testing.assert_close(param.grad, total, rtol=0, atol=bound)
        if scaling is None:
            optimizer.step()
        else:
            scaling.step(optimizer)
            scaling.update()


@each_mode
def test_scale_saves_small_gradients(mode: Mode) -> None:
    """Losses whose float16 gradients would be zero are balanced as if they were larger."""
    weights, grads = [], []
    for factor in (1.0, 2.0**-16):
        model = small()
        optimizer = mode.wrap(model)
        scaling = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        with torch.autocast("cpu", torch.float16):
            hidden = model.hidden(model.inputs(torch.Generator().manual_seed(0)))
            outputs = [head(hidden) for head in model.heads]
        losses = [(out.float() - k).square().mean() * factor for k, out in enumerate(outputs)]
        if factor < 1:
            mode.backward(optimizer, hidden, losses, scaler=scaling)
            scaling.unscale_(optimizer)
        else:
            mode.backward(optimizer, hidden, losses)
        weights.append(last_weights(optimizer))
        grads.append([p.grad / factor for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-2, atol=1e-3)
    assert len(grads[0]) == len(grads[1]) == 12
    for small_one, large in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(small_one, large, rtol=1e-2, atol=1e-3)


def test_disabled_scaler_changes_nothing() -> None:
    (model, optimizer), (twin, plain) = pair(BY_ID["pcgrad"], fused_step=True)
    off = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(2):
        torch.manual_seed(step)
        optimizer.zero_grad()
        optimizer.backward(model.losses(10 * step), scaler=off)
        optimizer.step()
        train(twin, plain, None, step)
        assert_same_params(model, twin)


# Refusals


def refuse(method: Weighting | str, found: Any, error: type[Exception], match: str) -> None:
    model = Mlp(3, torch.float32)
    optimizer = wrap(model, method)
    with pytest.raises(error, match=match):
        optimizer.backward(model.losses(), scaler=found)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("row", [row for row in ROWS if row not in SCALED], ids=str)
def test_refused_with_buffers_of_gradients(row: Row) -> None:
    method = row.make(3)
    model = Mlp(3, torch.float32)
    batches = [model.losses(b) for b in range(method.num_batches)]
    with pytest.raises(ValueError, match=r"^scaler: expected None for \w+, which carries grad"):
        wrap(model, method).backward(*batches, scaler=scaler())


def test_refused_with_a_fused_step() -> None:
    (model, optimizer), _ = pair(BY_ID["pcgrad"], fused_step=True)
    with pytest.raises(ValueError, match=r"^scaler: expected None with fused_step, which leaves"):
        optimizer.backward(model.losses(), scaler=scaler())


@pytest.mark.parametrize("found", [1024.0, torch.tensor(8.0), "cpu", Tensor])
def test_refused_types(found: Any) -> None:
    refuse(PCGrad(), found, TypeError, r"^scaler: expected a GradScaler, found \w+$")
