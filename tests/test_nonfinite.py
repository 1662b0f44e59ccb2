"""NaN and Inf in one task's loss or gradient: propagated, dropped, or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import BACKENDS, PLAIN, Row, backend, call
from models import (
    SOME,
    Mlp,
    assert_same,
    assert_same_grads,
    assert_same_state,
    check_refused,
    last,
    last_weights,
    wrap,
)
from torch import Tensor

NAN, INF = float("nan"), float("inf")
WHERE = ("loss and gradient", "loss", "shared gradient", "own gradient", "gradient not compared")
BAD = [*((where, NAN) for where in WHERE), ("loss and gradient", INF), ("own gradient", -INF)]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


@pytest.fixture(params=PLAIN, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=SOME, ids=str)
def some(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bad: float) -> Tensor:
        ctx.shape, ctx.bad = x.shape, bad
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = torch.zeros(ctx.shape, dtype=grads[0].dtype)
        grad.view(-1)[-1] = ctx.bad
        return grad, None


def spoiled(model: Mlp, where: str, bad: float, step: int) -> list[Tensor]:
    """Losses with something that is not finite in task 1 alone."""
    losses = model.losses(step)
    if where == "loss and gradient":
        losses[1] = losses[1] * bad
    elif where == "loss":
        losses[1] = losses[1] + bad
    else:
        name = {"own gradient": "heads.1.bias", "gradient not compared": "first.weight"}
        param = model.get_parameter(name.get(where, "last.weight"))
        losses[1] = losses[1] + _BadGradient.apply(param, bad)  # type: ignore[no-untyped-call]
    return losses


def trained(model: Mlp, row: Row, where: str = "", **options: Any) -> Any:
    """A wrapper after one good step, with cleared gradients."""
    if where == "gradient not compared":
        options["gramian_params"] = model.last.parameters()
    optimizer = wrap(model, row.make(3), **options)
    optimizer.backward(model.losses(0))
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def check_goes_on(model: Mlp, optimizer: Any) -> None:
    """The state has nothing in it that is not finite, and the next step is a good one."""
    state = optimizer.weighting.state_dict()
    assert all(x.isfinite().all() for x in state.values() if isinstance(x, Tensor))
    optimizer.zero_grad()
    optimizer.backward(model.losses(5))
    assert last_weights(optimizer).isfinite().all()
    assert last(optimizer).skipped == [False] * 3
    assert last(optimizer).status == "ok"
    for param in model.parameters():
        assert param.grad is None or param.grad.isfinite().all()


@pytest.mark.parametrize(("where", "bad"), BAD)
def test_drop(row: Row, where: str, bad: float) -> None:
    """The others' step, with a zero gradient and the former loss for the dropped task."""
    model = Mlp()
    optimizer = trained(model, row, where, nonfinite="drop")
    assert optimizer.skip_counts == [0, 0, 0]
    method = copy.deepcopy(optimizer.weighting)
    losses = last(optimizer).losses
    optimizer.backward(spoiled(model, where, bad, 1))
    assert last(optimizer).skipped == [False, True, False]
    assert optimizer.skip_counts == [0, 1, 0]

    compared = list(model.last.parameters())
    if where != "gradient not compared":
        compared += model.first.parameters()
    good = model.losses(1)
    rows = [torch.autograd.grad(loss, compared, retain_graph=True) for loss in good]
    jacobian = torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows])
    jacobian[1] = 0.0
    losses[[0, 2]] = torch.stack(good)[[0, 2]].detach()
    weights = call(method, jacobian @ jacobian.T, losses, None)
    own_weights = method.own_weights(weights, losses)
    weights[1] = own_weights[1] = 0.0
    torch.testing.assert_close(last_weights(optimizer), weights)
    assert float(last_weights(optimizer)[1]) == 0.0
    for param in (*model.first.parameters(), *model.last.parameters()):
        first, third = (torch.autograd.grad(good[k], param, retain_graph=True)[0] for k in (0, 2))
        torch.testing.assert_close(param.grad, weights[0] * first + weights[2] * third)
    for k, head in enumerate(model.heads):
        for param in head.parameters():
            own = torch.autograd.grad(good[k], param, retain_graph=True)[0]
            torch.testing.assert_close(param.grad, own_weights[k] * own)
    check_goes_on(model, optimizer)
    assert optimizer.skip_counts == [0, 1, 0]


