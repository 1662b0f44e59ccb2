"""Training with a fused step against the same training without: trajectories and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, PLAIN, Row, backend
from fused import OPTIONS, Pair, grads, make
from models import ConvNet, Mlp, Tied, assert_same
from special import SPECIAL, batches
from torch import nn
from torch.optim import lr_scheduler

from mtlfast.weighting import ColumnWise

FUSIBLE = [
    row
    for row in [*PLAIN, *SPECIAL]
    if row.make(3).needs_task_grads and not isinstance(row.make(3), ColumnWise)
]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("norm", [None, 0.3, 100.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option(options: str, norm: float | None, name: str) -> None:
    pair = Pair(options, max_grad_norm=norm)
    with backend(name):
        for index in range(8):
            pair.step(index)
            assert grads(pair.model) == [None] * len(grads(pair.model))
    pair.check()


@pytest.mark.parametrize("row", FUSIBLE, ids=str)
def test_every_method(row: Row) -> None:
    """Also those with buffers or several batches, with task-specific parameters of all kinds."""
    pair = Pair("adam", lambda: row.make(3), max_grad_norm=0.7)
    for index in range(4):
        for model, optimizer in pair.sides:
            optimizer.zero_grad()
            torch.manual_seed(index)
            optimizer.backward(*batches(model, optimizer.weighting, index))
        pair.finish()
    pair.check(1e-7)


@pytest.mark.parametrize("model", [ConvNet, Tied])
@pytest.mark.parametrize("options", ["nesterov", "adamw-amsgrad"])
def test_every_layout(model: Callable[[], nn.Module], options: str) -> None:
    pair = Pair(options, model=model())
    for index in range(5):
        pair.step(index)
    pair.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", ["momentum", "adamw"])
def test_every_type(dtype: torch.dtype, options: str) -> None:
    """Torch rounds the gradient, which is of the order of 0.1, and it may round in between.

    Adam is compared with torch's fused one, which does not: a float16 mean square is 0 at first.
    """

    def inner(model: Any) -> torch.optim.Optimizer:
        return make(options, model.parameters(), **({"eps": 1e-3, "fused": True} if adam else {}))

    adam = options == "adamw"
    pair = Pair(inner, model=Mlp(dtype=dtype), max_grad_norm=0.5)
    for index in range(3):
        pair.step(index)
    for ours, theirs in zip(pair.model.parameters(), pair.twin.parameters(), strict=True):
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=4 * eps, atol=4 * eps)
        for key, value in pair.expected.state[theirs].items():
            assert pair.found.state[ours][key].dtype == value.dtype
            torch.testing.assert_close(
                pair.found.state[ours][key], value, rtol=4 * eps, atol=4 * eps
            )


def grouped(model: Any) -> torch.optim.Optimizer:
    """Three groups with different options; trunk and heads are mixed."""
    groups: list[dict[str, Any]] = [
        {"params": [*model.first.parameters(), *model.heads[0].parameters()], "lr": 0.1},
        {"params": [model.heads[1].weight, model.last.bias], "momentum": 0.0, "nesterov": False},
        {
            "params": [model.last.weight, *model.heads[2].parameters(), model.unreached],
            "weight_decay": 0.2,
            "maximize": True,
        },
        {"params": [model.heads[1].bias, model.frozen]},
    ]
    return torch.optim.SGD(groups, lr=0.03, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("on_inner", [False, True])
def test_groups_and_schedulers(on_inner: bool) -> None:
    """Warnings are errors here: the schedulers see that the optimizer's steps come first."""
    pair = Pair(grouped, max_grad_norm=0.5)
    schedulers = [
        scheduler
        for _, optimizer in pair.sides
        for scheduler in (
            lr_scheduler.ExponentialLR(optimizer.inner if on_inner else optimizer, 0.8),
            lr_scheduler.LambdaLR(
                optimizer.inner if on_inner else optimizer, lambda n: 1 / (1 + n)
            ),
        )
    ]
    for index in range(6):
        pair.step(index)
        for scheduler in schedulers:
            scheduler.step()
    pair.check()


