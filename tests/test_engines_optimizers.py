"""Under every engine: several optimizers, EMA and other copies, parameters on two devices."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_modes import Mode, check_grads, each_mode, task_gradients
from models import (
    Mlp,
    MultiTask,
    assert_same_grads,
    assert_same_params,
    check_refused,
)
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mtlfast import FAMO, CAGrad, MultiTaskOptimizer, PCGrad, shown
from mtlfast.jacobian import gradients
from mtlfast.weighting import Weighting


def rows_of(model: MultiTask, step: int) -> tuple[list[Tensor], list[list[Tensor | None]]]:
    return task_gradients(model.losses(step), model)


# Several optimizers


@each_mode
def test_two_optimizers_of_the_same_losses(mode: Mode) -> None:
    """Trunk by layers, each balanced by itself, as hand-written code would do it."""
    model = Mlp()
    twin = copy.deepcopy(model)
    options = dict(mode.options)
    parts = [[*model.first.parameters()], [*model.last.parameters(), *model.heads.parameters()]]
    optimizers: list[MultiTaskOptimizer] = []
    methods: list[Weighting | str] = [CAGrad(), "mgda"]
    for number, part in enumerate(parts):
        if mode.part == "params":
            options["gramian_params"] = part[:1]
        inner = torch.optim.SGD(part, lr=0.1, momentum=0.9)
        optimizers.append(MultiTaskOptimizer(inner, methods[number], **options))
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        hidden, losses = model.hidden_and_losses(step)
        params, rows = task_gradients(twin.losses(step), twin)
        names = {id(p): name for name, p in twin.named_parameters()}
        for number, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            keep = number == 0 or "retain_graph" in dict(mode.call)
            features = {"features": hidden} if mode.part == "features" else {}
            optimizer.backward(losses, retain_graph=keep, **features)
            mine = {id(p) for p in parts[number]}
            columns = [
                t
                for t, param in enumerate(params)
                if id(model.get_parameter(names[id(param)])) in mine
            ]
            check_grads(
                optimizer,
                [params[t] for t in columns],
                [[row[t] for t in columns] for row in rows],
                found=[model.get_parameter(names[id(params[t])]) for t in columns],
            )
        for param in params:
            param.grad = model.get_parameter(names[id(param)]).grad
        for optimizer in optimizers:
            optimizer.step()
        plain.step()
        assert_same_params(model, twin)


@each_mode
def test_heads_in_a_plain_optimizer(mode: Mode) -> None:
    """Their gradients come from a plain backward of the sum, before or after."""
    model = Mlp()
    trunk = [*model.first.parameters(), *model.last.parameters()]
    options = dict(mode.options)
    if mode.part == "params":
        options["gramian_params"] = trunk[2:]
    shared = MultiTaskOptimizer(torch.optim.SGD(trunk, lr=0.1), CAGrad(), **options)
    heads = torch.optim.SGD(model.heads.parameters(), lr=0.1)
    for step in range(2):
        hidden, losses = model.hidden_and_losses(step)
        params, rows = rows_of(model, step)
        shared.zero_grad()
        heads.zero_grad()
        features = {"features": hidden} if mode.part == "features" else {}
        shared.backward(losses, retain_graph=True, **features)
        assert all(p.grad is None for p in model.heads.parameters())
        torch.autograd.backward(losses, inputs=list(model.heads.parameters()))
        check_grads(shared, params, rows)
        shared.step()
        heads.step()


# Copies


@each_mode
def test_averaged_model(mode: Mode) -> None:
    """An EMA copy follows the model, takes no part in the step, and changes nothing."""
    model = Mlp()
    twin = copy.deepcopy(model)
    optimizer, alone = mode.wrap(model), mode.wrap(twin)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))  # type: ignore[no-untyped-call]
    expected = copy.deepcopy(model.state_dict())
    for step in range(4):
        for net, own in ((model, optimizer), (twin, alone)):
            torch.manual_seed(step)
            own.zero_grad()
            mode.backward(own, *net.hidden_and_losses(step))
            own.step()
        average.update_parameters(model)
        for name, value in model.state_dict().items():
            expected[name] = value.clone() if step == 0 else expected[name] / 2 + value / 2
    assert_same_params(model, twin)
    assert_same_grads(model, twin)
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert all(p.grad is None for p in average.module.parameters())


@each_mode
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_by_themselves(mode: Mode, clone: Callable[[Any], Any]) -> None:
    """Model and optimizer together; a copy computes its first weights itself."""
    model = Mlp()
    optimizer = mode.wrap(model, FAMO() if mode.update_every == 1 else PCGrad(seed=1))

    def step(net: Mlp, own: MultiTaskOptimizer, number: int) -> None:
        torch.manual_seed(number)
        own.zero_grad()
        mode.backward(own, *net.hidden_and_losses(number))
        own.step()

    for number in range(mode.update_every):
        step(model, optimizer, number)
    twin, other = clone((model, optimizer))
    assert other.last is None
    assert repr(other) == repr(optimizer)
    for name in ("engine", "update_every", "chunk_size", "sketch_size", "nonfinite"):
        assert getattr(other, name) == getattr(optimizer, name)
    if mode.part == "params":
        assert {id(p) for p in other._compared} == {id(p) for p in twin.last.parameters()}
    for number in range(2, 5):
        step(model, optimizer, number)
        step(twin, other, number)
        assert_same_params(twin, model)


# Two devices


@pytest.mark.parametrize("method", ["graddrop", "moco"])
def test_methods_that_read_all_gradients_want_one_device(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They know no parts: the refusal comes before anything has changed."""
    model = Mlp()
    elsewhere = {id(param) for param in model.last.parameters()}
    monkeypatch.setattr(
        shown, "device_of", lambda p: torch.device("cuda" if id(p) in elsewhere else "cpu")
    )
    check_refused(
        Mode("auto").wrap(model, method),
        model.losses(),
        ValueError,
        r"^shared_params: expected parameters on one device for \w+, .* found some on cpu, cuda$",
    )


@each_mode
@pytest.mark.parametrize("options", [{}, {"fused_step": True, "max_grad_norm": 0.1}])
def test_parameters_by_device(
    mode: Mode, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped as if every second parameter lay elsewhere: the step is the same."""
    model = Mlp()
    twin = copy.deepcopy(model)
    places = {id(p): t for t, p in enumerate(model.parameters())}
    asked: set[int] = set()

    def device_of(param: Tensor) -> torch.device:
        place = places.get(id(param), 0)
        asked.add(place % 2)
        return torch.device("cpu", place % 2)

    found, expected = mode.wrap(model, **options), mode.wrap(twin, **options)
    for step in range(3):
        torch.manual_seed(step)
        expected.zero_grad()
        mode.backward(expected, *twin.hidden_and_losses(step))
        expected.step()
        torch.manual_seed(step)
        with monkeypatch.context() as context:
            context.setattr(gradients, "device_of", device_of)
            found.zero_grad()
            mode.backward(found, *model.hidden_and_losses(step))
            found.step()
        assert_same_params(model, twin, 1e-9)
    assert asked == {0, 1}
