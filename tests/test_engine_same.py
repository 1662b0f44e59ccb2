"""What holds for every engine that differentiates the graph in parts, beside "stored"."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from engine_cases import (
    BATCHES,
    METHODS,
    ORDER,
    Case,
    Fragile,
    Layered,
    Method,
    PartialReach,
    Residual,
    backward,
    check_same,
    close,
    pair,
    same_grads,
)
from models import Embedded, Mlp, check_refused, last, wrap
from torch import Tensor

from mtlfast import PCGrad
from mtlfast.jacobian.graph import Graph
from mtlfast.losses import TaskLosses

TOLERANCES = {"batched": 1e-9, "streaming": 1e-9, "sketched": 1e-6}
"""The models are so small that every element has a bucket of its own; sketches are float32."""

MLP = Case("mlp", Mlp)
FRAGILE = Case("fragile", Fragile)


@pytest.fixture(params=TOLERANCES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("method", BATCHES, ids=str)
def test_batches_are_compared(engine: str, method: Method) -> None:
    check_same(MLP, method, engine, TOLERANCES[engine])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_float32(engine: str, method: Method) -> None:
    case = Case("float32", lambda: Mlp(dtype=torch.float32))
    check_same(case, method, engine, 1e-5 if method.id == "cagrad" else 2e-6)


@pytest.mark.parametrize("inner", ["sgd", "adamw"])
def test_fused_step(engine: str, inner: str) -> None:
    torch.manual_seed(0)
    models = [Residual() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, name in zip(models, ("stored", engine), strict=True):
        optimizer = wrap(model, PCGrad(), inner, engine=name, fused_step=True, max_grad_norm=0.5)
        for step in range(3):
            optimizer.backward(model.losses(step), order=ORDER)
            assert all(param.grad is None for param in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        close(ours.detach(), theirs.detach(), TOLERANCES[engine])


def test_retained_graph_gives_the_same_again(engine: str) -> None:
    (plain, expected), (model, found) = pair(MLP, METHODS[0], engine)
    expected.backward(plain.losses(), order=ORDER)
    losses = model.losses()
    for _ in range(2):
        found.zero_grad()
        found.backward(losses, order=ORDER, retain_graph=True)
        same_grads(model, plain, TOLERANCES[engine])
    found.zero_grad()
    found.backward(losses, order=ORDER)
    same_grads(model, plain, TOLERANCES[engine])


@pytest.mark.parametrize("retain", [False, True])
def test_graph_is_freed(engine: str, retain: bool) -> None:
    model = Residual()
    optimizer = wrap(model, "pcgrad", engine=engine)
    losses = model.losses()
    optimizer.backward(losses, retain_graph=retain)

    def again() -> contextlib.AbstractContextManager[Any]:
        if retain:
            return contextlib.nullcontext()
        return pytest.raises(RuntimeError, match=r"a second time|already been freed")

    with again():
        torch.autograd.grad(losses[0], [*model.heads[0].parameters()], retain_graph=True)
    graph = Graph(TaskLosses.read(losses, None))
    for node in graph.nodes:
        if node.name() == "TanhBackward0":
            with again():
                assert node._saved_result is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_task_with_nan_in_the_trunk_is_dropped(engine: str, method: Method) -> None:
    (plain, expected), (model, found) = pair(FRAGILE, method, engine, nonfinite="drop")
    for twin, optimizer in ((plain, expected), (model, found)):
        backward(twin, optimizer, 0, method)
    assert found.skip_counts == expected.skip_counts == [0, 1, 0]
    close(last(found).weights, last(expected).weights, TOLERANCES[engine])
    same_grads(model, plain, TOLERANCES[engine])
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_task_with_nan_in_the_trunk_raises(engine: str) -> None:
    model = Fragile()
    optimizer = wrap(model, "pcgrad", engine=engine, nonfinite="raise")
    check_refused(optimizer, model.losses(), FloatingPointError, r"^losses: expected .* in task 1$")


def test_nan_is_passed_on(engine: str) -> None:
    model = Fragile()
    optimizer = wrap(model, "pcgrad", engine=engine)
    optimizer.backward(model.losses(), order=ORDER)
    for param in model.layers[:3].parameters():
        assert param.grad is not None
        assert param.grad.isnan().all()
    gramian = last(optimizer).gramian
    assert gramian is not None
    assert gramian.isfinite().tolist() == [[True, False, True], [False] * 3, [True, False, True]]


def test_micro_batches(engine: str) -> None:
    (plain, expected), (model, found) = pair(MLP, METHODS[0], engine)
    steps = range(3)
    for step in steps:
        found.backward(model.losses(step), order=ORDER)
    if engine == "batched":
        for step in steps:
            expected.backward(plain.losses(step), order=ORDER)
    else:
        # All are weighted as the first one was.
        expected.backward(plain.losses(0), order=ORDER)
        weights = last(expected).weights
        assert weights is not None
        for step in steps[1:]:
            losses = torch.stack(plain.losses(step))
            shared = [p for name, p in plain.named_parameters() if name.startswith(("fi", "la"))]
            shared = [p for p in shared if p.requires_grad]
            torch.autograd.backward(losses @ weights, retain_graph=True, inputs=shared)
            torch.autograd.backward(losses.sum(), inputs=list(plain.heads.parameters()))
    same_grads(model, plain, TOLERANCES[engine])


def test_grad_that_is_there_is_added_to(engine: str) -> None:
    (plain, expected), (model, found) = pair(MLP, METHODS[0], engine)
    for twin, optimizer in ((plain, expected), (model, found)):
        for param in twin.parameters():
            param.grad = torch.full_like(param, 0.5) if param.requires_grad else None
        optimizer.backward(twin.losses(), order=ORDER)
    same_grads(model, plain, TOLERANCES[engine])


def test_losses_without_a_common_part(engine: str) -> None:
    class Apart(Layered):
        def losses(self, step: int = 0) -> list[Tensor]:
            return [self.loss(k, torch.ones(3, 6).double() * (k + step)) for k in range(3)]

    check_same(Case("apart", Apart), METHODS[1], engine, TOLERANCES[engine])


def test_stacked_losses(engine: str) -> None:
    (plain, expected), (model, found) = pair(MLP, METHODS[0], engine)
    expected.backward(plain.losses(), order=ORDER)
    found.backward(torch.stack(model.losses()), order=ORDER)
    same_grads(model, plain, TOLERANCES[engine])


def test_unreached_parameters_are_refused(engine: str) -> None:
    model = Mlp()
    optimizer = wrap(model, "pcgrad", engine=engine)
    losses = [torch.ones((), requires_grad=True) * 2 for _ in range(3)]
    check_refused(optimizer, losses, ValueError, "^losses: expected losses that depend on param")


def test_sparse_gradients_are_refused(engine: str) -> None:
    model = Embedded(sparse=True)
    optimizer = wrap(model, "pcgrad", engine=engine)
    with pytest.raises((TypeError, RuntimeError), match=r"expected .* found"):
        optimizer.backward(model.losses())
    assert all(param.grad is None for param in model.parameters())


def test_backwards_of_the_user_are_left_alone(engine: str) -> None:
    """No hook stays behind, and the users' own run on what a backward delivers."""
    model, twin = PartialReach(), PartialReach()
    twin.load_state_dict(model.state_dict())
    for each, name in ((model, engine), (twin, "stored")):
        weight = next(each.layers.parameters())
        weight.register_hook(lambda grad: 2 * grad)  # type: ignore[no-untyped-call]
        wrap(each, PCGrad(), engine=name).backward(each.losses(), order=ORDER)
    same_grads(model, twin, TOLERANCES[engine])
    losses = model.losses()
    assert sum(len(param._backward_hooks or ()) for param in model.parameters()) == 1
    sent: list[Tensor] = list(torch.autograd.grad(losses[0], list(model.layers.parameters())))
    assert all(grad.any() for grad in sent)


def test_scaled_losses_change_nothing(engine: str) -> None:
    torch.manual_seed(0)
    model = Mlp()
    twin = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for each, name, by in ((model, engine, scaler), (twin, "stored", None)):
        optimizer = wrap(each, PCGrad(), engine=name)
        optimizer.backward(each.losses(), order=ORDER, scaler=by)
        if by is not None:
            by.unscale_(optimizer)
    same_grads(model, twin, TOLERANCES[engine])
