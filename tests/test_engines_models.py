"""Every engine and mode on every kind of model: the gradient that plain torch would give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch_config
from engine_models import MODELS, Trunk
from engine_modes import (
    BY_VMAP,
    Mode,
    check_grads,
    check_gramian,
    each_mode,
    refusal,
    task_gradients,
)
from models import MultiTask, assert_same, assert_same_params, last, last_weights
from torch import Tensor, nn

from mtlfast import CAGrad, jacobian


@each_mode
@pytest.mark.parametrize("name", MODELS)
def test_model(mode: Mode, name: str) -> None:
    """Three steps: Gramian, combination, buffers and random numbers as of one plain forward."""
    torch.manual_seed(0)
    model = MODELS[name]()
    twin = copy.deepcopy(model)
    optimizer, by_hand = mode.wrap(model), torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        torch.manual_seed(step)
        losses = twin.losses(step)
        expected = torch.rand(())  # dropout has drawn once
        params, rows = task_gradients(losses, twin)
        torch.manual_seed(step)
        optimizer.zero_grad()
        found = model.hidden_and_losses(step)
        if (message := refusal(mode, name)) is not None:
            with pytest.raises(RuntimeError, match=message):
                mode.backward(optimizer, *found)
            assert all(param.grad is None for param in model.parameters())
            return
        mode.backward(optimizer, *found)
        if mode.exact:  # a sketch draws its signs
            assert_same(torch.rand(()), expected)
        places = {id(param): t for t, param in enumerate(twin.parameters())}
        mine = list(model.parameters())
        reached = [mine[places[id(param)]] for param in params]
        check_grads(optimizer, params, rows, found=reached)
        check_gramian(mode, optimizer, twin, params, rows)
        assert {id(p) for p in mine if p.grad is not None} == {id(p) for p in reached}
        for param, other in zip(params, reached, strict=True):
            assert other.grad is not None
            param.grad = other.grad.clone()
        optimizer.step()
        by_hand.step()
        by_hand.zero_grad()
        assert_same_params(model, twin)
        for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
            assert_same(ours, theirs)
    assert last(optimizer).status == "ok"


@pytest.mark.parametrize("name", ["frozen", "tied", "partly", "convolutions"])
@pytest.mark.parametrize("engine", jacobian.ENGINES)
def test_gramian_params_with_every_engine(engine: str, name: str) -> None:
    """All shared gradients are balanced by the weights of some."""
    mode = Mode(engine, (("engine", engine),), part="params", exact=engine != "sketched")
    model = MODELS[name]()
    optimizer = mode.wrap(model)
    for step in range(2):
        params, rows = task_gradients(model.losses(step), model)
        optimizer.zero_grad()
        mode.backward(optimizer, *model.hidden_and_losses(step))
        check_grads(optimizer, params, rows)
        check_gramian(mode, optimizer, model, params, rows)
        if mode.exact:
            gramian = last(optimizer).gramian
            assert gramian is not None
            torch.testing.assert_close(last_weights(optimizer), CAGrad()(gramian))
        optimizer.step()


@pytest.mark.parametrize("name", ["reentrant", "reentrant_all", "checkpoint"])
def test_joint_backward_through_a_checkpoint(name: str) -> None:
    """A method that compares nothing: nothing inside of it is left out."""
    model = MODELS[name]()
    optimizer = Mode("auto").wrap(model, "sum")
    params, rows = task_gradients(model.losses(), model)
    optimizer.backward(model.losses())
    assert last(optimizer).engine == "joint"
    check_grads(optimizer, params, rows)


@each_mode
def test_batch_norm_counts_forwards(mode: Mode) -> None:
    model = MODELS["batch_norm"]()
    optimizer = mode.wrap(model)
    norm = next(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d))
    for step in range(3):
        mode.backward(optimizer, *model.hidden_and_losses(step))
        assert int(norm.num_batches_tracked) == step + 1  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()


@each_mode
def test_engine_and_reason_are_told(mode: Mode) -> None:
    torch.manual_seed(0)
    model = MODELS["frozen"]()
    optimizer = mode.wrap(model)
    mode.backward(optimizer, *model.hidden_and_losses())
    info = last(optimizer)
    if mode.part == "features":
        assert (info.engine, info.reason) == ("features", "features were given")
    elif mode.part == "params":
        assert (info.engine, info.reason) == ("partial", "gramian_params were given")
    elif mode.engine == "factored" and info.engine == "stored":
        assert "product" in info.reason  # it takes the layers where products pay, here none
    elif mode.engine != "auto":
        assert (info.engine, info.reason) == (mode.engine, "it was asked for")
    assert len(info.reason) > 5
    assert f"engine={info.engine!r} ({info.reason})" in repr(info)


# Compiled models

DONATED = "engine: expected a graph that can be differentiated K times, found a compiled model"
REMEDY = "set torch._functorch.config.donated_buffer = False before the model is compiled"


def compiled(backend: str, whole: bool) -> tuple[MultiTask, Callable[[int], Any]]:
    """A model, and what gives its losses with a compiled trunk, or with all compiled."""
    torch.manual_seed(0)
    torch.compiler.reset()
    layers = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Sigmoid())
    model = Trunk(layers, dtype=torch.float32)
    hidden = torch.compile(model.hidden, backend=backend)

    def heads(z: Tensor) -> list[Tensor]:
        return [(head(z) - k).square().mean() for k, head in enumerate(model.heads)]

    @torch.compile(backend=backend)
    def everything(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = model.hidden(x)
        return z, heads(z)

    def forward(step: int) -> tuple[Tensor, list[Tensor]]:
        x = model.inputs(torch.Generator().manual_seed(step))
        if whole:
            found: tuple[Tensor, list[Tensor]] = everything(x)
            return found
        z = hidden(x)
        return z, heads(z)

    return model, forward


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, at first use
@each_mode
@pytest.mark.parametrize("donated", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_model(mode: Mode, backend: str, whole: bool, donated: bool) -> None:
    """Right with donated buffers switched off; with them right, or refused with the remedy."""
    with functorch_config.patch(donated_buffer=donated):
        model, forward = compiled(backend, whole)
        # In one compiled graph every loss reaches every head, with zeros.
        shared = [p for name, p in model.named_parameters() if name.startswith("trunk")]
        optimizer = mode.wrap(model, shared_params=shared if whole else None)
        for step in range(2):
            # Plain training compiles a backward that may be made but once.
            torch.autograd.backward(forward(step)[1])
            optimizer.zero_grad()
            found = forward(step)
            try:
                mode.backward(optimizer, *found)
            except (RuntimeError, ValueError) as error:
                refused = str(error)
            else:
                refused = ""
            if whole and mode.part == "features":
                assert "found one that no loss reaches" in refused  # heads begin inside the graph
                return
            if mode.engine in BY_VMAP:
                assert "torch.vmap can differentiate, found a compiled model" in refused
                assert refused.endswith("use engine='stored'")
                return
            # A backward that is made once, of the heads or of all, is no reason to refuse.
            assert donated or not refused
            assert refused or not (donated and mode.engine == "stored")
            if refused:
                assert refused.startswith(DONATED)
                assert refused.endswith(REMEDY)
                return
            z = model.hidden(model.inputs(torch.Generator().manual_seed(step)))
            losses = [(head(z) - k).square().mean() for k, head in enumerate(model.heads)]
            check_grads(optimizer, *task_gradients(losses, model), 1e-5)
            optimizer.step()
