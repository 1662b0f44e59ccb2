"""The engine "streaming": what "stored" gives, block by block."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import CASES, METHODS, Case, Layered, Method, Residual, Skips, check_same
from models import Mlp, last, wrap
from torch import Tensor, nn
from wide import WIDTH, Wide, two_layers

from mtlfast import MultiTaskOptimizer, ops
from mtlfast.bench.allocations import peak_bytes
from mtlfast.jacobian import streaming as module


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_what_stored_gives(case: Case, method: Method) -> None:
    check_same(case, method, "streaming")


class Deep(nn.Module):
    """Ten wide layers, a batch of two."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(10))
        self.heads = nn.ModuleList(nn.Linear(128, 1) for _ in range(num_tasks))

    def losses(self) -> list[Tensor]:
        x = torch.ones(2, 128)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return [head(x).sum() for head in self.heads]


def peak(model: Deep, engine: str | None, trace: Path) -> int:
    """Of the bytes that one step holds."""
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if engine is not None:
        optimizer = MultiTaskOptimizer(optimizer, "pcgrad", engine=engine, sketch_size=1024)

    def step() -> None:
        losses = model.losses()
        if isinstance(optimizer, MultiTaskOptimizer):
            optimizer.backward(losses)
        else:
            torch.autograd.backward(losses)

    step()
    optimizer.zero_grad()
    found = peak_bytes(step, trace)
    optimizer.zero_grad()
    return found


WIDE = [
    Case("wide", Wide),
    Case("without bias", lambda: Wide(two_layers(bias=False))),
    Case("one input", lambda: Wide(shape=(1,))),
    Case("positions", lambda: Wide(shape=(2, 3))),
    Case("more rows than columns", lambda: Wide(shape=(WIDTH + 50,))),
    Case("hook on an output", lambda: Wide(Doubled())),
    Case("upper compared", Wide, lambda m: {"gramian_params": [m.trunk[2].weight]}),
    Case("lower compared", Wide, lambda m: {"gramian_params": [m.trunk[0].weight]}),
    Case("lower shared", Wide, lambda m: {"shared_params": [m.trunk[0].weight]}),
]


class Doubled(nn.Module):
    """Layers whose outputs have hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = two_layers()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x.register_hook(lambda grad: -2 * grad)  # type: ignore[no-untyped-call]
        return x


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_linear_layers(case: Case, method: Method) -> None:
    check_same(case, method, "streaming")


def test_linear_layers_with_few_inputs_make_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []

    def differentiate(*args: Any) -> Any:
        rows, deltas = original(*args)
        found.append((len(rows[0]), len(deltas[0])))
        return rows, deltas

    original = module._differentiate
    monkeypatch.setattr(module, "_differentiate", differentiate)
    model = Wide()
    wrap(model, "pcgrad", engine="streaming").backward(model.losses())
    assert found == [(2, 2)], "two biases, and two output gradients, in one block"
    found.clear()
    model = Wide(shape=(WIDTH + 50,))
    wrap(model, "pcgrad", engine="streaming").backward(model.losses())
    assert found == [(2, 0), (2, 0)]


@pytest.mark.parametrize("engine", ["streaming", "sketched"])
def test_memory_is_that_of_one_layer(engine: str, tmp_path: Path) -> None:
    num_tasks = 6
    model = Deep(num_tasks)
    joint = peak(model, None, tmp_path / "trace.json")
    found = peak(model, engine, tmp_path / "trace.json")
    layer = (128 * 128 + 128 + 2 * 128) * 4
    more = num_tasks * (layer if engine == "streaming" else 1024 * 4) + layer
    assert found <= 1.1 * (joint + more)
    assert found < joint + num_tasks * 10 * layer / 2, "all gradients would be more"


def test_stops_below_the_last_that_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def differentiate(*args: Any) -> Any:
        found = original(*args)
        seen.append(len(found[0][0]))
        return found

    original = module._differentiate
    monkeypatch.setattr(module, "_differentiate", differentiate)
    model = Residual()
    wrap(model, "pcgrad", engine="streaming").backward(model.losses())
    assert seen == [2, 2, 2, 2]
    seen.clear()
    chosen = [model.layers[2].weight]
    optimizer = wrap(model, "pcgrad", engine="streaming", gramian_params=chosen)
    optimizer.backward(model.losses())
    assert seen == [2, 2]


def test_blocks_are_joined_up_to_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []

    def differentiate(*args: Any) -> Any:
        found = original(*args)
        blocks.append(sum(grad.numel() for grad in found[0][0] if grad is not None))
        return found

    original = module._differentiate
    monkeypatch.setattr(module, "_differentiate", differentiate)

    class Uneven(Layered):
        def __init__(self) -> None:
            super().__init__()
            widths = [6, 2, 9, 3, 2, 6]
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
            self.double()

        def losses(self, step: int = 0) -> list[Tensor]:
            z = self.depths(step)[-1]
            return [self.loss(k, z) for k in range(3)]

    check_same(Case("uneven", Uneven), METHODS[0], "streaming")
    assert blocks[: len(blocks) // 2] == [18 + 8, 30, 27, 14]


def test_other_outputs_of_a_block_wait_for_theirs() -> None:
    """An edge that the next block does not touch is passed on as it is, hook and all."""

    class Beside(Layered):
        def losses(self, step: int = 0) -> list[Tensor]:
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
            left, right = torch.tanh(self.layers[0](x)), torch.tanh(self.layers[1](x))
            for side in (left, right):
                side.register_hook(lambda grad: -3 * grad)  # type: ignore[no-untyped-call]
            both = torch.tanh(self.layers[3](self.layers[2](left + right)))
            return [self.loss(k, both) for k in range(3)]

    check_same(Case("beside", Beside), METHODS[1], "streaming")


def test_gramian_is_that_of_all_gradients() -> None:
    model = Skips()
    losses = model.losses()
    params = list(model.layers.parameters())
    rows = [torch.autograd.grad(x, params, retain_graph=True) for x in losses]
    optimizer = wrap(model, "pcgrad", engine="streaming")
    optimizer.backward(losses)
    found = last(optimizer).gramian
    torch.testing.assert_close(found, ops.gramian(rows), rtol=1e-12, atol=0)


def test_says_what_it_did() -> None:
    model = Mlp()
    optimizer = wrap(model, "pcgrad", engine="streaming")
    optimizer.backward(model.losses())
    assert (last(optimizer).engine, last(optimizer).reason) == ("streaming", "it was asked for")


class _Leaky(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, param: Tensor) -> Tensor:
        return x + param

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0].masked_fill(grads[0].abs() > 100, torch.nan), grads[0].sum(0)


class Leaky(Layered):
    """NaN where the block of the lowest bias ends, for task 1."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(6).double())

    def losses(self, step: int = 0) -> list[Tensor]:
        z = _Leaky.apply(self.depths(step)[0], self.bias)  # type: ignore[no-untyped-call]
        return [self.loss(0, z), self.loss(1, z) * 1e6, self.loss(2, z)]


def test_nan_below_what_is_compared_is_seen_where_it_arrives() -> None:
    model = Leaky()
    optimizer = wrap(
        model, "pcgrad", engine="streaming", gramian_params=[model.bias], nonfinite="drop"
    )
    optimizer.backward(model.losses())
    gramian = last(optimizer).gramian
    assert gramian is not None
    assert gramian.isfinite().all()
    assert optimizer.skip_counts == [0, 1, 0]


def test_column_methods_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^engine: "):
        wrap(Mlp(), "graddrop", engine="streaming")
