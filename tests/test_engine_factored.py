"""The engine "factored": the gradients of "stored", those of wide layers as products."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_cases import CASES, METHODS, Case, Method, check_same
from models import last, wrap
from torch import Tensor, nn
from wide import (
    WIDTH,
    Wide,
    assert_close_grads,
    check_against_float64,
    compare,
    in_order,
    two_layers,
)

from mtlfast.jacobian.linear import Layer


class Twice(nn.Module):
    """One layer used twice, and one used once."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(WIDTH, WIDTH)
        self.once = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.again(torch.tanh(self.again(x))))
        return torch.tanh(self.once(hidden))


class Tied(Wide):
    """The second layer's weight is the first one's, transposed."""

    def hidden(self, x: Tensor) -> Tensor:
        first, second = self.trunk[0], self.trunk[2]  # type: ignore[index]
        return nn.functional.linear(torch.tanh(first(x)), first.weight.T, second.bias)


class Multiplied(nn.Module):
    """``x W`` with a weight ``[in, out]``, as some transformers have it, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(WIDTH, 2 * WIDTH) / 16)
        self.second = nn.Parameter(torch.randn(2 * WIDTH, WIDTH) / 16)
        self.bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, torch.tanh(x @ self.first), self.second)


class Small(nn.Module):
    """Weights just below the size from which products can pay."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, WIDTH - 1), nn.Linear(WIDTH - 1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.up(self.down(x))
        return found


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)