def test_a_group_is_added() -> None:
    pair = Pair(lambda model: make("adam", model.first.parameters()))
    for index in range(4):
        pair.step(index)
        if index == 1:
            for model, optimizer in pair.sides:
                optimizer.add_param_group({"params": list(model.last.parameters()), "lr": 0.3})
    pair.check()


@pytest.mark.parametrize("options", ["dampening", "amsgrad"])
def test_parameters_come_and_go(options: str) -> None:
    """A step leaves the state of what no loss reaches alone, its count of steps included."""
    pair = Pair(options, lambda: "mgda")
    for index in range(6):
        for model, optimizer in pair.sides:
            losses = model.losses(index)
            optimizer.backward(losses if index % 2 else [losses[0], losses[2]])
        pair.finish()
        pair.expected.zero_grad()
        assert pair.model.unreached not in pair.found.state
    pair.check()


@pytest.mark.parametrize("norm", [None, 0.3])
def test_accumulation(norm: float | None) -> None:
    pair = Pair(max_grad_norm=norm)
    for index in range(4):
        for model, optimizer in pair.sides:
            optimizer.zero_grad()
            for batch in range(3):
                optimizer.backward(model.losses(3 * index + batch))
        pair.finish()
    pair.check()


@pytest.mark.parametrize("norm", [None, 0.3])
@pytest.mark.parametrize("when", ["before", "between", "after", "everywhere"])
def test_grad_of_other_origin(when: str, norm: float | None) -> None:
    """What somebody else has put into ``grad`` counts, as it does without a fused step."""
    pair = Pair(max_grad_norm=norm)

    def other(model: Any, now: str) -> None:
        if when in (now, "everywhere"):
            (model.first.weight.sum() + model.unreached.square().sum()).backward()

    for index in range(4):
        for model, optimizer in pair.sides:
            optimizer.zero_grad()
            other(model, "before")
            optimizer.backward(model.losses(index))
            other(model, "between")
            optimizer.backward(model.losses(index + 50))
            other(model, "after")
        pair.finish()
    pair.check()


@pytest.mark.parametrize("norm", [None, 0.3])
def test_chosen_parameters(norm: float | None) -> None:
    """Compared are few, and several losses reach a parameter that is not shared."""
    pair = Pair(
        "adam",
        max_grad_norm=norm,
        shared_params=lambda model: [*model.last.parameters(), model.heads[0].weight],
        gramian_params=lambda model: [model.last.weight],
    )
    for index in range(4):
        pair.step(index)
    pair.check()


@pytest.mark.parametrize("nonfinite", ["drop", "propagate"])
@pytest.mark.parametrize("row", ["upgrad", "moco"])
def test_not_finite(nonfinite: str, row: str) -> None:
    method = next(x for x in FUSIBLE if x.id.startswith(row))
    pair = Pair("adam", lambda: method.make(3), nonfinite=nonfinite, max_grad_norm=0.3)
    for index in range(3):
        for model, optimizer in pair.sides:
            optimizer.zero_grad()
            losses = model.losses(index)
            losses[1] = losses[1] * (torch.nan if index == 1 else 1.0)
            optimizer.backward(losses)
        pair.finish()
        if nonfinite == "propagate" and index == 1:
            for ours, theirs in zip(pair.model.parameters(), pair.twin.parameters(), strict=True):
                assert_same(ours.isnan(), theirs.isnan())
            return
    pair.check(1e-8)
    assert pair.found.skip_counts == [0, 1, 0]


def test_raise_leaves_the_step_under_way() -> None:
    pair = Pair(nonfinite="raise")
    for model, optimizer in pair.sides:
        optimizer.backward(model.losses(0))
        with pytest.raises(FloatingPointError):
            optimizer.backward([torch.nan * loss for loss in model.losses(1)])
    pair.finish()
    pair.check()


def test_a_loss_method_that_drops_tasks() -> None:
    pair = Pair("momentum", lambda: "sum", nonfinite="drop", max_grad_norm=0.3)
    for index in range(4):
        pair.step(index)
    pair.check()
