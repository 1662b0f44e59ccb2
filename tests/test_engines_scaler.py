"""``backward(losses, scaler=)``: unscaled weights, skipped steps, a growing scale."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Row
from engine_modes import Mode, check_grads, each_mode, task_gradients
from models import (
    BY_ID,
    Mlp,
    assert_same,
    assert_same_state,
    last_weights,
    wrap,
)
from scaled import each_row, pair, scaler, small, train

# GradScaler


@each_row
def test_method_sees_unscaled_gradients(row: Row) -> None:
    """Weights, states and steps as without a scaler, also where they depend on the scale."""
    (model, scaled), (twin, plain) = pair(row)
    scaling = scaler()
    for step in range(4):
        train(model, scaled, scaling, step, clip=0.5)
        train(twin, plain, None, step, clip=0.5)
        for ours, theirs in zip(
            scaled.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        method = plain.weighting.state_dict()
        assert_same_state(scaled.weighting.state_dict(), method, 1e-4)
    assert scaling.get_scale() == 4096.0


@each_row
@pytest.mark.parametrize("nonfinite", ["propagate", "drop"])
@pytest.mark.parametrize("clear", ["optimizer", "model"])
def test_skipped_step_leaves_the_method_alone(row: Row, nonfinite: str, clear: str) -> None:
    """As if it had not been; the scale shrinks."""
    if nonfinite == "drop" and clear != "optimizer":
        return
    (model, scaled), (twin, plain) = pair(row, nonfinite=nonfinite)
    scaling = scaler(100)
    params = scaled.param_groups[0]["params"]
    for step in range(4):
        if step == 2:
            before = copy.deepcopy([p.detach() for p in params])
            method = scaled.weighting.state_dict()
            torch.manual_seed(step)
            count = scaled.weighting.num_batches
            scaled.zero_grad()
            scaled.backward(*(model.losses(b) for b in range(count)), scaler=scaling)
            assert model.first.weight.grad is not None
            model.first.weight.grad[0] = math.inf  # an overflow in one gradient
            scaling.step(scaled)
            scaling.update()
            assert scaling.get_scale() == 512.0
            assert_same([p.detach() for p in params], before)
            assert_same_state(scaled.state_dict()["mtlfast"]["weighting"], method)
            if clear == "optimizer":
                scaled.zero_grad()
                assert_same_state(scaled.weighting.state_dict(), method)
            else:
                for param in params:
                    param.grad = None
        train(model, scaled, scaling, step)
        train(twin, plain, None, step)
        for ours, theirs in zip(params, plain.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@each_mode
def test_training_with_a_scaler(mode: Mode) -> None:
    """Every engine: unscaled, clipped, skipped and grown as in torch."""
    model = small()
    optimizer = mode.wrap(model)
    scaling = scaler()
    scales, engines = [], []
    for step in range(6):
        optimizer.zero_grad()
        hidden, losses = model.hidden_and_losses(step)
        params, rows = task_gradients(losses, model)
        mode.backward(optimizer, hidden, losses, scaler=scaling)
        if step == 2:
            next(p.grad for p in model.parameters() if p.grad is not None).fill_(math.nan)
        scaling.unscale_(optimizer)
        before = copy.deepcopy(model.state_dict())
        if step != 2:
            check_grads(optimizer, params, rows, 2e-5)
        scaling.step(optimizer)
        scaling.update()
        scales.append(scaling.get_scale())
        assert (step == 2) == all(torch.equal(x, before[k]) for k, x in model.state_dict().items())
        engines.append(optimizer.last.engine if optimizer.last else "")
    assert scales == [1024.0, 2048.0, 1024.0, 1024.0, 2048.0, 2048.0]
    if mode.update_every == 2:  # the skipped step is made again, and counts once
        assert [engine == "joint" for engine in engines] == [False, True, False, False, True, False]


@each_mode
def test_accumulation_with_a_scaler(mode: Mode) -> None:
    """Micro-batches under one scale are micro-batches."""
    models = [small(torch.float64), small(torch.float64)]
    optimizers = [mode.wrap(model) for model in models]
    scaling = scaler()
    for model, optimizer, by in zip(models, optimizers, (scaling, None), strict=True):
        for batch in range(3):
            torch.manual_seed(batch)
            mode.backward(optimizer, *model.hidden_and_losses(batch), scaler=by)
    scaling.unscale_(optimizers[0])
    torch.testing.assert_close(last_weights(optimizers[0]), last_weights(optimizers[1]))
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_learned_parameters_of_another_optimizer_stay() -> None:
    """They have made their own step when the model's was skipped."""
    model = Mlp(3, torch.float32)
    method = BY_ID["uw-parameters"].make(3)
    other = torch.optim.SGD(method.parameters(), lr=0.1)
    optimizer, scaling = wrap(model, method), scaler()
    (learned,) = method.parameters()
    optimizer.backward(model.losses(), scaler=scaling)
    assert model.first.weight.grad is not None
    model.first.weight.grad.fill_(math.inf)
    scaling.step(optimizer)
    scaling.step(other)
    scaling.update()
    after = learned.detach().clone()
    assert bool(after.any())
    other.zero_grad()
    optimizer.zero_grad()
    assert_same(learned.detach(), after)
    assert learned.grad is None


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_skipped_step_is_in_no_checkpoint_and_no_copy(clone: Callable[[Any], Any]) -> None:
    for row in (BY_ID["pcgrad"], BY_ID["gradnorm"], BY_ID["famo"]):
        (model, optimizer), (twin, plain) = pair(row)
        scaling = scaler()
        train(model, optimizer, scaling, 0)
        train(twin, plain, None, 0)
        train(model, optimizer, scaling, 1, broken=True)
        skipped, state = clone((model, optimizer)), copy.deepcopy(optimizer.state_dict())
        assert_same_state(state["mtlfast"], plain.state_dict()["mtlfast"], 1e-5)
        train(skipped[0], skipped[1], None, 2)
        train(twin, plain, None, 2)
        for ours, theirs in zip(skipped[0].parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_failure_after_a_skipped_step() -> None:
    """Neither the skipped step nor the one that failed is in the method."""
    (model, optimizer), _ = pair(BY_ID["famo"])
    scaling = scaler()
    train(model, optimizer, scaling, 0)
    before = optimizer.weighting.state_dict()
    train(model, optimizer, scaling, 1, broken=True)
    for param in model.parameters():
        param.grad = None
    losses = model.losses(2)
    torch.autograd.backward(losses)
    for param in model.parameters():
        param.grad = None
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        optimizer.backward(losses, scaler=scaling)
    assert_same_state(optimizer.state_dict()["mtlfast"]["weighting"], before)
