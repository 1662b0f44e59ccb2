"""The wrapper with methods that keep buffers, compare several batches or combine columns."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, Row, backend
from models import (
    INNER,
    Mlp,
    Snapshot,
    assert_same_grads,
    assert_same_params,
    assert_same_state,
    last,
    last_weights,
    wrap,
)
from special import SPECIAL, batches, by_hand, refused, train

from mtlfast import aggregate
from mtlfast.weighting import ColumnWise

SEVERAL = [row for row in SPECIAL if row.make(3).num_batches > 1]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


@pytest.fixture(params=SPECIAL, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=SEVERAL, ids=str)
def several(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


# Values


@pytest.mark.parametrize("inner", INNER)
def test_trains_as_by_hand(row: Row, inner: str) -> None:
    model = Mlp()
    twin = copy.deepcopy(model)
    optimizer, weighting = wrap(model, row.make(3), inner), row.make(3)
    plain = INNER[inner](twin.parameters())
    for step in range(5):
        train(model, optimizer, [step])
        torch.manual_seed(step)
        plain.zero_grad()
        by_hand(batches(twin, weighting, step), twin.parameters(), weighting)
        assert_same_grads(model, twin, 1e-8)
        plain.step()
        assert_same_params(model, twin, 1e-7)
        assert optimizer.weighting.status == weighting.status
    assert model.unreached.grad is None
    info = last(optimizer)
    assert info.status == "ok"
    assert "StepInfo" in repr(info)
    assert bool(info.objective.isfinite())
    if isinstance(weighting, ColumnWise):
        assert info.weights is None
    else:
        assert last_weights(optimizer).shape == (3 * weighting.num_batches,)


def test_single_task(row: Row) -> None:
    model = Mlp(1)
    twin = copy.deepcopy(model)
    if row.least > 1:
        return
    optimizer, weighting = wrap(model, row.make(1)), row.make(1)
    for step in range(3):
        torch.manual_seed(step)
        optimizer.zero_grad()
        optimizer.backward(*batches(model, optimizer.weighting, step))
        torch.manual_seed(step)
        twin.zero_grad()
        by_hand(batches(twin, weighting, step), twin.parameters(), weighting)
        assert_same_grads(model, twin)


def test_what_was_there_is_added_to(row: Row) -> None:
    model = Mlp()
    twin = copy.deepcopy(model)
    optimizer, weighting = wrap(model, row.make(3)), row.make(3)
    for net in (model, twin):
        penalty = net.first.weight.square().sum() + net.get_parameter("heads.1.bias").exp().sum()
        torch.autograd.backward(penalty)
    torch.manual_seed(0)
    optimizer.backward(*batches(model, weighting, 0))
    torch.manual_seed(0)
    by_hand(batches(twin, weighting, 0), twin.parameters(), weighting)
    assert_same_grads(model, twin)


def test_own_parameters_get_what_the_method_says(row: Row) -> None:
    """The mean over batches of the task's own gradient, times the method's factor."""
    model = Mlp()
    method = row.make(3)
    losses = batches(model, method, 0)
    values = torch.stack([torch.stack(batch).detach() for batch in losses]).mean(0)
    factors = torch.ones(3).double()
    if "dbmtl" in row.id:
        factors = 1 / (values + 1e-8)
    elif row.id == "modo":
        factors = 2 * factors
    elif method.weights_losses:
        return
    weights = [model.get_parameter(f"heads.{k}.weight") for k in range(3)]
    expected = []
    for k, weight in enumerate(weights):
        rows = [torch.autograd.grad(batch[k], weight, retain_graph=True)[0] for batch in losses]
        expected.append(factors[k] * torch.stack(rows).mean(0))
    wrap(model, method).backward(*losses)
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


@pytest.mark.parametrize("num_micro", [2, 3])
def test_accumulation_equals_the_sum(row: Row, num_micro: int) -> None:
    """n micro-batches are one step of the summed losses; a state advances once for all."""
    model = Mlp()
    twin = copy.deepcopy(model)
    found, expected = wrap(model, row.make(3)), wrap(twin, row.make(3))
    for step in range(3):
        parts = range(step * num_micro, (step + 1) * num_micro)
        torch.manual_seed(step)
        for part in parts:
            found.backward(*batches(model, found.weighting, part))
        torch.manual_seed(step)
        every = [batches(twin, expected.weighting, part) for part in parts]
        sums = [[sum(x) for x in zip(*same, strict=True)] for same in zip(*every, strict=True)]
        expected.backward(*sums)
        assert_same_grads(model, twin, 1e-8)
        assert_same_state(found.weighting.state_dict(), expected.weighting.state_dict(), 1e-9)
        for optimizer in (found, expected):
            optimizer.step()
            optimizer.zero_grad()
        assert_same_params(model, twin, 1e-8)


def test_given_shared_parameters(row: Row) -> None:
    """What is not named is no part of the comparison, nor of the buffers."""
    model = Mlp()
    optimizer = wrap(model, row.make(3), shared_params=model.last.parameters())
    train(model, optimizer, range(2))
    losses = batches(model, optimizer.weighting, 5)
    rows = [
        torch.autograd.grad(loss, list(model.last.parameters()), retain_graph=True)
        for batch in losses
        for loss in batch
    ]
    jacobian = torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows])
    torch.manual_seed(0)
    method = copy.deepcopy(optimizer.weighting)
    if method.keeps_buffers:
        state = method.state_dict()
        part = state.get("weighting", state)
        rows_kept = [[x.flatten() for x in row if x is not None] for row in part["buffer"]]
        part["buffer"] = [[torch.cat(row)] for row in rows_kept]
        method.load_state_dict(state)
    values = torch.stack([torch.stack(batch).detach() for batch in losses]).mean(0)
    expected = aggregate(jacobian, method, values)
    torch.manual_seed(0)
    optimizer.zero_grad()
    optimizer.backward(*losses)
    found = torch.cat([p.grad.flatten() for p in model.last.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("row", SPECIAL, ids=str)
def test_compared_parameters(row: Row) -> None:
    """Refused with the reason, or the Gramian of these parameters alone."""
    model = Mlp()
    method = row.make(3)
    if not method.compares_raw:
        name = type(method).__name__
        message = f"^gramian_params: {name} compares all shared parameters .*, found 2$"
        with pytest.raises(ValueError, match=message):
            wrap(model, method, gramian_params=model.last.parameters())
        return
    optimizer = wrap(model, row.make(3), gramian_params=model.last.parameters())
    losses = batches(model, method, 0)
    rows = [
        torch.autograd.grad(loss, [*model.last.parameters(), model.first.weight], retain_graph=True)
        for batch in losses
        for loss in batch
    ]
    compared = torch.stack([torch.cat([grad.flatten() for grad in row[:2]]) for row in rows])
    values = torch.stack([torch.stack(batch).detach() for batch in losses]).mean(0)
    weights = method(compared @ compared.T, values if method.needs_losses else None)
    optimizer.backward(*losses)
    expected = torch.einsum("k,kij->ij", weights, torch.stack([row[2] for row in rows]))
    torch.testing.assert_close(model.first.weight.grad, expected)


# Several batches


def test_named_losses_in_any_order(several: Row) -> None:
    model = Mlp()
    twin = copy.deepcopy(model)
    found, expected = wrap(model, several.make(3)), wrap(twin, several.make(3))
    for step in range(3):
        named = [
            list(zip("abc", batch, strict=True)) for batch in batches(model, found.weighting, step)
        ]
        found.backward(*[dict(pairs[b:] + pairs[:b]) for b, pairs in enumerate(named)])
        expected.backward(*batches(twin, expected.weighting, step))
        assert_same_grads(model, twin, 0.0)
        assert last(found).task_names == tuple("abc")
        torch.testing.assert_close(last(found).losses, last(expected).losses)


def test_wrong_number_of_batches(row: Row) -> None:
    model = Mlp()
    optimizer = wrap(model, row.make(3))
    wanted = optimizer.weighting.num_batches
    for situation in ("new", "accumulating"):
        for count in {1, wanted - 1, wanted + 1} - {0, wanted}:
            plural = "es" if wanted > 1 else ""
            message = (
                f"^losses: .* expected the losses of {wanted} .* batch{plural}, found {count}$"
            )
            refused(optimizer, [model.losses(b) for b in range(count)], ValueError, message)
        if situation == "new":
            optimizer.backward(*batches(model, optimizer.weighting, 0))


def test_batches_have_the_same_tasks(several: Row) -> None:
    model = Mlp()
    optimizer = wrap(model, several.make(3))
    first, *others = batches(model, optimizer.weighting, 0)
    wrong = [*others[:-1], others[-1][:2]]
    refused(optimizer, [first, *wrong], ValueError, "^losses: expected 3, .*, found 2$")
    named: list[Any] = [dict(zip("abc", batch, strict=True)) for batch in (first, *others)]
    named[-1] = dict(zip("abd", others[-1], strict=True))
    refused(optimizer, named, ValueError, "^losses: expected the tasks a, b, c, found a, b, d$")
    others[-1][1] = others[-1][1].detach()
    refused(optimizer, [first, *others], ValueError, r"^losses\[1\]: expected .*graph")


def test_closure(row: Row) -> None:
    model = Mlp()
    twin = copy.deepcopy(model)
    found, expected = wrap(model, row.make(3)), wrap(twin, row.make(3))
    for step in range(3):
        losses = batches(model, found.weighting, step)
        torch.manual_seed(step)
        value = found.step(functools.partial(tuple, losses) if len(losses) > 1 else losses.pop)
        assert value.shape == ()
        train(twin, expected, [step])
        assert_same_params(model, twin)


# Checkpoints, copies


@pytest.mark.parametrize("inner", INNER)
def test_resume_is_bit_for_bit(row: Row, inner: str) -> None:
    model = Mlp()
    optimizer = wrap(model, row.make(3), inner)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = Mlp()
    resumed.load_state_dict(state["model"])
    other = wrap(resumed, row.make(3), inner)
    train(resumed, other, [7])  # a state of its own, to be replaced
    resumed.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    assert_same_state(other.state_dict(), optimizer.state_dict())
    train(model, optimizer, range(3, 6))
    train(resumed, other, range(3, 6))
    assert_same_params(resumed, model)
    assert_same_state(other.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(row: Row, clone: Callable[[Any], Any]) -> None:
    model = Mlp()
    optimizer = wrap(model, row.make(3))
    train(model, optimizer, range(2))
    optimizer.backward(*batches(model, optimizer.weighting, 8))
    twin, other = clone((model, optimizer))
    assert repr(other) == repr(optimizer)
    assert_same_state(other.state_dict(), optimizer.state_dict())
    train(model, optimizer, range(2, 5))
    train(twin, other, range(2, 5))
    assert_same_params(twin, model)
    assert_same_state(other.state_dict(), optimizer.state_dict())


def test_wrong_state_dict(row: Row) -> None:
    model = Mlp()
    optimizer = wrap(model, row.make(3))
    train(model, optimizer, range(2))
    state = optimizer.state_dict()
    optimizer.backward(*batches(model, optimizer.weighting, 3))
    for key in state["mtlfast"]["weighting"]:
        ours = {**state["mtlfast"]["weighting"], key: [["wrong"]]}
        snapshot = Snapshot(optimizer)
        with pytest.raises((ValueError, TypeError), match=r"^state_dict.*: expected .*, found"):
            optimizer.load_state_dict({**state, "mtlfast": {**state["mtlfast"], "weighting": ours}})
        snapshot.check()
