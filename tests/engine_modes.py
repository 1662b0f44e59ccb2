"""The table of engines and modes, and what holds for all of them.

A new engine enters by itself; only what it refuses by design has to be named here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from models import last, last_weights
from torch import Tensor, nn

from mtlfast import CAGrad, MultiTaskOptimizer, jacobian
from mtlfast.weighting import Weighting


@dataclass(frozen=True)
class Mode:
    """A way to get at the balanced gradient.

    Attributes:
        id: its name.
        options: of the constructor, beside those in ``gramian_params``.
        call: of ``backward``.
        part: what the method compares: "all", "params" (those of ``part_of``) or "features".
        exact: whether the Gramian is that of the gradients.
        keeps: whether the gradients of micro-batches add up; None: that is its own choice.
    """

    id: str
    options: tuple[tuple[str, Any], ...] = ()
    call: tuple[tuple[str, Any], ...] = ()
    part: str = "all"
    exact: bool = True
    keeps: bool | None = True

    def __str__(self) -> str:
        return self.id

    @property
    def engine(self) -> str:
        return str(dict(self.options).get("engine", "auto"))

    @property
    def update_every(self) -> int:
        return int(dict(self.options).get("update_every", 1))

    def wrap(
        self,
        model: nn.Module,
        weighting: Weighting | str | None = None,
        inner: Callable[[Any], torch.optim.Optimizer] | None = None,
        **options: Any,
    ) -> MultiTaskOptimizer:
        """CAGrad and SGD by default."""
        params = list(model.parameters())
        plain = torch.optim.SGD(params, lr=0.1, momentum=0.9) if inner is None else inner(params)
        if self.part == "params":
            options["gramian_params"] = part_of(model)
        method = CAGrad() if weighting is None else weighting
        return MultiTaskOptimizer(plain, method, **{**dict(self.options), **options})

    def backward(
        self, optimizer: MultiTaskOptimizer, hidden: Tensor, losses: Any, **call: Any
    ) -> None:
        if self.part == "features":
            call["features"] = hidden
        optimizer.backward(losses, **dict(self.call), **call)


_KEEPS = {"streaming": False, "sketched": False, "auto": None}
MODES = [
    *(
        Mode(
            name,
            (("engine", name),),
            exact=name != "sketched",
            keeps=_KEEPS.get(name, True),
        )
        for name in jacobian.ENGINES
    ),
    Mode("gramian_params", part="params", keeps=False),
    Mode("features", part="features", keeps=False),
    Mode("update_every", (("update_every", 2),), keeps=None),
    Mode("retain_graph", call=(("retain_graph", True),), keeps=None),
]
BY_MODE = {mode.id: mode for mode in MODES}
each_mode = pytest.mark.parametrize("mode", MODES, ids=str)


def part_of(model: nn.Module) -> Sequence[Tensor]:
    """The last shared parameters, one or two of them."""
    apart = ("heads", "unreached")
    return [
        param
        for name, param in model.named_parameters()
        if param.requires_grad and not name.startswith(apart)
    ][-2:]


def refusal(mode: Mode, name: str) -> str | None:
    """What the error says where a mode refuses a model by design."""
    if name.startswith("reentrant") and (
        mode.part == "features" or mode.engine not in ("auto", "stored")
    ):
        return r"beside a checkpoint with use_reentrant=True.*use_reentrant=False everything"
    return None


BY_VMAP = ("batched",)
"""Engines that no compiled backward can serve: it is a single operator without a rule for vmap."""


# What holds for all


def task_gradients(
    losses: list[Tensor], model: nn.Module
) -> tuple[list[Tensor], list[list[Tensor | None]]]:
    """Plain torch's: the parameters that some loss reaches, and K rows of their gradients.

    By way of ``grad``, which works with every kind of graph.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    before = [param.grad for param in params]
    rows: list[list[Tensor | None]] = []
    for loss in losses:
        for param in params:
            param.grad = None
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        rows.append([param.grad for param in params])
    for param, grad in zip(params, before, strict=True):
        param.grad = grad
    columns = [t for t in range(len(params)) if any(row[t] is not None for row in rows)]
    return [params[t] for t in columns], [[row[t] for t in columns] for row in rows]


def combined(
    params: list[Tensor], rows: list[list[Tensor | None]], weights: Tensor
) -> list[Tensor]:
    """``Σ w_k g_k`` of what is shared, the own gradient of what is not."""
    found = []
    for t, param in enumerate(params):
        column = [row[t] for row in rows]
        alone = sum(grad is not None for grad in column) == 1
        total = torch.zeros_like(param, dtype=torch.float64)
        for weight, grad in zip(weights, column, strict=True):
            if grad is not None:
                total += grad.double() * (1.0 if alone else weight)
        found.append(total.to(param.dtype))
    return found


def gramian_of(rows: list[list[Tensor | None]], columns: list[int]) -> Tensor:
    """``[K, K]`` float64."""

    def flat(row: list[Tensor | None], like: list[Tensor | None]) -> Tensor:
        parts = [
            torch.zeros(()) if z is None else (torch.zeros_like(z) if g is None else g)
            for g, z in zip(row, like, strict=True)
        ]
        return torch.cat([part.double().reshape(-1) for part in parts])

    some = [next((row[t] for row in rows if row[t] is not None), None) for t in columns]
    matrix = torch.stack([flat([row[t] for t in columns], some) for row in rows])
    return matrix @ matrix.T


def check_grads(
    optimizer: MultiTaskOptimizer,
    params: list[Tensor],
    rows: list[list[Tensor | None]],
    rtol: float = 1e-9,
    weights: Tensor | None = None,
    found: Sequence[Tensor] | None = None,
) -> None:
    """``grad`` is the combination of these task gradients with the weights that were told.

    Args:
        optimizer: it has just balanced.
        params: of these the gradients.
        rows: K rows of gradients.
        rtol: tolerance, also of the largest element of all.
        weights: default: those of ``last``.
        found: the parameters that were balanced; default: ``params``.
    """
    expected = combined(params, rows, last_weights(optimizer) if weights is None else weights)
    scale = max(float(total.abs().max()) for total in expected)
    for param, total in zip(params if found is None else found, expected, strict=True):
        assert param.grad is not None
        torch.testing.assert_close(param.grad, total, rtol=rtol, atol=rtol * scale)


def check_gramian(
    mode: Mode,
    optimizer: MultiTaskOptimizer,
    model: nn.Module,
    params: list[Tensor],
    rows: list[list[Tensor | None]],
    rtol: float = 1e-9,
) -> None:
    """The method has seen the Gramian of the gradients that it was meant to compare."""
    gramian = last(optimizer).gramian
    if gramian is None:
        assert mode.update_every > 1
        return
    if not mode.exact or mode.part == "features":
        return
    part = {id(param) for param in part_of(model)}
    count = [sum(row[t] is not None for row in rows) for t in range(len(params))]
    columns = [
        t
        for t, param in enumerate(params)
        if (id(param) in part if mode.part == "params" else count[t] > 1)
    ]
    expected = gramian_of(rows, columns)
    torch.testing.assert_close(gramian, expected, rtol=rtol, atol=rtol * float(expected.max()))
