"""The wrapper against hand-written K-backward code: values, costs, forms, layouts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, PLAIN, Row, backend, random_orders
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    BY_ID,
    INNER,
    SOME,
    ConvNet,
    Embedded,
    Mlp,
    MultiTask,
    Tied,
    assert_same,
    assert_same_grads,
    assert_same_params,
    balance,
    last,
    last_weights,
    wrap,
)
from torch import Tensor, nn

from mtlfast import GradNorm, MultiTaskOptimizer, PCGrad, reference
from mtlfast.weighting import Weighting


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


@pytest.fixture(params=PLAIN, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=SOME, ids=str)
def some(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


def check_training(
    model: MultiTask,
    make: Callable[[], Weighting],
    *,
    inner: str = "sgd",
    steps: int = 4,
    rtol: float = 1e-9,
    shared: Callable[[Any], list[Tensor]] | None = None,
    compared: Callable[[Any], list[Tensor]] | None = None,
) -> MultiTaskOptimizer:
    """Trains by the wrapper and by hand; grads, weights and parameters agree at every step."""
    plain = copy.deepcopy(model)
    torch.manual_seed(1)
    optimizer = wrap(
        model,
        make(),
        inner,
        shared_params=shared and shared(model),
        gramian_params=compared and compared(model),
    )
    torch.manual_seed(1)
    by_hand, weighting = INNER[inner](plain.parameters()), make()
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        torch.manual_seed(step)
        by_hand.zero_grad()
        weights = balance(
            plain.losses(step),
            plain.parameters(),
            weighting,
            shared=shared and shared(plain),
            compared=compared and compared(plain),
        )
        torch.testing.assert_close(last_weights(optimizer), weights, rtol=rtol, atol=rtol / 100)
        assert_same_grads(model, plain, rtol)
        optimizer.step()
        by_hand.step()
        assert_same_params(model, plain, 10 * rtol)
    return optimizer


# Values


@pytest.mark.parametrize("inner", INNER)
def test_trains_as_by_hand(row: Row, inner: str) -> None:
    model = Mlp()
    check_training(model, lambda: row.make(3), inner=inner)
    assert model.unreached.grad is None
    assert model.frozen.grad is None
    assert_same(model.frozen.detach(), torch.ones(6).double())


def test_single_task(row: Row) -> None:
    optimizer = check_training(Mlp(1), lambda: row.make(1), steps=1 if row.stateful else 2)
    # `alone` is for a loss of 1 and, where the scale matters, a gradient of length 2.
    if not optimizer.weighting.needs_losses and row.scale_free:
        torch.testing.assert_close(last_weights(optimizer), torch.tensor([row.alone]).double())


def test_many_tasks() -> None:
    for num_tasks in (8, 40, 65):
        check_training(Mlp(num_tasks), lambda: PCGrad(seed=4), steps=2, rtol=1e-8)


@pytest.mark.parametrize("make", [ConvNet, Embedded, Tied])
def test_other_models(some: Row, make: Callable[[], MultiTask]) -> None:
    check_training(make(), lambda: some.make(3))


def test_conv_gradients_keep_their_layout(some: Row) -> None:
    model = ConvNet()
    wrap(model, some.make(3)).backward(model.losses())
    weight = model.get_parameter("trunk.0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(some: Row, dtype: torch.dtype) -> None:
    """Float64 sums of what autograd gave, rounded once; or torch's own joint backward."""
    model = Mlp(3, dtype)
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    wrap(model, some.make(3)).backward(model.losses())
    torch.manual_seed(0)
    weighting = some.make(3)
    if weighting.needs_gramian:
        balance(twin.losses(), twin.parameters(), weighting)
        assert_same_grads(model, twin, torch.finfo(dtype).eps)
    else:
        torch.autograd.backward(twin.losses(), list(weighting(None, torch.ones(3)).to(dtype)))
        assert_same_grads(model, twin, 0)
    assert model.first.weight.grad is not None
    assert model.first.weight.grad.dtype == dtype


def test_mixed_dtypes(some: Row) -> None:
    model = Mlp(3, torch.float32)
    model.heads[0].double()
    model.heads[1].bfloat16()
    check_training(model, lambda: some.make(3), steps=1, rtol=1e-5)


def test_frozen_trunk(some: Row) -> None:
    model = Mlp()
    for param in (*model.first.parameters(), *model.last.parameters()):
        param.requires_grad_(False)
    check_training(model, lambda: some.make(3))
    assert model.first.weight.grad is None


def test_shared_params_given(row: Row) -> None:
    """The rest of the trunk gets the sum of the gradients, a given head is balanced."""

    def shared(model: Any) -> list[Tensor]:
        return [model.heads[0].weight, *model.last.parameters(), model.unreached]

    model = Mlp()
    check_training(model, lambda: row.make(3), shared=shared)
    assert model.unreached.grad is None


def test_gradnorm_on_a_chosen_layer() -> None:
    """Norms on the last shared layer, K backwards; the model's probe forbids double backward."""
    model = Mlp()
    optimizer = check_training(model, GradNorm, compared=lambda m: list(m.last.parameters()))
    model.backwards = 0
    optimizer.backward(model.losses(7))
    assert model.backwards == 1  # of what is below the chosen layer
    rows = [
        torch.autograd.grad(x, list(model.last.parameters()), retain_graph=True)
        for x in model.losses(7)
    ]
    norms = (
        torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows]).square().sum(1)
    )
    gramian = last(optimizer).gramian
    assert gramian is not None
    torch.testing.assert_close(gramian.diagonal(), norms, rtol=1e-9, atol=0)