def residual() -> nn.Module:
    return nn.Sequential(two_layers(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())


MODELS: dict[str, tuple[Callable[[], Wide], int]] = {
    "mlp": (Wide, 2),
    "without bias": (lambda: Wide(two_layers(bias=False)), 2),
    "three dimensions": (lambda: Wide(shape=(3, 4)), 2),
    "three dimensions without bias": (lambda: Wide(two_layers(bias=False), shape=(3, 4)), 2),
    "transformer": (lambda: Wide(encoder(), shape=(2, 5)), 4),
    "normalised": (lambda: Wide(residual()), 3),
    "used twice": (lambda: Wide(Twice()), 1),
    "tied": (Tied, 0),
    "x W": (lambda: Wide(Multiplied()), 2),
    "dropout": (lambda: Wide(nn.Sequential(two_layers(), nn.Dropout(0.0))), 2),
    "too many rows": (lambda: Wide(shape=(2000,)), 0),
    "too small": (lambda: Wide(Small()), 0),
}


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_equals_stored(name: str, one_by_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if one_by_one:
        monkeypatch.setattr("mtlfast.jacobian.together.pays", lambda *_: False)
    make, count = MODELS[name]
    compare(make(), count)


@pytest.mark.parametrize("name", MODELS)
def test_float32(name: str) -> None:
    make, count = MODELS[name]
    compare(make().float(), count, tolerance=1e-6)


def test_frozen_parameters() -> None:
    for name in ("trunk.0.weight", "trunk.0.bias", "trunk.2.bias"):
        model = Wide()
        model.get_parameter(name).requires_grad_(False)
        compare(model, 1 if name.endswith("weight") else 2)


class Branches(Wide):
    """The last task goes around the second layer; a third layer belongs to task 0 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(WIDTH, WIDTH).double()

    def losses(self, step: int = 0, x: Tensor | None = None) -> list[Tensor]:
        layers = list(self.trunk.children())
        hidden = torch.tanh(layers[0](self.batch(step)))
        seen = torch.tanh(layers[2](hidden))
        views = [self.own(seen), seen, hidden[:, :WIDTH]]
        return [head(view).square().mean() for head, view in zip(self.heads, views, strict=True)]


def test_partial_reach() -> None:
    optimizer = compare(Branches(), 2)
    first, second = in_order(optimizer)
    assert all(delta is not None for delta in first.deltas)
    assert [delta is None for delta in second.deltas] == [False, False, True]
    assert [row is None for row in second.rows()] == [False, False, True]


class Towers(Wide):
    """Two layers side by side; the first task sees both, the others one each."""

    def losses(self, step: int = 0, x: Tensor | None = None) -> list[Tensor]:
        layers, x = list(self.trunk.children()), self.batch(step)
        left, right = layers[0](x), layers[2](torch.cat([x, x], 1))
        views = [left + torch.cat([right, right], 1), left, torch.cat([right, right], 1)]
        return [(view @ view.T).square().mean() for view in views]


def test_one_batched_backward_knows_who_reaches_what() -> None:
    optimizer = compare(Towers(two_layers(bias=False)), 2)
    assert optimizer._notes.batches
    found = [[row is None for row in product.rows()] for product in in_order(optimizer)]
    assert found == [[False, False, True], [False, True, False]]


def test_shared_params() -> None:
    for chosen in (["trunk.0.weight", "trunk.0.bias"], ["trunk.2.weight", "heads.0.weight"]):
        model = Wide()
        twin = copy.deepcopy(model)
        for engine, net in (("factored", model), ("stored", twin)):
            params = [net.get_parameter(name) for name in chosen]
            optimizer = wrap(net, "upgrad", engine=engine, shared_params=params)
            optimizer.backward(net.losses())
        assert_close_grads(model, twin, 1e-9)


def test_gramian_params() -> None:
    model = Wide()
    twin = copy.deepcopy(model)
    for engine, net in (("factored", model), ("stored", twin)):
        params = [net.get_parameter("trunk.2.weight")]
        optimizer = wrap(net, "upgrad", engine=engine, gramian_params=params, nonfinite="drop")
        optimizer.backward(net.losses())
        assert last(optimizer).engine == engine
    assert_close_grads(model, twin, 1e-9)


def test_batches_of_a_method() -> None:
    """B batches go through the layers B times: their weights are used more than once."""
    model = Wide()
    twin = copy.deepcopy(model)
    for engine, net in (("factored", model), ("stored", twin)):
        optimizer = wrap(net, "sdmgrad", engine=engine)
        batches = [net.losses(step) for step in range(optimizer.weighting.num_batches)]
        assert len(batches) > 1
        torch.manual_seed(0)
        optimizer.backward(*batches)
    assert_close_grads(model, twin, 1e-9)


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast(enabled: bool) -> None:
    """Against float64 products of the same bfloat16 factors; nothing is rounded but the result."""

    def losses(model: Any) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found: list[Tensor] = model.losses()
        return found

    model = Wide(dtype=torch.float32)
    optimizer = compare(model, 2, losses=losses, tolerance=0.03 if enabled else 1e-6)
    for product in in_order(optimizer):
        assert product.inputs.dtype == (torch.bfloat16 if enabled else torch.float32)
        check_against_float64(product, 1e-6)


def test_bfloat16() -> None:
    model = Wide(dtype=torch.bfloat16)
    optimizer = compare(model, 2, tolerance=0.03)
    for product in in_order(optimizer):
        check_against_float64(product, 2**-8)


def hook(tensor: Tensor, run: Callable[[Tensor], Tensor | None]) -> None:
    tensor.register_hook(run)  # type: ignore[no-untyped-call]


@pytest.fixture
def everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of any size are kept as products."""
    monkeypatch.setattr("mtlfast.jacobian.linear.SMALLEST", 1)
    monkeypatch.setattr(Layer, "pays", property(lambda layer: layer.num_tasks > 1))


WITHOUT = ("one task", "convolutions", "tied", "recomputed", "nothing below")
"""Cases without a linear layer that is shared, used once, and not computed again."""


@pytest.mark.usefixtures("everything_pays")
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_what_stored_gives(case: Case, method: Method) -> None:
    check_same(case, method, "factored", ran="stored" if case.id in WITHOUT else None)


@pytest.mark.usefixtures("everything_pays")
@pytest.mark.parametrize("change", ["output", "weight", "bias", "looks"])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_hooks_count_once(change: str, one_by_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook on a layer's output counts in its weight; a weight with a hook of its own is dense."""
    if one_by_one:
        monkeypatch.setattr("mtlfast.jacobian.together.pays", lambda *_: False)
    else:
        monkeypatch.setattr("mtlfast.jacobian.together.DENSE_SHARE", 1.0)

    class Hooked(Wide):
        def hidden(self, x: Tensor) -> Tensor:
            if change in ("weight", "bias") and not self.param._backward_hooks:
                hook(self.param, lambda grad: grad * 2)
            for layer in self.trunk.children():
                x = layer(x)
                if isinstance(layer, nn.Linear) and change in ("output", "looks"):
                    hook(x, lambda grad: grad * 3 if change == "output" else None)
            return x

        @property
        def param(self) -> Tensor:
            return self.get_parameter(f"trunk.0.{change}")

    compare(Hooked(), 1 if change == "weight" else 2)


@pytest.mark.parametrize("engine", ["factored", "auto"])
def test_a_hook_that_vmap_cannot_pass(engine: str) -> None:
    """The batched backward is tried with a graph that is still there when it has failed."""

    class Printing(Wide):
        def hidden(self, x: Tensor) -> Tensor:
            x = super().hidden(x)
            hook(x, lambda grad: None if float(grad.norm()) < 1e9 else grad)
            return x

    model, twin = Printing(), Wide()
    optimizer, expected = wrap(model, "upgrad", engine=engine), wrap(twin, "upgrad")
    for step in range(3):
        for net, own in ((model, optimizer), (twin, expected)):
            own.zero_grad()
            own.backward(net.losses(step))
        assert last(optimizer).engine == "factored"
        assert optimizer._notes.batches is False
        assert_close_grads(model, twin, 1e-9)
