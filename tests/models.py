"""Small multi-task models, hand-written balancing to compare the wrapper with, and helpers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from cases import PLAIN, call
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from mtlfast import MultiTaskOptimizer
from mtlfast.diagnostics import StepInfo
from mtlfast.weighting import Weighting

BY_ID = {row.id: row for row in PLAIN}
SOME = [BY_ID[name] for name in ("sum", "constant", "pcgrad", "cagrad-0.4", "gradnorm")]
"""A row of every kind, for tests on every model, layout or failure."""

INNER: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.02),
}


def wrap(
    model: nn.Module, weighting: Weighting | str, inner: str = "sgd", **options: Any
) -> MultiTaskOptimizer:
    return MultiTaskOptimizer(INNER[inner](model.parameters()), weighting, **options)


def last(optimizer: MultiTaskOptimizer) -> StepInfo:
    assert optimizer.last is not None
    return optimizer.last


def last_weights(optimizer: MultiTaskOptimizer) -> Tensor:
    weights = last(optimizer).weights
    assert weights is not None
    return weights


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def assert_same_state(found: Any, expected: Any, rtol: float = 0.0) -> None:
    """State dicts of any depth, also their lists, numbers and strings."""
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol / 1000, equal_nan=True)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same_state(found[key], value, rtol)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same_state(ours, theirs, rtol)
    else:
        assert found == expected


def assert_same_params(found: nn.Module, expected: nn.Module, rtol: float = 0.0) -> None:
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)


def assert_same_grads(found: nn.Module, expected: nn.Module, rtol: float = 1e-9) -> None:
    for (name, ours), (_, theirs) in zip(
        found.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=rtol, atol=rtol / 100)


class Snapshot:
    """All that a failure must leave alone."""

    def __init__(self, optimizer: MultiTaskOptimizer) -> None:
        self.optimizer = optimizer
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.grads = [p.grad for p in self.params]
        self.last = optimizer.last
        self.pending = optimizer._pending
        self.values = copy.deepcopy(self.read())

    def read(self) -> dict[str, Any]:
        pending = self.optimizer._pending
        kept = [] if pending is None else [g for row in pending.jacobian.rows for g in row]
        found = {
            "params": [p.detach() for p in self.params],
            "grads": [p.grad for p in self.params],
            "task_grads": kept,
            "losses": None if pending is None else pending.losses,
            "calls": None if pending is None else pending.calls,
            "method": self.optimizer.weighting.state_dict(),
            "status": self.optimizer.weighting.status,
            "inner": self.optimizer.inner.state_dict(),
            "names": self.optimizer.state_dict()["mtlfast"]["task_names"],
            "skipped": self.optimizer.skip_counts,
        }
        lists = {key: dict(enumerate(x)) for key, x in found.items() if isinstance(x, list)}
        return {**found, **lists}

    def check(self) -> None:
        for param, grad in zip(self.params, self.grads, strict=True):
            assert param.grad is grad
        assert self.optimizer.last is self.last
        assert self.optimizer._pending is self.pending
        assert_same_state(self.read(), self.values)


def check_refused(
    optimizer: MultiTaskOptimizer,
    losses: Any,
    error: type[Exception],
    message: str,
    **inputs: Any,
) -> None:
    """The call raises this, and parameters, grads, states and task gradients are as before."""
    snapshot = Snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.backward(losses, **inputs)
    snapshot.check()


# Hand-written K-backward code


def balance(
    losses: Sequence[Tensor],
    params: Iterable[Tensor],
    weighting: Weighting,
    *,
    shared: Sequence[Tensor] | None = None,
    compared: Sequence[Tensor] | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Adds the balanced gradients to ``.grad`` as plain torch code would; returns the weights."""
    params = [param for param in params if param.requires_grad]
    rows = [torch.autograd.grad(x, params, retain_graph=True, allow_unused=True) for x in losses]
    reach = [sum(row[t] is not None for row in rows) for t in range(len(params))]
    if shared is None:
        least = 2 if len(losses) > 1 else 1
        shared = [param for param, count in zip(params, reach, strict=True) if count >= least]
    shared_ids = {id(param) for param in shared}
    compared_ids = {id(param) for param in (shared if compared is None else compared)}

    def flat(row: tuple[Tensor | None, ...]) -> Tensor:
        parts = [
            (torch.zeros_like(param) if grad is None else grad).double().reshape(-1)
            for param, grad in zip(params, row, strict=True)
            if id(param) in compared_ids
        ]
        return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])

    jacobian = torch.stack([flat(row) for row in rows])
    values = torch.stack([loss.detach().double().reshape(()) for loss in losses])
    weights = call(weighting, jacobian @ jacobian.T, values, order)
    own_weights = weighting.own_weights(weights, values)
    for t, param in enumerate(params):
        if not reach[t]:
            continue
        total = torch.zeros_like(param, dtype=torch.float64)
        factors = weights if id(param) in shared_ids else own_weights
        for factor, row in zip(factors, rows, strict=True):
            grad = row[t]
            if grad is not None:
                total += factor * grad.double()
        if param.grad is not None:
            total += param.grad.double()
        param.grad = total.to(param.dtype)
    return weights


