"""Training as people do it, under every engine: micro-batches, clipping, optimizers, copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_models import MODELS
from engine_modes import Mode, check_grads, combined, each_mode, task_gradients
from models import (
    MultiTask,
    assert_same,
    assert_same_params,
    last,
    last_weights,
)
from torch import Tensor, nn


def rows_of(model: MultiTask, step: int) -> tuple[list[Tensor], list[list[Tensor | None]]]:
    return task_gradients(model.losses(step), model)


# Gradient accumulation


@each_mode
@pytest.mark.parametrize("num_batches", [2, 3])
def test_accumulation(mode: Mode, num_batches: int) -> None:
    """Exact sums where gradients are kept; else the first micro-batch's weights for all."""
    model = MODELS["frozen"]()
    optimizer = mode.wrap(model)
    for step in range(2):
        optimizer.zero_grad()
        total: dict[int, Tensor] = {}
        summed: list[list[Tensor | None]] = []
        params: list[Tensor] = []
        kept = True
        for batch in range(num_batches):
            hidden, losses = model.hidden_and_losses(step * num_batches + batch)
            params, rows = rows_of(model, step * num_batches + batch)
            mode.backward(optimizer, hidden, losses)
            if batch == 0:
                first = last_weights(optimizer)
                pending = optimizer._pending
                kept = pending is not None and pending.jacobian.is_kept
                assert mode.keeps is None or kept == mode.keeps
                summed = rows
            else:
                summed = [
                    [None if a is None or b is None else a + b for a, b in zip(x, y, strict=True)]
                    for x, y in zip(summed, rows, strict=True)
                ]
            for param, grad in zip(params, combined(params, rows, first), strict=True):
                total[id(param)] = total.get(id(param), torch.zeros_like(grad)) + grad
        if kept:
            assert not torch.equal(last_weights(optimizer), first)
            check_grads(optimizer, params, summed)
        else:
            assert_same(last_weights(optimizer), first)
            for param in params:
                assert param.grad is not None
                torch.testing.assert_close(param.grad, total[id(param)])
        optimizer.step()


@each_mode
def test_gradients_from_before_are_added_to(mode: Mode) -> None:
    """A regulariser's plain backward before, and one between two micro-batches' steps."""
    model = MODELS["frozen"]()
    optimizer = mode.wrap(model)
    params, rows = rows_of(model, 0)
    penalty = sum(param.square().sum() for param in params)
    torch.autograd.backward(penalty)  # type: ignore[arg-type]
    mode.backward(optimizer, *model.hidden_and_losses(0))
    for param, grad in zip(params, combined(params, rows, last_weights(optimizer)), strict=True):
        assert param.grad is not None
        torch.testing.assert_close(param.grad, grad + 2 * param.detach())


# Clipping


@each_mode
def test_clip_grad_norm(mode: Mode) -> None:
    model = MODELS["frozen"]()
    optimizer = mode.wrap(model)
    params, rows = rows_of(model, 0)
    mode.backward(optimizer, *model.hidden_and_losses(0))
    expected = combined(params, rows, last_weights(optimizer))
    norm = torch.stack([grad.norm() for grad in expected]).norm()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(model.parameters(), 0.1), norm)
    for param, grad in zip(params, expected, strict=True):
        torch.testing.assert_close(param.grad, grad * 0.1 / (norm + 1e-6))


@each_mode
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
@pytest.mark.parametrize("num_batches", [1, 2])
@pytest.mark.parametrize("inner", ["sgd", "adamw"])
def test_fused_step(mode: Mode, max_grad_norm: float | None, num_batches: int, inner: str) -> None:
    """As clip_grad_norm_ and a step that is not fused, micro-batches included."""
    make: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "adamw": lambda params: torch.optim.AdamW(params, lr=0.02),
    }
    model = MODELS["frozen"]()
    twin = copy.deepcopy(model)
    fused = mode.wrap(model, inner=make[inner], fused_step=True, max_grad_norm=max_grad_norm)
    plain = mode.wrap(twin, inner=make[inner])
    for step in range(3):
        for net, optimizer in ((model, fused), (twin, plain)):
            torch.manual_seed(step)
            optimizer.zero_grad()
            for batch in range(num_batches):
                mode.backward(optimizer, *net.hidden_and_losses(3 * step + batch))
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(twin.parameters(), max_grad_norm)
        fused.step()
        plain.step()
        torch.testing.assert_close(last_weights(fused), last_weights(plain))
        assert_same_params(model, twin, 1e-8)


# NaN


@each_mode
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nonfinite_task_is_dropped(mode: Mode, where: str) -> None:
    """The others' gradients; in the step after it everyone is there again."""
    model = MODELS["frozen"]()
    optimizer = mode.wrap(model, nonfinite="drop")
    for step in range(3):
        hidden, losses = model.hidden_and_losses(step)
        params, rows = rows_of(model, step)
        if step == 1 and where == "loss":
            losses[1] = losses[1] * torch.nan
        elif step == 1:
            losses[1] = losses[1] + (hidden.sum() * 0).sqrt()  # finite, with a slope that is not
        optimizer.zero_grad()
        mode.backward(optimizer, hidden, losses)
        assert last(optimizer).skipped == [False, step == 1, False]
        weights = last_weights(optimizer)
        if step == 1:
            assert weights[1] == 0
            own = {id(p) for p in model.heads[1].parameters()}
            shared = [t for t, param in enumerate(params) if id(param) not in own]
            params = [params[t] for t in shared]
            rows = [[row[t] for t in shared] for row in rows]
            rows = [rows[0], [None if g is None else g * 0 for g in rows[1]], rows[2]]
            assert all(p.grad is None or not p.grad.any() for p in model.heads[1].parameters())
        check_grads(optimizer, params, rows)
        optimizer.step()
    assert optimizer.skip_counts == [0, 1, 0]


@each_mode
def test_nonfinite_raises(mode: Mode) -> None:
    model = MODELS["frozen"]()
    optimizer = mode.wrap(model, nonfinite="raise")
    for step in range(2):
        mode.backward(optimizer, *model.hidden_and_losses(step))
        optimizer.step()
        optimizer.zero_grad()
        hidden, losses = model.hidden_and_losses(step)
        losses[2] = losses[2] + (hidden.sum() * 0).sqrt()
        with pytest.raises(FloatingPointError, match=r"found NaN or Inf in task 2$"):
            mode.backward(optimizer, hidden, losses)
        assert all(p.grad is None for p in model.parameters())
