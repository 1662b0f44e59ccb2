"""``backward(losses, features=)``: balanced on the gradients of a representation."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import ROWS, Row
from engine_modes import combined, task_gradients
from models import Mlp, check_refused, last, last_weights, wrap
from torch import Tensor, nn

from mtlfast import CAGrad, MultiTaskOptimizer, NashMTL

DOUBLE = torch.float64


class Wide(nn.Module):
    """Two layers, a trunk's output of four columns, three heads that see what a test chooses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)
        self.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.double()

    def hidden(self, step: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 5, generator=generator, dtype=DOUBLE)
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def losses(self, seen: Sequence[Tensor]) -> list[Tensor]:
        return [(head(seen[k]) - k).square().mean() for k, head in enumerate(self.heads)]


def gramian_at(losses: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """By K plain backwards to the features."""
    rows = []
    for loss in losses:
        grads = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
        parts = [
            torch.zeros_like(z) if g is None else g for g, z in zip(grads, features, strict=True)
        ]
        rows.append(torch.cat([part.double().reshape(-1) for part in parts]))
    matrix = torch.stack(rows)
    return matrix @ matrix.T


def check(model: nn.Module, losses: list[Tensor], features: Any, **options: Any) -> Tensor:
    """Gramian at the features, weights of it, gradients with these weights; returns the Gramian."""
    chosen = [features] if isinstance(features, Tensor) else list(features)
    expected = gramian_at(losses, chosen)
    params, rows = task_gradients(losses, model)
    optimizer = wrap(model, CAGrad(), **options)
    optimizer.backward(losses, features=features)
    gramian = last(optimizer).gramian
    assert gramian is not None
    torch.testing.assert_close(gramian, expected)
    weights = last_weights(optimizer)
    torch.testing.assert_close(weights, CAGrad()(expected))
    assert (last(optimizer).engine, last(optimizer).reason) == ("features", "features were given")
    for param, grad in zip(params, combined(params, rows, weights), strict=True):
        torch.testing.assert_close(param.grad, grad)
    with pytest.raises(RuntimeError, match="second time"):  # the graph is free
        torch.autograd.grad(losses[0], model.get_parameter("first.weight"))
    return gramian


def test_one_tensor() -> None:
    model = Wide()
    z = model.hidden()
    check(model, model.losses([z[:, :2], z[:, 1:3], z[:, 2:]]), z)


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_tensors(kind: type) -> None:
    """Also of several layers' outputs that are not computed from another."""
    model = Wide()
    z = model.hidden()
    left, right = z[:, :2] * 1.0, z[:, 2:] * 2.0
    check(model, model.losses([left, right, left + right]), kind([left, right]))


@pytest.mark.parametrize("both", [False, True])
def test_half_of_a_split(both: bool) -> None:
    """The other output of the same node goes on to the trunk, seen by the method or not."""
    model = Wide()
    left, right = torch.split(model.hidden(), 2, 1)
    losses = model.losses([left, left * right, right])
    gramian = check(model, losses, [left, right] if both else left)
    assert bool(gramian[2, 2] > 0) == both  # the last task sees but the right half


def test_path_around() -> None:
    """A task that also uses an earlier layer's output: its whole gradient, once."""
    model = Wide()
    generator = torch.Generator().manual_seed(0)
    first = torch.tanh(model.first(torch.randn(8, 5, generator=generator, dtype=DOUBLE)))
    z = torch.tanh(model.second(first))
    check(model, model.losses([z[:, :2], z[:, 2:] * first[:, :2], first[:, 3:5]]), z)


def test_parameters_around_features_only() -> None:
    """One feature for two tasks; the third goes around it with a layer of its own."""
    model = Wide()
    z = model.hidden()
    side = (model.first.weight @ model.first.weight.T)[:2, :2]
    check(model, model.losses([z[:, :2], z[:, 2:], side]), z)


def test_tied_weight() -> None:
    """The trunk's weight is used by a head as well."""
    model = Wide()
    z = model.hidden()
    check(model, model.losses([z @ model.second.weight[:, :2], z[:, :2], z[:, 2:]]), z)


def test_features_that_are_a_loss_and_a_leaf() -> None:
    """Ends of the graph: a parameter itself, and what a loss is."""
    model = Wide()
    z = model.hidden()
    check(model, model.losses([z[:, :2], z[:, 1:3], z[:, 2:]]), model.first.weight)


def test_detached_data_as_feature() -> None:
    """A leaf that is no parameter: everything behind it is nobody's."""
    model = Wide()
    z = model.hidden().detach().requires_grad_()
    losses = model.losses([z[:, :2], z[:, 1:3], z[:, 2:]])
    expected = gramian_at(losses, [z])
    optimizer = wrap(model, CAGrad())
    optimizer.backward(losses, features=z)
    torch.testing.assert_close(last(optimizer).gramian, expected)
    assert model.first.weight.grad is None
    assert all(p.grad is not None for p in model.heads.parameters())
    assert z.grad is None


# With the other arguments


@pytest.mark.parametrize("options", [{"fused_step": True, "max_grad_norm": 0.1}, {}])
@pytest.mark.parametrize("num_batches", [1, 3])
def test_training(options: dict[str, Any], num_batches: int) -> None:
    """Fused, clipped, with micro-batches, which are weighted as the first."""
    model = Wide()
    twin = copy.deepcopy(model)
    optimizer = wrap(model, CAGrad(), **options)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        plain.zero_grad()
        weights = None
        for batch in range(num_batches):
            nets = []
            for net in (model, twin):
                z = net.hidden(step * num_batches + batch)
                nets.append((z, net.losses([z[:, :2], z[:, 1:3], z[:, 2:]])))
            optimizer.backward(nets[0][1], features=nets[0][0])
            if weights is None:
                weights = CAGrad()(gramian_at(nets[1][1], [nets[1][0]]))
            torch.testing.assert_close(last_weights(optimizer), weights)
            params, rows = task_gradients(nets[1][1], twin)
            for param, grad in zip(params, combined(params, rows, weights), strict=True):
                param.grad = grad if param.grad is None else param.grad + grad
        if options:
            nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        optimizer.step()
        plain.step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_with_a_scaler_and_retained_graph() -> None:
    model = Wide()
    z = model.hidden()
    losses = model.losses([z[:, :2], z[:, 1:3], z[:, 2:]])
    params, rows = task_gradients(losses, model)
    optimizer = wrap(model, NashMTL())  # depends on the scale
    optimizer.backward(losses, features=z, retain_graph=True)
    expected = last_weights(optimizer)
    optimizer.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = wrap(model, NashMTL())
    optimizer.backward(losses, features=z, scaler=scaler)
    torch.testing.assert_close(last_weights(optimizer), expected)
    scaler.unscale_(optimizer)
    for param, grad in zip(params, combined(params, rows, expected), strict=True):
        torch.testing.assert_close(param.grad, grad)


def test_update_every() -> None:
    """In between the features are not needed, and their K backwards are not made."""
    model = Mlp()
    optimizer = wrap(model, CAGrad(), update_every=2)
    for step in range(4):
        hidden, losses = model.hidden_and_losses(step)
        optimizer.zero_grad()
        if step % 2:
            optimizer.backward(losses)
        else:
            optimizer.backward(losses, features=hidden)
        assert last(optimizer).engine == ("joint" if step % 2 else "features")
        optimizer.step()
    assert model.backwards == 4  # one trunk backward a step


def test_shared_params() -> None:
    """What is shared is named: the other layers get the sum of the tasks' gradients."""
    model = Wide()
    z = model.hidden()
    losses = model.losses([z[:, :2], z[:, 1:3], z[:, 2:]])
    params, rows = task_gradients(losses, model)
    optimizer = wrap(model, CAGrad(), shared_params=model.second.parameters())
    optimizer.backward(losses, features=z)
    chosen = {id(p) for p in model.second.parameters()}
    weighted = combined(params, rows, last_weights(optimizer))
    for param, mixed, summed in zip(
        params, weighted, combined(params, rows, torch.ones(3)), strict=True
    ):
        torch.testing.assert_close(param.grad, mixed if id(param) in chosen else summed)


# Refusals

UNREACHED = r"expected a tensor that the losses are computed from and that requires a gradient"


def refused(
    features: Any, error: type[Exception], match: str, method: Any = "cagrad", **options: Any
) -> None:
    model = Mlp()
    hidden, losses = model.hidden_and_losses()
    if callable(features):
        features = features(hidden)
    optimizer: MultiTaskOptimizer = wrap(model, method, **options)
    check_refused(optimizer, losses, error, match, features=features)


@pytest.mark.parametrize("value", [3, "z", [1, 2], {"z": 1}, iter(())])
def test_wrong_types(value: Any) -> None:
    name = type(value).__name__
    refused(value, TypeError, rf"^features: expected a tensor or a sequence .*, found {name}$")


def test_wrong_values() -> None:
    refused([], ValueError, r"^features: expected at least one tensor, found none$")
    refused(torch.ones(3), ValueError, rf"^features\[0\]: {UNREACHED}")
    refused(torch.ones(3, requires_grad=True) * 2, ValueError, rf"^features\[0\]: {UNREACHED}")
    refused(lambda z: [z, z.detach()], ValueError, rf"^features\[1\]: {UNREACHED}")
    refused(lambda z: z * 2, ValueError, rf"^features\[0\]: {UNREACHED}")
    refused(
        lambda z: [z, z],
        ValueError,
        r"^features\[1\]: expected .*, found the one of features\[0\]$",
    )


def test_one_computed_from_another() -> None:
    model = Wide()
    z = model.hidden()
    deeper = torch.tanh(z)
    losses = model.losses([deeper[:, :2], z[:, 2:], deeper[:, 2:]])
    match = r"^features\[1\]: expected tensors none of which is computed from another"
    check_refused(wrap(model, "cagrad"), losses, ValueError, match, features=[deeper, z])


def test_unused_half_of_a_split() -> None:
    """Its node is reached, but by another output."""
    model = Wide()
    left, right = torch.split(model.hidden(), 2, 1)
    losses = model.losses([left, left * 2, left * 3])
    check_refused(wrap(model, "mgda"), losses, ValueError, UNREACHED, features=right)


def test_beside_gramian_params() -> None:
    model = Mlp()
    hidden, losses = model.hidden_and_losses()
    optimizer = wrap(model, "cagrad", gramian_params=model.last.parameters())
    match = r"^features: expected None beside gramian_params, found both$"
    check_refused(optimizer, losses, ValueError, match, features=hidden)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.make(3).compares_raw], ids=str)
def test_methods_that_need_all_gradients(row: Row) -> None:
    model = Mlp()
    method = row.make(3)
    batches = [model.hidden_and_losses(b) for b in range(method.num_batches)]
    optimizer = wrap(model, method)
    with pytest.raises(ValueError, match=r"^features: expected None for \w+, which needs the grad"):
        optimizer.backward(*(losses for _, losses in batches), features=batches[0][0])


def test_method_that_compares_nothing_ignores_them() -> None:
    """A joint backward is all that it needs, whatever is handed over."""
    model = Mlp()
    hidden, losses = model.hidden_and_losses()
    optimizer = wrap(model, "uw")
    optimizer.backward(losses, features=hidden)
    assert last(optimizer).engine == "joint"
    assert math.isfinite(float(last_weights(optimizer).sum()))
