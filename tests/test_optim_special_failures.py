"""Methods with buffers, several batches or columns: NaN, failures, parameters that come and go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Row
from models import (
    Mlp,
    assert_same,
    assert_same_grads,
    assert_same_params,
    assert_same_state,
    last,
    last_weights,
    probe,
    wrap,
)
from special import SPECIAL, batches, finite, refused, spoil, train
from torch import Tensor, nn

from mtlfast import MultiTaskOptimizer, column_ops, ops
from mtlfast.weighting import ColumnWise

NAN, INF = float("nan"), float("inf")
BUFFERED = [row for row in SPECIAL if row.make(3).keeps_buffers]


@pytest.fixture(params=SPECIAL, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=BUFFERED, ids=str)
def buffered(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


# NaN and Inf


@pytest.mark.parametrize("bad", [NAN, INF])
def test_drop(row: Row, bad: float) -> None:
    """A dropped task counts as one with a zero gradient and the loss that it had before."""
    model = Mlp()
    optimizer = wrap(model, row.make(3), nonfinite="drop")
    train(model, optimizer, range(2))
    twin, plain = copy.deepcopy((model, optimizer))
    known = last(optimizer).losses
    torch.manual_seed(0)
    optimizer.zero_grad()
    optimizer.backward(*spoil(batches(model, optimizer.weighting, 2), 1, bad))
    assert last(optimizer).skipped == [False, True, False]
    assert optimizer.skip_counts == [0, 1, 0]
    assert finite(model)

    losses = batches(twin, plain.weighting, 2)
    for batch in losses:
        batch[1] = 0 * batch[1] + known[1]
    plain.nonfinite = "propagate"
    torch.manual_seed(0)
    plain.zero_grad()
    plain.backward(*losses)
    assert_same_state(optimizer.weighting.state_dict(), plain.weighting.state_dict(), 1e-9)
    if not isinstance(plain.weighting, ColumnWise):
        weights = last_weights(plain).clone()
        weights[1::3] = 0.0
        torch.testing.assert_close(last_weights(optimizer), weights)
    if not (plain.weighting.keeps_buffers and plain.weighting.needs_gramian):
        assert_same_grads(model, twin, 1e-8)  # it combines the gradients themselves
    elif not isinstance(plain.weighting, ColumnWise):
        state = plain.weighting.state_dict()
        buffer = state.get("weighting", state)["buffer"]
        place = [name for name, _ in model.named_parameters()].index("last.weight")
        rows = torch.stack([row[place] for row in buffer])
        torch.testing.assert_close(model.last.weight.grad, torch.einsum("k,kij->ij", weights, rows))
    goes_on(model, optimizer)


def test_drop_from_the_first_step_on(row: Row) -> None:
    """No finite loss is known yet; and a step with no task left."""
    model = Mlp()
    optimizer = wrap(model, row.make(3), nonfinite="drop")
    optimizer.backward(*spoil(batches(model, optimizer.weighting, 0), 1, INF))
    assert optimizer.skip_counts == [0, 1, 0]
    assert finite(model)
    optimizer.step()
    optimizer.zero_grad()
    losses = batches(model, optimizer.weighting, 1)
    optimizer.backward(*[[loss * NAN for loss in batch] for batch in losses])
    assert optimizer.skip_counts == [1, 2, 1]
    for param in model.parameters():
        assert param.grad is None or not param.grad.any()
    goes_on(model, optimizer)


def test_raise(row: Row) -> None:
    model = Mlp()
    optimizer = wrap(model, row.make(3), nonfinite="raise", task_names=["a", "b", "c"])
    for _ in range(2):  # with no gradient, and between micro-batches
        losses = spoil(batches(model, optimizer.weighting, 1), 1, NAN)
        message = "^losses: expected finite .*, found NaN or Inf in task b$"
        refused(optimizer, losses, FloatingPointError, message)
        optimizer.backward(*batches(model, optimizer.weighting, 2))
    goes_on(model, optimizer)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_propagate(row: Row, first: bool, on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's answer is NaN; buffers and state are those of before, on a device as well."""
    monkeypatch.setattr("mtlfast.weighting.buffered._on_host", lambda flag: on_host)
    model = Mlp()
    optimizer = wrap(model, row.make(3))
    if not first:
        train(model, optimizer, range(2))
    before = optimizer.weighting.state_dict()
    twin, undisturbed = copy.deepcopy((model, optimizer))
    optimizer.zero_grad()
    optimizer.backward(*spoil(batches(model, optimizer.weighting, 2), 1, INF))
    grad = model.last.weight.grad
    assert grad is not None
    assert grad.isnan().all() or isinstance(optimizer.weighting, ColumnWise)
    assert not grad.isfinite().any()
    if not isinstance(optimizer.weighting, ColumnWise):
        assert last_weights(optimizer).isnan().all()
    elif not optimizer.weighting.keeps_buffers:
        return
    assert last(optimizer).status == "non-finite"
    assert_same_state(optimizer.weighting.state_dict(), before)
    goes_on(model, optimizer)
    goes_on(twin, undisturbed)
    assert_same_grads(model, twin, 0.0)
    assert_same_state(optimizer.weighting.state_dict(), undisturbed.weighting.state_dict())


