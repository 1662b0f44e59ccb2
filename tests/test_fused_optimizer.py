"""A wrapper with a fused step is an optimizer: hooks, closures, copies and checkpoints."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused import Pair, grads, make
from models import assert_same, assert_same_params
from torch import Tensor

from mtlfast import MultiTaskOptimizer


def test_zero_grad_forgets() -> None:
    """After it nothing is pending, and a step moves nothing, as where every ``grad`` is None."""
    pair = Pair()
    pair.step(0)
    before = copy.deepcopy(pair.model)
    state = copy.deepcopy(pair.found.state_dict())
    pair.found.backward(pair.model.losses(1))
    pair.found.zero_grad()
    pair.found.step()
    assert_same_params(pair.model, before)
    assert_same(pair.found.state_dict()["state"], state["state"])
    pair.found.step()  # without any backward
    assert_same_params(pair.model, before)


def test_a_step_is_made_once_and_lets_go() -> None:
    pair = Pair()
    pair.found.backward(pair.model.losses(0))
    assert pair.found._pending is not None
    held = [
        weakref.ref(g) for row in pair.found._pending.jacobian.rows for g in row if g is not None
    ]
    assert len(held) > 3
    pair.found.step()
    assert all(reference() is None for reference in held)
    before = copy.deepcopy(pair.model)
    pair.found.step()
    assert_same_params(pair.model, before)


def test_closure() -> None:
    pair = Pair("nesterov")
    losses = []
    for index in range(3):
        losses += [
            optimizer.step(lambda model=model, index=index: model.losses(index))  # type: ignore[misc]
            for model, optimizer in pair.sides
        ]
    pair.check()
    torch.testing.assert_close(losses[::2], losses[1::2])


def test_hooks_run_around_the_update() -> None:
    pair = Pair()
    seen: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.append((name, pair.model.first.weight.detach().clone()))

    pair.found.register_step_pre_hook(note("outer pre"))
    pair.found.register_step_post_hook(note("outer post"))
    pair.found.inner.register_step_pre_hook(note("inner pre"))
    pair.found.inner.register_step_post_hook(note("inner post"))
    old = pair.model.first.weight.detach().clone()
    pair.step(0)
    new = pair.model.first.weight.detach()
    assert [name for name, _ in seen] == ["outer pre", "inner pre", "inner post", "outer post"]
    for (_, value), expected in zip(seen, (old, old, new, new), strict=True):
        assert_same(value, expected)
    assert not torch.equal(old, new)


@pytest.mark.parametrize("options", ["momentum", "adamw-amsgrad"])
def test_fused_step_may_change_between_runs(options: str) -> None:
    """A checkpoint of either kind goes on in the other."""
    pair = Pair(options)
    for index in range(3):
        pair.step(index)
    saved = []
    for model, optimizer in pair.sides:
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        saved.append(torch.load(file, weights_only=True))
    other = Pair(options)
    for (model, optimizer), (params, state) in zip(other.sides, reversed(saved), strict=True):
        model.load_state_dict(params)
        optimizer.load_state_dict(state)
    for index in range(3, 6):
        pair.step(index)
        other.step(index)
    other.check()
    assert_same_params(other.model, pair.model, 1e-9)


def test_loading_forgets_the_step_under_way() -> None:
    pair = Pair()
    before = copy.deepcopy(pair.model)
    state = pair.found.state_dict()
    pair.found.backward(pair.model.losses(0))
    pair.found.load_state_dict(state)
    pair.found.step()
    assert_same_params(pair.model, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_fused(copied: Callable[[Any], Any]) -> None:
    pair = Pair(max_grad_norm=0.3)
    pair.step(0)
    pair.model, pair.found = copied((pair.model, pair.found))
    assert pair.found.fused_step
    assert pair.found.max_grad_norm == 0.3
    pair.step(1)
    assert grads(pair.model) == [None] * len(grads(pair.model))
    pair.check()


def test_capturable() -> None:
    """The count of steps and the learning rate are tensors; torch has that on a GPU only."""
    lr = torch.tensor(0.02, dtype=torch.float64)
    pair = Pair(lambda model: make("adamw", model.parameters()))
    params = pair.model.parameters()
    inner = torch.optim.AdamW(params, lr=lr, weight_decay=0.3, capturable=True)
    pair.found = MultiTaskOptimizer(inner, "upgrad", fused_step=True)
    for index in range(4):
        lr.fill_(0.02 / (index + 1))
        pair.expected.param_groups[0]["lr"] = 0.02 / (index + 1)
        pair.step(index)
    assert_same_params(pair.model, pair.twin, 1e-9)


def test_default_float64() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        pair = Pair()
        pair.step(0)
        pair.check()
    finally:
        torch.set_default_dtype(torch.float32)
