"""Models with every shape of graph that an engine meets, and what all engines must do on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import random_orders
from models import ConvNet, Mlp, MultiTask, Tied, last, wrap
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from mtlfast import CAGrad, GradNorm, MoDo, MultiTaskOptimizer, PCGrad, SDMGrad
from mtlfast.weighting import Weighting


class Attention(MultiTask):
    """A transformer's layer."""

    def __init__(self, num_tasks: int = 3) -> None:
        super().__init__(num_tasks, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.double()

    def hidden(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found.mean(1)

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(4, 5, 8, generator=generator, dtype=torch.float64)


class Recurrent(MultiTask):
    """An LSTM of two layers."""

    def __init__(self, num_tasks: int = 3) -> None:
        super().__init__(num_tasks, 4)
        self.lstm = nn.LSTM(5, 4, num_layers=2)
        self.double()

    def hidden(self, x: Tensor) -> Tensor:
        found: Tensor = self.lstm(x)[0][-1]
        return found

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)


class Layered(nn.Module):
    """Four layers; what the three losses are made of is up to the subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))
        self.double()

    def depths(self, step: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
        found = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
            found.append(x)
        return found

    def loss(self, k: int, x: Tensor) -> Tensor:
        out: Tensor = self.heads[k](x)
        return (out - k).square().mean()

    def losses(self, step: int = 0) -> list[Tensor]:
        raise NotImplementedError


class PartialReach(Layered):
    """Task 2 leaves after two layers, and task 0 alone has the last one."""

    def losses(self, step: int = 0) -> list[Tensor]:
        z = self.depths(step)
        return [self.loss(0, z[3]), self.loss(1, z[2]), self.loss(2, z[1])]


class Skips(Layered):
    """Heads see several depths at once, so that the places they start from are nested."""

    def losses(self, step: int = 0) -> list[Tensor]:
        z = self.depths(step)
        return [self.loss(0, z[3] * z[1]), self.loss(1, z[3] + z[2]), self.loss(2, z[0] - z[3])]


class Residual(Layered):
    """A path around every block."""

    def losses(self, step: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return [self.loss(k, x) for k in range(3)]


class Nested(Layered):
    """Losses that are part of other losses."""

    def losses(self, step: int = 0) -> list[Tensor]:
        z = self.depths(step)
        first = self.loss(0, z[3])
        second = self.loss(1, z[3]) * first
        return [first, second, first + 2 * second.square()]


class Towers(Layered):
    """Two trunks side by side; one loss sees both."""

    def losses(self, step: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
        left = torch.tanh(self.layers[1](torch.tanh(self.layers[0](x))))
        right = torch.tanh(self.layers[3](torch.tanh(self.layers[2](x))))
        return [self.loss(0, left + right), self.loss(1, left), self.loss(2, right)]


class Hooked(Layered):
    """Gradients that hooks change, on the tensor under the heads and on the way."""

    def losses(self, step: int = 0) -> list[Tensor]:
        z = self.depths(step)
        z[3].register_hook(lambda grad: 3 * grad)  # type: ignore[no-untyped-call]
        z[1].register_hook(lambda grad: -2 * grad)  # type: ignore[no-untyped-call]
        return [self.loss(k, z[3]) for k in range(3)]


class Recomputed(Layered):
    """A checkpoint over layers with dropout, in-place activations, and a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.layers[0])

    def losses(self, step: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
        torch.manual_seed(step)

        def trunk(x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.dropout(torch.relu_(layer(x)), 0.2, True)
            return x

        z = checkpoint(trunk, x, use_reentrant=False)
        return [self.loss(k, z) for k in range(3)]


class Split(Layered):
    """Heads on the parts of one tensor, and losses of no common part."""

    def losses(self, step: int = 0) -> list[Tensor]:
        z = self.depths(step)
        first, second = torch.split(z[3], [4, 3])
        return [self.loss(0, first), self.loss(1, second), self.loss(2, z[3][2:5])]


class _Fragile(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].masked_fill(grads[0].abs() > 100, torch.nan)


class Fragile(Layered):
    """NaN in the trunk, in the backward of task 1 alone."""

    def losses(self, step: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
        z = torch.tanh(self.layers[1](torch.tanh(self.layers[0](x))))
        z = _Fragile.apply(z)  # type: ignore[no-untyped-call]
        z = torch.tanh(self.layers[2](z))
        return [self.loss(0, z), self.loss(1, z) * 1e6, self.loss(2, z)]


def none(_model: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Case:
    """A model and the optimizer's options for it."""

    id: str
    make: Callable[[], Any]
    options: Callable[[Any], dict[str, Any]] = none

    def __str__(self) -> str:
        return self.id


CASES = [
    Case("mlp", Mlp),
    Case("one task", lambda: Mlp(1)),
    Case("seven tasks", lambda: Mlp(7)),
    Case("convolutions", ConvNet),
    Case("attention", Attention),
    Case("recurrent", Recurrent),
    Case("tied", Tied),
    Case("partial reach", PartialReach),
    Case("skips", Skips),
    Case("residual", Residual),
    Case("nested losses", Nested),
    Case("towers", Towers),
    Case("hooked", Hooked),
    Case("recomputed", Recomputed),
    Case("split", Split),
    Case("shared_params", Mlp, lambda m: {"shared_params": [m.first.weight, m.last.bias]}),
    Case("shared heads", Mlp, lambda m: {"shared_params": [m.first.bias, m.heads[1].weight]}),
    Case("gramian_params", Mlp, lambda m: {"gramian_params": [m.last.weight]}),
    Case("lowest compared", Skips, lambda m: {"gramian_params": [m.layers[0].bias]}),
    Case("heads compared", PartialReach, lambda m: {"gramian_params": [*m.heads.parameters()]}),
    Case("frozen", PartialReach, lambda m: _frozen(m.layers[1])),
    Case("nothing below", Towers, lambda m: _frozen(m.layers)),
]


def _frozen(module: nn.Module) -> dict[str, Any]:
    module.requires_grad_(False)
    return {}


ORDER = torch.tensor([[1, 2, 0], [0, 2, 1], [1, 0, 2]])


@dataclass(frozen=True)
class Method:
    """A method, with its own inputs for three tasks."""

    id: str
    make: Callable[[], Weighting]
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.id


METHODS = [
    Method("pcgrad", PCGrad, {"order": ORDER}),
    Method("cagrad", CAGrad),
    Method("gradnorm", GradNorm),
]
BATCHES = [Method("modo", MoDo), Method("sdmgrad", SDMGrad)]


def pair(case: Case, method: Method, engine: str, **options: Any) -> list[tuple[Any, Any]]:
    """A model with the engine "stored", and its copy with another one."""
    torch.manual_seed(0)
    model = case.make()
    found = []
    for name in ("stored", engine):
        twin = copy.deepcopy(model)
        every = {"engine": name, **options, **case.options(twin)}
        found.append((twin, wrap(twin, method.make(), **every)))
    return found


def backward(model: Any, optimizer: MultiTaskOptimizer, step: int, method: Method) -> None:
    """One ``backward`` on all the batches that the method wants, of a step."""
    batches = [model.losses(10 * step + b) for b in range(optimizer.weighting.num_batches)]
    inputs: dict[str, Any] = dict(method.inputs)
    if "order" in inputs and len(batches[0]) != 3:
        inputs = {"order": random_orders(len(batches[0]), step)}
    optimizer.backward(*batches, **inputs)


def check_same(
    case: Case,
    method: Method,
    engine: str,
    tolerance: float = 1e-9,
    ran: str | None = None,
    **options: Any,
) -> None:
    """Two steps give the Gramian, the weights and the gradients of the engine "stored".

    ``ran`` is the engine that says to have run, where that is another one.
    """
    (plain, expected), (model, found) = pair(case, method, engine, **options)
    for step in range(2):
        for twin, optimizer in ((plain, expected), (model, found)):
            optimizer.zero_grad()
            backward(twin, optimizer, step, method)
        close(last(found).gramian, last(expected).gramian, tolerance)
        close(last(found).weights, last(expected).weights, tolerance)
        same_grads(model, plain, tolerance)
        expected.step()
        found.step()
    assert last(found).engine == (ran or engine)


def same_grads(found: nn.Module, expected: nn.Module, tolerance: float) -> None:
    """Gradients that agree to a part of the largest one."""
    known = [param.grad for param in expected.parameters() if param.grad is not None]
    scale = max(float(grad.abs().max()) for grad in known)
    pairs = zip(found.named_parameters(), expected.named_parameters(), strict=True)
    for (name, ours), (_, theirs) in pairs:
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert ours.grad.stride() == ours.stride()
            close(ours.grad, theirs.grad, tolerance, scale)


def close(
    found: Tensor | None, expected: Tensor | None, tolerance: float, scale: float | None = None
) -> None:
    """Equal up to a part of the largest entry, or of a given number."""
    assert found is not None
    assert expected is not None
    if scale is None:
        scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)