def goes_on(model: Mlp, optimizer: MultiTaskOptimizer) -> None:
    """The next step is a good one, and the state has nothing in it that is not finite."""
    optimizer.zero_grad()
    torch.manual_seed(0)
    optimizer.backward(*batches(model, optimizer.weighting, 6))
    assert finite(model)
    assert last(optimizer).skipped == [False] * 3
    assert last(optimizer).status == "ok"
    copied = copy.deepcopy(optimizer.weighting)
    copied.load_state_dict(optimizer.weighting.state_dict())  # which refuses NaN


# Failures


class BrokenError(RuntimeError):
    pass


SITUATIONS = ("new", "accumulating", "after a step")


def prepared(situation: str, model: Mlp, row: Row) -> MultiTaskOptimizer:
    optimizer = wrap(model, row.make(3))
    if situation == "after a step":
        train(model, optimizer, range(2))
    if situation == "accumulating":
        train(model, optimizer, range(1))
        optimizer.backward(*batches(model, optimizer.weighting, 1))
    return optimizer


def check_undisturbed(row: Row, situation: str, fail: Callable[[Mlp, Any], None]) -> None:
    """After a failure training goes on as if it had not been."""
    model = Mlp()
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    optimizer = prepared(situation, model, row)
    torch.manual_seed(0)
    expected = prepared(situation, twin, row)
    fail(model, optimizer)
    for step in (5, 6):
        for net, own in ((model, optimizer), (twin, expected)):
            torch.manual_seed(step)
            own.backward(*batches(net, own.weighting, step))
            own.step()
            own.zero_grad()
        assert_same_params(model, twin)
        assert_same_state(optimizer.weighting.state_dict(), expected.weighting.state_dict())


@pytest.mark.parametrize("situation", SITUATIONS)
def test_failing_backward(row: Row, situation: str) -> None:
    """In the middle of the last batch, when other tasks are through."""

    def broken() -> None:
        raise BrokenError("in the middle")

    def fail(model: Mlp, optimizer: MultiTaskOptimizer) -> None:
        losses = batches(model, optimizer.weighting, 3)
        losses[-1][1] = losses[-1][1] + probe(model.first.weight, broken).sum()
        refused(optimizer, losses, BrokenError, "in the middle")

    check_undisturbed(row, situation, fail)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("place", ["transform", "solver", "end"])