def test_drop_in_a_micro_batch(row: Row) -> None:
    """A task that fails in one micro-batch is out of the step, and is counted once."""
    model = Mlp()
    optimizer = trained(model, row, nonfinite="drop")
    optimizer.backward(model.losses(0))
    optimizer.backward(spoiled(model, "loss and gradient", NAN, 1))
    optimizer.backward(model.losses(2))
    assert last(optimizer).skipped == [False, True, False]
    assert optimizer.skip_counts == [0, 1, 0]
    assert float(last_weights(optimizer)[1]) == 0.0
    for param in model.parameters():
        assert param.grad is None or param.grad.isfinite().all()
    optimizer.step()
    check_goes_on(model, optimizer)


def test_drop_from_the_first_step_on(row: Row) -> None:
    """No finite loss is known yet; and a step with no task left is a step of zeros."""
    model = Mlp()
    optimizer = wrap(model, row.make(3), nonfinite="drop")
    for count in (1, 2):
        optimizer.backward(spoiled(model, "loss and gradient", INF, count))
        assert optimizer.skip_counts == [0, count, 0]
        assert last_weights(optimizer).isfinite().all()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.backward([loss * NAN for loss in model.losses(0)])
    assert optimizer.skip_counts == [1, 3, 1]
    assert_same(last_weights(optimizer), torch.zeros(3).double())
    for param in model.parameters():
        assert param.grad is None or not param.grad.any()
    check_goes_on(model, optimizer)


def test_drop_changes_nothing_else(row: Row) -> None:
    """Finite losses: bit for bit the step without the policy, for methods with a Gramian."""
    model = Mlp()
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    found = trained(model, row, nonfinite="drop")
    torch.manual_seed(0)
    expected = trained(twin, row)
    for step in (1, 2):
        found.backward(model.losses(step))
        expected.backward(twin.losses(step))
    if found.weighting.needs_gramian:
        assert_same_grads(model, twin, 0.0)
    else:
        assert_same_grads(model, twin)


@pytest.mark.parametrize(("where", "bad"), BAD)
def test_raise(some: Row, where: str, bad: float) -> None:
    model = Mlp()
    optimizer = trained(model, some, where, nonfinite="raise", task_names=["a", "b", "c"])
    for _ in range(2):  # with no gradient, and between micro-batches
        check_refused(
            optimizer,
            spoiled(model, where, bad, 1),
            FloatingPointError,
            "^losses: expected finite .*, found NaN or Inf in task b$",
        )
        optimizer.backward(model.losses(2))
    losses = [loss * NAN for loss in model.losses(0)]
    check_refused(optimizer, losses, FloatingPointError, "in task a, b, c$")
    check_goes_on(model, optimizer)


def test_propagate(row: Row) -> None:
    """As in torch: what the NaN reaches is NaN, what it does not reach is not."""
    model = Mlp()
    optimizer = trained(model, row)
    before = optimizer.weighting.state_dict()
    optimizer.backward(spoiled(model, "loss and gradient", NAN, 1))
    assert_same_state(optimizer.weighting.state_dict(), before)
    assert optimizer.skip_counts == []
    assert last(optimizer).skipped == [False] * 3
    for param in (*model.last.parameters(), model.get_parameter("heads.1.weight")):
        assert param.grad is not None
        assert param.grad.isnan().all()
    if optimizer.weighting.needs_gramian:
        assert last(optimizer).status == "non-finite"
        assert last_weights(optimizer).isnan().all()
    if not (optimizer.weighting.needs_gramian and optimizer.weighting.weights_losses):
        for k in (0, 2):
            grad = model.get_parameter(f"heads.{k}.weight").grad
            assert grad is not None
            assert grad.isfinite().all()
    check_goes_on(model, optimizer)
