"""What a fused step refuses, and that nothing has changed then."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fused import Pair, scaler
from models import Mlp, assert_same_params, assert_same_state

import mtlfast
from mtlfast import MultiTaskOptimizer


class MyAdam(torch.optim.Adam):
    pass


REFUSED: list[tuple[Any, Any, dict[str, Any], str]] = [
    (torch.optim.RMSprop, "upgrad", {}, "fused_step: .*found RMSprop"),
    (torch.optim.LBFGS, "upgrad", {}, "fused_step: .*found LBFGS"),
    (MyAdam, "upgrad", {}, "fused_step: .*found MyAdam"),
    (torch.optim.SGD, "graddrop", {}, "fused_step: .*task weights, found GradDrop"),
    (torch.optim.SGD, "sum", {}, "fused_step: .*needs the task gradients, found Sum"),
    (torch.optim.SGD, "uw", {}, "fused_step: .*needs the task gradients, found UW"),
    (torch.optim.SGD, lambda: mtlfast.CRMOGM("sum"), {}, "fused_step: .*found CRMOGM"),
]


@pytest.mark.parametrize(("inner", "method", "options", "message"), REFUSED)
def test_refused(inner: Any, method: Any, options: dict[str, Any], message: str) -> None:
    weighting = method() if callable(method) else method
    with pytest.raises(ValueError, match=message):
        MultiTaskOptimizer(inner(Mlp().parameters()), weighting, fused_step=True, **options)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_differentiable_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"fused_step: expected differentiable=False.*group 0"):
        MultiTaskOptimizer(cls(Mlp().parameters(), differentiable=True), "upgrad", fused_step=True)


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        (0.0, ValueError, "max_grad_norm: expected a number above 0, found 0.0"),
        (-1, ValueError, "max_grad_norm: expected a number above 0, found -1"),
        (float("nan"), ValueError, "max_grad_norm: expected a number above 0, found nan"),
        (True, TypeError, "max_grad_norm: expected a number or None, found bool"),
        ("1", TypeError, "max_grad_norm: expected a number or None, found str"),
    ],
)
def test_wrong_norm(norm: Any, error: type[Exception], message: str) -> None:
    inner = torch.optim.SGD(Mlp().parameters())
    with pytest.raises(error, match=message):
        MultiTaskOptimizer(inner, "upgrad", fused_step=True, max_grad_norm=norm)


def test_norm_without_fused_step() -> None:
    with pytest.raises(ValueError, match="max_grad_norm: expected None without fused_step"):
        MultiTaskOptimizer(torch.optim.SGD(Mlp().parameters()), "upgrad", max_grad_norm=1.0)


@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler_is_refused(unscale: bool) -> None:
    """By a sentence, and nothing has changed; a step without it is made as if nothing had been."""
    pair = Pair()
    before = copy.deepcopy(pair.model)
    amp = scaler()
    pair.found.backward([amp.scale(loss) for loss in pair.model.losses(0)])
    if unscale:
        amp.unscale_(pair.found)
    with pytest.raises(RuntimeError, match="fused_step: expected a step without GradScaler"):
        amp.step(pair.found)
    assert_same_params(pair.model, before)
    pair.step(0)
    pair.check()


def test_a_disabled_scaler_is_none() -> None:
    pair = Pair()
    amp = torch.amp.GradScaler("cpu", enabled=False)
    for model, optimizer in pair.sides:
        optimizer.backward([amp.scale(loss) for loss in model.losses(0)])
        amp.step(optimizer)
    pair.check()


def test_options_that_change() -> None:
    """What the constructor would have refused is refused by the step, before it does anything."""
    pair = Pair("adamw")
    pair.step(0)
    before, state = copy.deepcopy(pair.model), copy.deepcopy(pair.found.state_dict())
    pair.found.backward(pair.model.losses(1))
    pair.found.param_groups[0]["differentiable"] = True
    with pytest.raises(ValueError, match="fused_step: expected differentiable=False"):
        pair.found.step()
    pair.found.param_groups[0]["differentiable"] = False
    assert_same_params(pair.model, before)
    assert_same_state(pair.found.state_dict()["state"], state["state"])
    pair.found.step()  # the gradients are still there
    pair.expected.zero_grad()
    pair.expected.backward(pair.twin.losses(1))
    pair.expected.step()
    pair.check()


def test_a_state_that_does_not_fit() -> None:
    pair = Pair("momentum")
    pair.step(0)
    before = copy.deepcopy(pair.model)
    weight = pair.model.first.weight
    pair.found.state[weight]["momentum_buffer"] = torch.ones(2)
    pair.found.backward(pair.model.losses(1))
    with pytest.raises(ValueError, match=r"momentum_buffers\[0\]: expected"):
        pair.found.step()
    assert_same_params(pair.model, before)