def test_failing_end(row: Row, situation: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, say: when buffers are half made, before the weights, before ``grad``."""

    def fail(model: Mlp, optimizer: MultiTaskOptimizer) -> None:
        method = optimizer.weighting
        calls: list[int] = []
        original = ops.combine

        def once(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if place == "transform" and len(calls) == 2:
                raise BrokenError(place)
            return original(*args, **kwargs)

        def always(*args: Any, **kwargs: Any) -> Any:
            raise BrokenError(place)

        with monkeypatch.context() as patch:
            if place == "transform":
                if not method.keeps_buffers or isinstance(method, ColumnWise):
                    return
                patch.setattr(ops, "combine", once)
                patch.setattr(column_ops, "excess", always)
            elif place == "solver":
                if isinstance(method, ColumnWise):
                    return
                patch.setattr(ops, "solve", always)
            else:
                patch.setattr(type(method), "combine_", always)
            refused(optimizer, batches(model, method, 3), BrokenError, place)

    check_undisturbed(row, situation, fail)


def test_another_number_of_tasks(row: Row) -> None:
    model = Mlp()
    optimizer = wrap(model, row.make(3))
    train(model, optimizer, range(1))
    losses = [batch[:2] for batch in batches(model, optimizer.weighting, 1)]
    if not optimizer.weighting.state_dict().keys() - {"method", "rng"}:
        return
    refused(optimizer, losses, ValueError, "expected .* tasks as in earlier calls, found")


# Parameters that come and go


class Changing(nn.Module):
    """Three tasks on two parameters; ``step`` says which of them the tasks reach."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 2.0]).double())
        self.b = nn.Parameter(torch.tensor([3.0, -1.0]).double())

    def losses(self, step: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step)
        slopes = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
        reached = [(self.a, self.b), (self.b,), (self.a,)][step % 3]
        return [
            (sum((slope * x).sum() for slope, x in zip(task, reached, strict=False)) - 4).square()
            for task in slopes
        ]


def test_buffers_of_parameters_that_come_and_go(buffered: Row) -> None:
    """A parameter that is not shared in a step keeps its buffers and its grad."""
    model = Changing()
    optimizer = MultiTaskOptimizer(torch.optim.SGD([model.a, model.b], lr=1e-3), buffered.make(3))

    def buffers() -> list[list[Tensor]]:
        state = optimizer.weighting.state_dict()
        state = state.get("weighting", state)
        return [list(row) for row in state["buffer"]]

    for step in (0, 1, 2, 4, 3):
        known = buffers() if step else None
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        reached = [[True, True], [False, True], [True, False]][step % 3]
        for t, param in enumerate((model.a, model.b)):
            assert (param.grad is not None) == reached[t]
            for k, row in enumerate(buffers()):
                assert row[t].shape == (2,)
                if known is not None:
                    assert torch.equal(row[t], known[k][t]) == (not reached[t])
        optimizer.step()


def test_buffers_of_new_and_frozen_parameters(buffered: Row) -> None:
    """A parameter group that comes later starts at zero; a frozen parameter is left alone."""
    model, extra = Mlp(), nn.Parameter(torch.ones(5).double())
    optimizer = wrap(model, buffered.make(3))
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": [extra]})
    model.first.weight.requires_grad_(False)
    frozen = model.first.weight.detach().clone()
    optimizer.zero_grad()
    optimizer.backward([x + k * extra.square().sum() for k, x in enumerate(model.losses(3))])
    assert extra.grad is not None
    assert model.first.weight.grad is None
    assert finite(model)
    optimizer.step()
    assert_same(model.first.weight.detach(), frozen)
    model.first.weight.requires_grad_()
    train(model, optimizer, range(4, 6))
    assert finite(model)


def test_buffers_of_another_model_are_refused(buffered: Row) -> None:
    model = Mlp()
    optimizer = wrap(model, buffered.make(3))
    train(model, optimizer, range(1))
    state = optimizer.weighting.state_dict()
    other = Mlp()
    other.first = nn.Linear(5, 6, bias=False).double()
    wrapped = wrap(other, buffered.make(3))
    wrapped.weighting.load_state_dict(state)
    refused(
        wrapped, [other.losses()], ValueError, "^task_grads.*: expected .* earlier calls, found"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(row: Row, dtype: torch.dtype) -> None:
    """Buffers have the gradients' dtype; two steps are those of float64 but for rounding."""
    exact, model = Mlp(3), Mlp(3, dtype)
    exact.load_state_dict(model.state_dict())
    grads = []
    for net in (exact, model):
        optimizer = wrap(net, row.make(3))
        for step in range(2):
            torch.manual_seed(step)
            optimizer.zero_grad()
            optimizer.backward(*batches(net, optimizer.weighting, step))
        grad = net.last.weight.grad
        assert grad is not None
        assert grad.dtype == net.last.weight.dtype
        grads.append(grad.double())
    assert finite(model)
    difference = float((grads[1] - grads[0]).norm() / grads[0].norm())
    assert difference < 40 * torch.finfo(dtype).eps
