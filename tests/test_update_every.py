"""``update_every=n``: what is computed when, and how steps are counted."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from cases import ROWS, Row
from engine_modes import combined, task_gradients
from models import Mlp, Tied, assert_same, assert_same_state, last, last_weights, wrap
from torch import nn

from mtlfast import CAGrad, GradNorm, MultiTaskOptimizer, capture, jacobian


def step(model: Mlp, optimizer: MultiTaskOptimizer, number: int, micro_batches: int = 1) -> None:
    optimizer.zero_grad()
    for batch in range(micro_batches):
        optimizer.backward(model.losses(number * micro_batches + batch))
    optimizer.step()


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("engine", jacobian.ENGINES)
def test_weights_serve_n_steps(every: int, micro_batches: int, engine: str) -> None:
    """Computed once in n steps; in between the same ones, by one backward of the trunk."""
    model = Mlp()
    optimizer = wrap(model, GradNorm(), engine=engine, update_every=every)
    kept = None
    for number in range(7):
        before = model.backwards
        step(model, optimizer, number, micro_batches)
        info = last(optimizer)
        if number % every == 0:
            assert info.gramian is not None or engine != "stored"
            kept = last_weights(optimizer)
        else:
            assert model.backwards - before == micro_batches
            assert (info.engine, info.gramian) == ("joint", None)
            ago = number % every
            plural = "s" * (ago > 1)
            assert info.reason == f"with the weights of {ago} step{plural} ago"
            assert_same(last_weights(optimizer), kept)
        assert int(optimizer.weighting.state_dict()["num_updates"]) == number // every + 1


@pytest.mark.parametrize("fused_step", [False, True])
@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_values_in_between(fused_step: bool, max_grad_norm: float | None) -> None:
    """``Σ w_k g_k`` with the weights of before, each head its own gradient; fused or not."""
    if max_grad_norm is not None and not fused_step:
        return
    model = Mlp()
    twin = copy.deepcopy(model)
    optimizer = wrap(
        model, "cagrad", update_every=3, fused_step=fused_step, max_grad_norm=max_grad_norm
    )
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for number in range(5):
        step(model, optimizer, number)
        params, rows = task_gradients(twin.losses(number), twin)
        for param, grad in zip(
            params, combined(params, rows, last_weights(optimizer)), strict=True
        ):
            param.grad = grad
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(twin.parameters(), max_grad_norm)
        plain.step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_own_weights_of_a_method_that_weights_losses() -> None:
    """What one task reaches gets its loss's weight, in the steps between as well."""
    model = Mlp()
    optimizer = wrap(model, "imtl", update_every=2)
    for number in range(2):
        params, rows = task_gradients(model.losses(number), model)
        optimizer.zero_grad()
        optimizer.backward(model.losses(number))
        places = {id(p): t for t, p in enumerate(params)}
        weights = last_weights(optimizer)
        own = optimizer.weighting.own_weights(weights, last(optimizer).losses)
        for k, head in enumerate(model.heads):
            grad = rows[k][places[id(head.weight)]]
            assert grad is not None
            torch.testing.assert_close(head.weight.grad, own[k] * grad)
        optimizer.step()


def test_abandoned_and_skipped_steps_do_not_count() -> None:
    """Neither one whose gradients were cleared, nor one that a scaler skipped."""
    model = Mlp(3, torch.float32)
    optimizer = wrap(model, "cagrad", update_every=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    engines = []
    for number, fate in enumerate(["lost", "made", "lost", "skipped", "made", "made", "skipped"]):
        optimizer.zero_grad()
        optimizer.backward(model.losses(number), scaler=scaler)
        engines.append("joint" if last(optimizer).engine == "joint" else "new")
        if fate == "skipped":
            model.first.weight.grad.fill_(math.inf)  # type: ignore[union-attr]
        if fate != "lost":
            scaler.step(optimizer)
            scaler.update()
    assert engines == ["new", "new", "joint", "joint", "joint", "new", "joint"]


def test_loading_starts_anew() -> None:
    """A checkpoint has no weights in it: the first step after it computes them."""
    model = Mlp()
    optimizer = wrap(model, "cagrad", update_every=3)
    step(model, optimizer, 0)
    state = copy.deepcopy(optimizer.state_dict())
    step(model, optimizer, 1)
    assert last(optimizer).engine == "joint"
    optimizer.load_state_dict(state)
    step(model, optimizer, 2)
    assert last(optimizer).engine != "joint"
    step(model, optimizer, 3)
    assert last(optimizer).engine == "joint"


def test_another_number_of_tasks_starts_anew() -> None:
    model = Mlp(4)
    optimizer = wrap(model, "cagrad", update_every=3)
    optimizer.backward(model.losses(0))
    optimizer.step()
    optimizer.zero_grad()
    optimizer.backward(model.losses(1)[:3])
    assert last(optimizer).engine != "joint"
    assert len(last_weights(optimizer)) == 3


def test_closure() -> None:
    model = Mlp()
    optimizer = wrap(model, "cagrad", update_every=2)
    for number in range(4):
        value = optimizer.step(lambda number=number: model.losses(number))  # type: ignore[misc]
        assert (last(optimizer).engine == "joint") == bool(number % 2)
        torch.testing.assert_close(value, last_weights(optimizer) @ last(optimizer).losses)


def test_shared_parameters_in_a_head() -> None:
    """A weight that the trunk and one head use gets its whole gradient."""
    model = Tied()
    optimizer = wrap(model, CAGrad(), update_every=2)
    for number in range(2):
        optimizer.zero_grad()
        params, rows = task_gradients(model.losses(number), model)
        optimizer.backward(model.losses(number))
        for param, grad in zip(
            params, combined(params, rows, last_weights(optimizer)), strict=True
        ):
            torch.testing.assert_close(param.grad, grad)
        optimizer.step()


def test_failure_in_between_changes_nothing() -> None:
    model = Mlp()
    optimizer = wrap(model, "gradnorm", update_every=2)
    step(model, optimizer, 0)
    optimizer.zero_grad()
    before, method = optimizer.last, optimizer.weighting.state_dict()
    losses = model.losses(1)
    torch.autograd.backward(losses)
    model.zero_grad()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        optimizer.backward(losses)
    assert all(param.grad is None for param in model.parameters())
    assert optimizer.last is before
    assert_same_state(optimizer.weighting.state_dict(), method)
    optimizer.backward(model.losses(1))
    assert last(optimizer).engine == "joint"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_who_may(row: Row) -> None:
    """Methods of gradients that are seen through their Gramian; the others are told why not."""
    method = row.make(3)
    if method.compares_raw and method.needs_task_grads:
        wrap(Mlp(), method, update_every=2)
        return
    why = "needs no task gradients" if method.compares_raw else "(combines single|has buffers)"
    match = rf"^update_every: expected 1 for \w+, which {why}.*found 2$"
    with pytest.raises(ValueError, match=match):
        wrap(Mlp(), method, update_every=2)


def test_refused_in_a_captured_step(monkeypatch: Any) -> None:
    model = Mlp()
    optimizer = wrap(model, "cagrad", update_every=2)
    monkeypatch.setattr(capture, "under_way", lambda tensor: True)
    with pytest.raises(RuntimeError, match=r"^update_every: expected 1 in a captured step.* 2$"):
        optimizer.backward(model.losses())
    wrap(model, "cagrad").backward(model.losses())
