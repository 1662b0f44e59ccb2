"""Gradient accumulation, and what ``grad`` held before ``backward``: plain torch semantics."""

from __future__ import annotations

import copy
import math
import weakref
from typing import Any

import pytest
import torch
from cases import BACKENDS, PLAIN, Row, backend
from models import (
    INNER,
    SOME,
    Mlp,
    assert_same,
    assert_same_grads,
    assert_same_params,
    assert_same_state,
    balance,
    last_weights,
    wrap,
)
from torch import Tensor, nn

from mtlfast import PCGrad, jacobian


@pytest.fixture(params=PLAIN, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=SOME, ids=str)
def some(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("num_batches", [2, 4])
def test_accumulation_equals_the_sum(row: Row, num_batches: int, name: str) -> None:
    """n micro-batches are one step of the summed losses; a state advances once for all."""
    if not row.make(3).needs_task_grads and row.make(3).needs_losses:
        return  # the first micro-batch's weights hold for the step
    model = Mlp()
    twin = copy.deepcopy(model)
    with backend(name):
        found, expected = wrap(model, row.make(3)), wrap(twin, row.make(3))
        for step in range(3):
            batches = range(step * num_batches, (step + 1) * num_batches)
            torch.manual_seed(step)
            for batch in batches:
                found.backward(model.losses(batch))
            drawn = torch.rand(())
            torch.manual_seed(step)
            sums = [sum(losses) for losses in zip(*map(twin.losses, batches), strict=True)]
            expected.backward(sums)
            assert_same(torch.rand(()), drawn)
            torch.testing.assert_close(last_weights(found), last_weights(expected))
            assert_same_state(found.weighting.state_dict(), expected.weighting.state_dict(), 1e-9)
            for optimizer in (found, expected):
                optimizer.step()
                optimizer.zero_grad()
            assert_same_params(model, twin, 1e-8)


@pytest.mark.parametrize("name", BACKENDS)
def test_accumulation_keeps_the_first_weights(row: Row, name: str) -> None:
    """A method that compares no gradients sees one call a step, of the first micro-batch."""
    if row.make(3).needs_task_grads:
        return
    model = Mlp()
    twin = copy.deepcopy(model)
    with backend(name):
        torch.manual_seed(0)
        found, method = wrap(model, row.make(3)), row.make(3)
        torch.manual_seed(0)
        weights: Tensor | None = None
        for batch in range(6):
            losses = twin.losses(batch)
            values = torch.stack(losses).detach()
            if batch % 3 == 0:
                torch.manual_seed(batch)
                weights = method(None, values)
                torch.manual_seed(batch)
                found.zero_grad()
                twin.zero_grad()
            found.backward(model.losses(batch))
            assert weights is not None
            torch.autograd.backward(losses, list(weights.to(losses[0].dtype)))
            assert_same(last_weights(found), weights)
            assert_same_grads(model, twin)
            assert_same_state(found.weighting.state_dict(), method.state_dict())


def test_accumulation_meets_new_parameters(some: Row) -> None:
    """The second micro-batch reaches a parameter that the first did not, and by other tasks."""
    model = nn.ParameterList([torch.ones(2).double() for _ in range(3)])
    twin = copy.deepcopy(model)
    a, b, c = model
    torch.manual_seed(0)
    optimizer = wrap(model, some.make(3))
    optimizer.backward([(a - 1).sum() + b.sum(), 5 - a.sum(), 3 * a.sum()])
    optimizer.backward([a.sum(), 3 * a.sum() - b.square().sum(), c.sum() + 9])
    a, b, c = twin
    torch.manual_seed(0)
    summed = [
        (2 * a - 1).sum() + b.sum(),
        5 + 2 * a.sum() - b.square().sum(),
        3 * a.sum() + c.sum() + 9,
    ]
    balance(summed, twin.parameters(), some.make(3))
    assert_same_grads(model, twin)


@pytest.mark.parametrize("clear", ["none", "zeros", "model none", "model zeros", "nothing"])
def test_clearing_is_as_in_torch(some: Row, clear: str) -> None:
    """After the optimizer's or the model's zero_grad, or none at all, as plain torch has it."""
    model = Mlp()
    twin = copy.deepcopy(model)
    optimizer, weighting = wrap(model, some.make(3)), some.make(3)
    by_hand = INNER["sgd"](twin.parameters())
    for step in range(3):
        for net, own in ((model, optimizer), (twin, by_hand)):
            if clear != "nothing":
                target: Any = net if clear.startswith("model") else own
                target.zero_grad(set_to_none=clear.endswith("none"))
        torch.manual_seed(step)
        optimizer.backward(model.losses(step))
        torch.manual_seed(step)
        balance(twin.losses(step), twin.parameters(), weighting)
        assert_same_grads(model, twin)
        optimizer.step()
        by_hand.step()
    assert_same_params(model, twin, 1e-8)


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("cleared", [False, True])
def test_regulariser_before(some: Row, cleared: bool, micro_batches: int) -> None:
    """A plain backward on some parameters before the balanced one is added, not lost."""
    model = Mlp()
    twin = copy.deepcopy(model)
    optimizer = wrap(model, some.make(3))
    if cleared:
        for param in (*model.parameters(), *twin.parameters()):
            param.grad = torch.ones_like(param)
        optimizer.zero_grad(set_to_none=False)
        twin.zero_grad(set_to_none=False)
    for net in (model, twin):
        penalty = net.first.weight.square().sum() + net.get_parameter("heads.1.bias").exp().sum()
        torch.autograd.backward(penalty)
    regulariser = model.first.weight.grad
    torch.manual_seed(0)
    for batch in range(micro_batches):
        optimizer.backward(model.losses(batch))
    torch.manual_seed(0)
    sums = [sum(x) for x in zip(*(twin.losses(b) for b in range(micro_batches)), strict=True)]
    balance(sums, twin.parameters(), some.make(3))
    assert_same_grads(model, twin)
    if micro_batches == 1:
        assert model.first.weight.grad is regulariser


def test_changes_through_data_are_kept(some: Row) -> None:
    """Older code adds to ``grad.data``, which autograd's version counter does not see."""
    model = Mlp()
    twin = copy.deepcopy(model)
    optimizer = wrap(model, some.make(3))
    for param in (*model.parameters(), *twin.parameters()):
        param.grad = torch.ones_like(param)
    optimizer.zero_grad(set_to_none=False)
    twin.zero_grad(set_to_none=False)
    for param in (*model.parameters(), *twin.parameters()):
        assert param.grad is not None
        param.grad.data.add_(param.data, alpha=0.1)
    torch.manual_seed(0)
    optimizer.backward(model.losses())
    torch.manual_seed(0)
    balance(twin.losses(), twin.parameters(), some.make(3))
    assert_same_grads(model, twin)


def test_plain_backward_between_is_kept(some: Row) -> None:
    """Nothing is lost where ``grad`` was changed between two micro-batches."""
    model = Mlp()
    twin = copy.deepcopy(model)
    weighting = some.make(3)
    optimizer = wrap(model, some.make(3))
    for step in range(2):
        torch.manual_seed(step)
        optimizer.backward(model.losses(step))
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        torch.manual_seed(step)
        balance(twin.losses(step), twin.parameters(), weighting)
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
    assert_same_grads(model, twin)


@pytest.mark.parametrize("end", ["step", "zero_grad", "load_state_dict"])
def test_task_gradients_are_released(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Tensor]] = []
    original = jacobian.differentiate

    def differentiate(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        seen.extend(weakref.ref(grad) for row in found.rows for grad in row if grad is not None)
        return found

    monkeypatch.setattr(jacobian, "differentiate", differentiate)
    model = Mlp()
    optimizer = wrap(model, PCGrad())
    state = optimizer.state_dict()
    optimizer.backward(model.losses())
    assert len(seen) == 18
    assert all(ref() is not None for ref in seen)
    if end == "load_state_dict":
        optimizer.load_state_dict(state)
    else:
        getattr(optimizer, end)()
    assert all(ref() is None for ref in seen)


@pytest.mark.parametrize("cleared", [True, False])
def test_gradients_cleared_by_the_model_begin_a_step(cleared: bool) -> None:
    """After a step that was skipped for a NaN, the weights are not those of the NaN."""
    for method in ("gls", "si", "famo", "pcgrad"):
        model = Mlp()
        optimizer = wrap(model, method)
        losses = model.losses(0)
        optimizer.backward([losses[0], losses[1] * math.nan, losses[2]])
        assert last_weights(optimizer).isnan().all()
        model.zero_grad(set_to_none=cleared)  # and no optimizer.step()
        optimizer.backward(model.losses(1))
        assert last_weights(optimizer).isfinite().all()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
