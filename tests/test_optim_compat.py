"""The wrapper as a torch optimizer: schedulers, scaler, checkpoints, copies, hooks, closures."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import PLAIN, Row
from models import (
    INNER,
    SOME,
    Mlp,
    assert_same,
    assert_same_grads,
    assert_same_params,
    assert_same_state,
    balance,
    last,
    last_weights,
    wrap,
)
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

from mtlfast import CAGrad, GradNorm, MultiTaskOptimizer, PCGrad


@pytest.fixture(params=PLAIN, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=SOME, ids=str)
def some(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


def train(model: Mlp, optimizer: MultiTaskOptimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        named = list(zip("abc", model.losses(step), strict=True))
        optimizer.backward(dict(named[step % 3 :] + named[: step % 3]))
        optimizer.step()


def inner_state(optimizer: MultiTaskOptimizer) -> Any:
    return copy.deepcopy(optimizer.inner.state_dict())


# Learning-rate schedulers

NEEDS_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.7)], [2]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.7)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e9),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=3),
}


def schedulers() -> dict[str, Callable[[Any], Any]]:
    """Every scheduler class of this torch; one that came later is built with its defaults."""
    modules = {**vars(lr_scheduler), "SWALR": swa_utils.SWALR}
    return {
        name: NEEDS_ARGUMENTS.get(name, cls)
        for name, cls in modules.items()
        if inspect.isclass(cls) and issubclass(cls, LRScheduler)
        if cls is not LRScheduler and not name.startswith("_")
    }


def test_schedulers_were_found() -> None:
    assert len(schedulers()) >= 15
    assert set(NEEDS_ARGUMENTS) <= set(schedulers())


@pytest.mark.parametrize("name", schedulers())
def test_scheduler(name: str) -> None:
    model = Mlp()
    twin = copy.deepcopy(model)
    optimizer, by_hand, weighting = wrap(model, CAGrad()), INNER["sgd"](twin.parameters()), CAGrad()
    ours, theirs = schedulers()[name](optimizer), schedulers()[name](by_hand)
    rates = []
    for step in range(5):
        optimizer.zero_grad()
        by_hand.zero_grad()
        optimizer.backward(model.losses(step))
        balance(twin.losses(step), twin.parameters(), weighting)
        optimizer.step()
        by_hand.step()
        for scheduler in (ours, theirs):
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["lr"] == by_hand.param_groups[0]["lr"]
        assert optimizer.param_groups[0]["momentum"] == by_hand.param_groups[0]["momentum"]
    assert len(set(rates)) > 1
    assert_same_params(model, twin, 1e-8)


# Clipping and scaling


def test_clip_grad_norm() -> None:
    model = Mlp()
    twin = copy.deepcopy(model)
    optimizer = wrap(model, CAGrad())
    optimizer.backward(model.losses())
    balance(twin.losses(), twin.parameters(), CAGrad())
    shared = [*model.first.parameters(), *model.last.parameters()]
    weights, gramian = last_weights(optimizer), last(optimizer).gramian
    assert gramian is not None
    norm = torch.nn.utils.get_total_norm([p.grad for p in shared if p.grad is not None])
    torch.testing.assert_close(norm, (weights @ gramian @ weights).sqrt())
    found = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    torch.testing.assert_close(found, nn.utils.clip_grad_norm_(twin.parameters(), 0.1))
    assert found > 0.2
    assert_same_grads(model, twin)


def test_grad_scaler(row: Row) -> None:
    """Scaled as by hand, skipped on Inf with nothing poisoned, and on as before."""
    if not (row.scale_free and row.amp):
        return
    model = Mlp(3, torch.float32)
    twin = copy.deepcopy(model)
    found, expected = wrap(model, row.make(3)), wrap(twin, row.make(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    scales = []
    for step in range(5):
        skipped = step == 2
        before = [copy.deepcopy(list(model.parameters())), inner_state(found)]
        method = found.weighting.state_dict()
        torch.manual_seed(step)
        found.zero_grad()
        losses = model.losses(step)
        if skipped:
            losses[1] = losses[1] * math.inf
        found.backward([scaler.scale(loss) for loss in losses])
        scaler.unscale_(found)
        scaler.step(found)
        scaler.update()
        scales.append(scaler.get_scale())
        if skipped:
            assert_same([list(model.parameters())], before[:1])
            assert_same_state(inner_state(found), before[1])
            if found.weighting.needs_gramian:
                assert_same_state(found.weighting.state_dict(), method)
            continue
        torch.manual_seed(step)
        expected.zero_grad()
        expected.backward(twin.losses(step))
        expected.step()
        assert_same_params(model, twin)
    assert scales == [1024.0, 2048.0, 1024.0, 1024.0, 2048.0]


# Checkpoints, copies


@pytest.mark.parametrize("inner", INNER)
def test_resume_is_bit_for_bit(row: Row, inner: str) -> None:
    model = Mlp()
    torch.manual_seed(0)
    optimizer = wrap(model, row.make(3), inner)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    keys = set(state["optimizer"])
    resumed = Mlp()
    resumed.load_state_dict(state["model"])
    torch.manual_seed(99)
    other = wrap(resumed, row.make(3), inner)
    other.load_state_dict(state["optimizer"])
    assert set(state["optimizer"]) == keys  # the caller's dict is left as it was
    assert_same_state(other.state_dict(), optimizer.state_dict())
    train(model, optimizer, range(4, 8))  # the dict's order differs from the first step's
    train(resumed, other, range(4, 8))
    assert_same_params(resumed, model)
    assert_same(last_weights(other), last_weights(optimizer))
    assert last(other).task_names == last(optimizer).task_names == tuple("abc")


def test_state_dict_is_a_checkpoint_of_now() -> None:
    model = Mlp()
    optimizer = wrap(model, GradNorm())
    train(model, optimizer, range(2))
    state = optimizer.state_dict()["mtlfast"]
    kept = copy.deepcopy(state)
    train(model, optimizer, range(2))
    assert_same_state(state, kept)
    assert float(optimizer.weighting.state_dict()["num_updates"]) == 4


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(row: Row, clone: Callable[[Any], Any]) -> None:
    model = Mlp()
    torch.manual_seed(0)
    optimizer = wrap(model, row.make(3), gramian_params=model.last.parameters())
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    train(model, optimizer, range(2))
    scheduler.step()
    optimizer.backward(model.losses())
    twin, other = clone((model, optimizer))
    assert other.inner is not optimizer.inner
    assert other.last is None
    assert other.param_groups[0]["params"][0] is next(twin.parameters())
    assert repr(other) == repr(optimizer)
    assert_same_state(other.state_dict(), optimizer.state_dict())
    train(model, optimizer, range(2, 5))
    steps = len(calls)
    train(twin, other, range(2, 5))
    assert_same_params(twin, model)
    assert len(calls) == steps  # a hook stays with the original, as in torch


# What optimizers offer


def test_is_an_optimizer() -> None:
    model = Mlp()
    optimizer = wrap(model, "cagrad")
    inner = optimizer.inner
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer.weighting, CAGrad)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    optimizer.param_groups = optimizer.param_groups[:]
    assert inner.param_groups is optimizer.param_groups
    # A wrapper of a trainer takes over the instance's attributes under a class of its own.
    outer = type("Outer", (MultiTaskOptimizer,), {"__init__": lambda self: None})()
    outer.__dict__ = {k: v for k, v in optimizer.__dict__.items() if k != "step"}
    assert outer.param_groups is inner.param_groups
    outer.backward(model.losses())
    outer.step()
    assert len(outer.state) == 10


def test_add_param_group(some: Row) -> None:
    model, extra = Mlp(), nn.Parameter(torch.ones(5).double())
    optimizer = wrap(model, some.make(3))
    optimizer.backward(model.losses())
    optimizer.add_param_group({"params": [extra], "lr": 0.5, "momentum": 0.0})
    assert len(optimizer.inner.param_groups) == 2
    optimizer.zero_grad()
    optimizer.backward([loss + k * extra.square().sum() for k, loss in enumerate(model.losses())])
    assert extra.grad is not None
    torch.testing.assert_close(
        extra.grad, (last_weights(optimizer) @ torch.arange(3.0).double()) * 2 * extra.detach()
    )
    expected = extra.detach() - 0.5 * extra.grad
    optimizer.step()
    assert_same(extra.detach(), expected)


HOOKED = ("step", "state_dict", "load_state_dict")


def test_hooks() -> None:
    model = Mlp()
    optimizer = wrap(model, PCGrad())
    seen: list[str] = []
    names = [f"{what}_{when}" for what in HOOKED for when in ("pre", "post")]
    for name in names:
        register = getattr(optimizer, f"register_{name}_hook")
        register(lambda *_, name=name: seen.append(name))
    removed = optimizer.register_step_pre_hook(lambda *_: seen.append("removed"))
    removed.remove()
    train(model, optimizer, range(1))
    assert seen == names[:2]
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert seen == names
    optimizer.register_state_dict_post_hook(lambda _, found: {**found, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda _, found: {k: v for k, v in found.items() if k != "mine"}
    )
    state = optimizer.state_dict()
    assert state["mine"] == 1
    optimizer.load_state_dict(state)


@pytest.mark.parametrize(("line_search", "left"), [(None, 0.5), ("strong_wolfe", 0.1)])
def test_lbfgs_reduces_a_convex_problem(some: Row, line_search: str | None, left: float) -> None:
    x = nn.Parameter(torch.tensor([3.0, -2.0, 1.0]).double())
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.5, 0.5, 0.2]]).double()
    scales = torch.tensor([1.0, 4, 9]).double()
    inner = torch.optim.LBFGS(
        [x], max_iter=5, line_search_fn=line_search, lr=0.3 if line_search is None else 1
    )
    optimizer = MultiTaskOptimizer(inner, some.make(3))
    calls: list[float] = []

    def closure() -> list[Tensor]:
        losses = [(scales * (x - target).square()).sum() for target in targets]
        calls.append(float(torch.stack(losses).detach().sum()))
        return losses

    values = [optimizer.step(closure) for _ in range(4)]
    assert len(calls) > 4  # several evaluations a step
    closure()
    least = float((scales * (targets.mean(0) - targets).square()).sum())
    assert calls[-1] - least < left * (calls[0] - least)
    assert all(isinstance(value, Tensor) and value.shape == () for value in values)


def test_closure_with_sgd(some: Row) -> None:
    model = Mlp()
    twin = copy.deepcopy(model)
    found, expected = wrap(model, some.make(3)), wrap(twin, some.make(3))
    for step in range(3):
        torch.manual_seed(step)
        value = found.step(functools.partial(model.losses, step))
        torch.manual_seed(step)
        expected.zero_grad()
        expected.backward(twin.losses(step))
        losses = torch.stack(twin.losses(step)).detach()
        expected.step()
        assert_same_params(model, twin)
        torch.testing.assert_close(value, (last_weights(expected) * losses).sum())


def test_repr_names_everything() -> None:
    text = repr(wrap(Mlp(), CAGrad(c=0.3)))
    for part in ("MultiTaskOptimizer(", "CAGrad(c=0.3", "engine='auto'", "SGD", "lr: 0.1"):
        assert part in text