def test_order_reaches_the_method() -> None:
    for seed in range(3):
        model = Mlp(5)
        plain = copy.deepcopy(model)
        order = random_orders(5, seed)
        wrap(model, PCGrad()).backward(model.losses(), order=order)
        balance(plain.losses(), plain.parameters(), PCGrad(), order=order)
        assert_same_grads(model, plain)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    reach=st.integers(1, 4).flatmap(
        lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=6)
    ),
    index=st.integers(0, len(PLAIN) - 1),
    seed=st.integers(0, 2**31),
)
def test_any_sharing(reach: list[list[bool]], index: int, seed: int) -> None:
    """Any subset of the tasks may reach any parameter; sizes differ, and one may be empty."""
    num_tasks = len(reach[0])
    generator = torch.Generator().manual_seed(seed)
    elsewhere = torch.ones(1, dtype=torch.float64, requires_grad=True)
    params = [
        nn.Parameter(torch.randn(size % 5, generator=generator).double())
        for size in range(3, 3 + len(reach))
    ]
    copies = [nn.Parameter(param.detach().clone()) for param in params]
    factors = [torch.randn(num_tasks, generator=generator).double() for _ in params]

    def losses(params: list[nn.Parameter]) -> list[Tensor]:
        found = [elsewhere.sum() + 0.1 for _ in range(num_tasks)]
        for param, factor, tasks in zip(params, factors, reach, strict=True):
            for k in range(num_tasks):
                if tasks[k]:
                    found[k] = found[k] + (param - factor[k]).square().sum()
        return found

    if not any(map(any, reach)):
        reach[0][0] = True
    make = PLAIN[index].make
    optimizer = MultiTaskOptimizer(torch.optim.SGD(params, lr=0.1), make(num_tasks))
    torch.manual_seed(seed)
    optimizer.backward(losses(params))
    torch.manual_seed(seed)
    balance(losses(copies), copies, make(num_tasks))
    for ours, theirs in zip(params, copies, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)


# Forms of the losses


@pytest.mark.parametrize("form", ["tuple", "dict", "reordered dict", "tensor", "one element"])
def test_forms_of_losses(some: Row, form: str) -> None:
    def given_as(losses: list[Tensor], step: int) -> Any:
        named = list(zip("abc", losses, strict=True))
        if form == "one element":
            return [loss.reshape(1) for loss in losses]
        if form == "reordered dict":
            return dict(named[step:] + named[:step])
        return {"tuple": tuple(losses), "dict": dict(named), "tensor": torch.stack(losses)}[form]

    model = Mlp()
    twin = copy.deepcopy(model)
    found, expected = wrap(model, some.make(3)), wrap(twin, some.make(3))
    for step in range(3):
        losses = model.losses(step)
        torch.manual_seed(step)
        found.backward(given_as(losses, step))
        torch.manual_seed(step)
        expected.backward(twin.losses(step))
        assert last(found).task_names == (tuple("abc") if "dict" in form else tuple("012"))
        assert_same(last(found).losses, torch.stack(losses).detach())
        torch.testing.assert_close(last_weights(found), last_weights(expected), rtol=1e-9, atol=0)
        assert_same_grads(model, twin)
        for optimizer in (found, expected):
            optimizer.step()
            optimizer.zero_grad()


def test_list_follows_the_names_of_a_dict() -> None:
    model = Mlp()
    optimizer = wrap(model, BY_ID["constant"].make(3), task_names=["a", "b", "c"])
    optimizer.backward(dict(zip("cba", reversed(model.losses()), strict=True)))
    by_name = [param.grad for param in model.first.parameters()]
    optimizer.zero_grad()
    optimizer.backward(model.losses())
    assert_same([param.grad for param in model.first.parameters()], by_name)
    assert last(optimizer).task_names == ("a", "b", "c")


# What it costs, and what runs


def test_number_of_backwards(row: Row) -> None:
    """Methods that need no Gramian cost one joint backward, the others one for each task."""
    model = Mlp(5)
    weighting = row.make(5)
    optimizer = wrap(model, weighting)
    for step in range(2):
        model.backwards = 0
        optimizer.backward(model.losses(step))
        assert model.backwards == (5 if weighting.needs_gramian else 1)
        assert last(optimizer).engine == ("stored" if weighting.needs_gramian else "joint")


def test_graph_is_freed(some: Row) -> None:
    """As torch's backward does it: the activations do not outlive the call."""
    model = Mlp()
    losses = model.losses()
    wrap(model, some.make(3)).backward(losses)
    for loss in losses:
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, model.first.weight)


def test_native_code_does_it_all(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native run never enters the reference, and ends where the reference ends."""
    model = Mlp(5)
    ends = []
    for name in ("reference", "native"):
        twin = copy.deepcopy(model)
        with backend(name), monkeypatch.context() as patch:
            if name == "native":
                for function in ("gramian", "combine", "combine_"):
                    patch.delattr(reference, function)
                patch.setattr(reference, "SOLVERS", {})
            torch.manual_seed(2)
            optimizer = wrap(twin, row.make(5))
            for step in range(4):
                optimizer.zero_grad()
                optimizer.backward(twin.losses(step))
                optimizer.step()
        ends.append([*twin.parameters(), last_weights(optimizer)])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-11)