# Models; losses(step) gives K losses on data of that step


class MultiTask(nn.Module):
    """A model with K losses; a subclass says what goes in and what the heads see."""

    def __init__(self, num_tasks: int, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, 2) for _ in range(num_tasks))
        self.unreached = nn.Parameter(torch.ones(3))

    def inputs(self, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def hidden(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def losses(self, step: int = 0) -> list[Tensor]:
        """One positive loss per task; the targets are random, so that gradients conflict."""
        return self.hidden_and_losses(step)[1]

    def hidden_and_losses(self, step: int = 0) -> tuple[Tensor, list[Tensor]]:
        """What all heads see, too."""
        generator = torch.Generator().manual_seed(step)
        hidden = self.hidden(self.inputs(generator))
        losses = []
        for k, head in enumerate(self.heads):
            target = torch.randn(len(hidden), 2, generator=generator) * (k + 1)
            out = head(hidden.to(next(head.parameters()).dtype))
            losses.append((out - target.to(out.dtype)).square().mean())
        return hidden, losses


class Mlp(MultiTask):
    """Trunk and heads, a parameter that no loss reaches, a frozen one, and counted backwards."""

    def __init__(self, num_tasks: int = 3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(num_tasks, 4)
        self.first = nn.Linear(5, 6)
        self.last = nn.Linear(6, 4)
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.backwards = 0
        self.to(dtype)

    def count(self) -> None:
        self.backwards += 1

    def hidden(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x.to(self.first.weight.dtype)) * self.frozen)
        return torch.tanh(self.last(probe(hidden, self.count)))

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(8, 5, generator=generator)


class ConvNet(MultiTask):
    """Convolutions in channels_last with batch normalisation."""

    def __init__(self, num_tasks: int = 3) -> None:
        super().__init__(num_tasks, 4)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 2)
        )
        self.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.trunk(x)).mean((2, 3))

    def inputs(self, generator: torch.Generator) -> Tensor:
        x = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64)
        return x.to(memory_format=torch.channels_last)


class Embedded(MultiTask):
    """An embedding in the trunk, with dense or sparse gradients."""

    def __init__(self, num_tasks: int = 3, sparse: bool = False) -> None:
        super().__init__(num_tasks, 4)
        self.table = nn.Embedding(7, 4, sparse=sparse)
        self.double()

    def hidden(self, x: Tensor) -> Tensor:
        found: Tensor = self.table(x)
        return found

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 7, (8,), generator=generator)


class Tied(MultiTask):
    """The trunk's weight is used a second time, in the head of task 0."""

    def __init__(self, num_tasks: int = 3) -> None:
        super().__init__(num_tasks, 5)
        self.trunk = nn.Linear(5, 5)
        self.heads[0] = Decoder(self.trunk.weight)
        self.double()

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.trunk(x.double()))

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(8, 5, generator=generator)


class Decoder(nn.Module):
    """Two columns of a weight that another layer owns."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight[:, :2]


# Autograd functions


class _Probe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: Callable[[], None]) -> Tensor:
        ctx.seen = seen
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.seen()
        return grads[0], None


def probe(x: Tensor, seen: Callable[[], None]) -> Tensor:
    """The identity; ``seen`` runs in every backward, and a double backward raises."""
    found: Tensor = _Probe.apply(x, seen)  # type: ignore[no-untyped-call]
    return found


class _GivenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return x.detach().sum().reshape(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = ctx.saved_tensors[0]
        return grad if grads[0] == 1 else grads[0] * grad, None


def given_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """A scalar whose gradient for ``x`` is this very tensor, with its strides."""
    found: Tensor = _GivenGradient.apply(x, grad)  # type: ignore[no-untyped-call]
    return found
