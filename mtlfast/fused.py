"""The fused step: ``backward`` computes weights, ``step`` combines and updates in one pass.

It reads the task gradients, the parameters and the wrapped optimizer's state and writes the latter
two; no ``grad`` is written in between, which saves two passes over a gradient's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlfast import fused_ops, ops
from mtlfast.ops import TaskGrads
from mtlfast.weighting import ColumnWise, Weighting

OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def check(inner: torch.optim.Optimizer, weighting: Weighting, nonfinite: str) -> None:
    """Raises ValueError unless the optimizer's step can be fused with the method's combination."""
    if type(inner) not in OPTIMIZERS:
        raise ValueError(
            f"fused_step: expected torch.optim.SGD, Adam or AdamW as inner (and no subclass), "
            f"found {type(inner).__name__}"
        )
    name = type(weighting).__name__
    if isinstance(weighting, ColumnWise):
        raise ValueError(f"fused_step: expected a method with task weights, found {name}")
    if not weighting.needs_task_grads and nonfinite == "propagate":
        raise ValueError(
            f"fused_step: expected a method that needs the task gradients, found {name}, whose "
            f"joint backward writes grad"
        )
    _check_groups(inner)


def check_norm(max_grad_norm: object, fused_step: bool) -> float | None:
    """``max_grad_norm`` as a number, or None; ValueError or TypeError if it is no norm."""
    if max_grad_norm is None:
        return None
    if isinstance(max_grad_norm, bool) or not isinstance(max_grad_norm, (int, float)):
        raise TypeError(
            f"max_grad_norm: expected a number or None, found {type(max_grad_norm).__name__}"
        )
    if not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm: expected a number above 0, found {max_grad_norm}")
    if not fused_step:
        raise ValueError(
            f"max_grad_norm: expected None without fused_step (use "
            f"torch.nn.utils.clip_grad_norm_ before step), found {max_grad_norm}"
        )
    return float(max_grad_norm)


@dataclass(frozen=True)
class Part:
    """Parameters whose gradients are combined with the same weights.

    Attributes:
        params: T parameters, each reached by a task.
        task_grads: K rows of T gradients.
        weights: ``[K]`` float64.
        gramian: ``[K, K]`` float64 of these task gradients, where it is known.
    """

    params: list[Tensor]
    task_grads: TaskGrads
    weights: Tensor
    gramian: Tensor | None = None

    def squared_norm(self) -> Tensor:
        """``|Jᵀw|² = wᵀGw`` on the device, without the tasks whose weight is exactly 0."""
        gramian = ops.gramian(self.task_grads) if self.gramian is None else self.gramian
        kept = self.weights != 0
        gramian = torch.where(kept & kept[:, None], gramian, 0.0)
        return (self.weights @ gramian @ self.weights).clamp(min=0)


@dataclass(frozen=True)
class Update:
    """What ``step`` has to do: the parts' gradients are combined when it does it."""

    parts: tuple[Part, ...]

    def write(self) -> None:
        """Adds the combined gradients to ``grad``, as without a fused step."""
        for part in self.parts:
            ops.combine_(part.params, part.task_grads, part.weights, accumulate=True)

    def apply(self, inner: torch.optim.Optimizer, max_grad_norm: float | None) -> None:
        """Updates the parameters and the state of the optimizer.

        Where some parameter holds a ``grad`` of other origin, what is here is added to it, and
        clipped with it; the optimizer's own step does the rest.
        """
        _check_groups(inner)
        everything = [param for group in inner.param_groups for param in group["params"]]
        if any(param.grad is not None for param in everything):
            self.write()
            if max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(everything, max_grad_norm)
            return
        if not self.parts:
            return
        scale: Tensor | None = None
        if max_grad_norm is not None:
            squares = [part.squared_norm() for part in self.parts]
            norm = torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()
            scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1)
        reached = {id(param) for part in self.parts for param in part.params}
        for group in inner.param_groups:  # the state has the order that torch gives it
            for param in group["params"]:
                if id(param) in reached:
                    _prepare(inner, group, param)
        make = _sgd if isinstance(inner, torch.optim.SGD) else _adam
        for part in self.parts:
            there = None if scale is None else scale.to(part.weights.device)
            for group, chosen in _by_group(inner, part):
                make(inner, group, chosen, there)


def _check_groups(inner: torch.optim.Optimizer) -> None:
    for i, group in enumerate(inner.param_groups):
        if group["differentiable"]:
            raise ValueError(
                f"fused_step: expected differentiable=False in every parameter group, found True "
                f"in group {i}"
            )
        numbers = {"weight_decay": group["weight_decay"], "betas": group.get("betas", ())}
        for name, value in numbers.items():
            for number in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(number, Tensor) and not number.is_cpu:
                    raise ValueError(
                        f"fused_step: expected {name} as numbers in every parameter group, found "
                        f"a tensor on {number.device} in group {i}"
                    )


def _by_group(inner: torch.optim.Optimizer, part: Part) -> list[tuple[dict[str, Any], Part]]:
    """The part's parameters by parameter group, with their task gradients."""
    places = {id(param): t for t, param in enumerate(part.params)}
    found = []
    for group in inner.param_groups:
        chosen = [places[id(param)] for param in group["params"] if id(param) in places]
        if chosen:
            found.append((group, _choose(part, chosen)))
    return found


def _choose(part: Part, places: Sequence[int]) -> Part:
    if list(places) == list(range(len(part.params))):
        return part
    rows = [[row[t] for t in places] for row in part.task_grads]
    return Part([part.params[t] for t in places], rows, part.weights)


def _sgd(
    inner: torch.optim.Optimizer, group: dict[str, Any], part: Part, scale: Tensor | None
) -> None:
    options = {
        "lr": group["lr"],
        "momentum": float(group["momentum"]),
        "dampening": float(group["dampening"]),
        "weight_decay": float(group["weight_decay"]),
        "nesterov": group["nesterov"],
        "maximize": group["maximize"],
        "scale": scale,
    }
    if options["momentum"] == 0:
        fused_ops.sgd_(part.params, part.task_grads, part.weights, None, **options)
        return
    key = "momentum_buffer"
    held = [inner.state[param][key] for param in part.params]
    for first in (True, False):
        places = [t for t, buffer in enumerate(held) if (buffer is None) == first]
        if not places:
            continue
        some = _choose(part, places)
        if first:
            buffers = [torch.empty_like(param, requires_grad=False) for param in some.params]
        else:
            buffers = [held[t] for t in places]
        fused_ops.sgd_(some.params, some.task_grads, some.weights, buffers, first=first, **options)
        for param, buffer in zip(some.params, buffers, strict=True):
            inner.state[param][key] = buffer


def _adam(
    inner: torch.optim.Optimizer, group: dict[str, Any], part: Part, scale: Tensor | None
) -> None:
    states = [inner.state[param] for param in part.params]

    def every(key: str) -> list[Tensor]:
        return [state[key] for state in states]

    beta1, beta2 = group["betas"]
    fused_ops.adam_(
        part.params,
        part.task_grads,
        part.weights,
        every("exp_avg"),
        every("exp_avg_sq"),
        every("max_exp_avg_sq") if group["amsgrad"] else None,
        every("step"),
        lr=group["lr"],
        beta1=float(beta1),
        beta2=float(beta2),
        eps=group["eps"],
        weight_decay=float(group["weight_decay"]),
        # torch 2.6 has no such entry: there AdamW is a class of its own.
        decoupled=group.get("decoupled_weight_decay", type(inner) is torch.optim.AdamW),
        maximize=group["maximize"],
        capturable=_steps_on_device(group),
        scale=scale,
    )


def _steps_on_device(group: dict[str, Any]) -> bool:
    return bool(group["capturable"] or group["fused"])


def _prepare(inner: torch.optim.Optimizer, group: dict[str, Any], param: Tensor) -> None:
    """The parameter's state before its first step, as torch would make it."""
    if isinstance(inner, torch.optim.SGD):
        if group["momentum"] != 0:
            inner.state[param].setdefault("momentum_buffer", None)
        return
    state = inner.state[param]
    device = param.device if _steps_on_device(group) else torch.device("cpu")
    if state and state["step"].device != device:  # a checkpoint of another kind of run
        state["step"] = state["step"].to(device)
    if not state:
        narrow = group["fused"] or torch.get_default_dtype() != torch.float64
        state["step"] = torch.zeros(
            (),
            dtype=torch.float32 if narrow else torch.float64,
            device=device,
        )
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 2 + group["amsgrad"]]:
            state[key] = torch.zeros_like(param, requires_grad=False)


def step(
    outer: torch.optim.Optimizer,
    inner: torch.optim.Optimizer,
    pending: Callable[[], Update | None],
    max_grad_norm: float | None,
    closure: Callable[[], Any] | None,
) -> Any:
    """The wrapped optimizer's step with the update in it.

    The update is made by a closure, which the optimizer calls between its hooks. The parameters
    then hold no ``grad``, so that its own loop finds nothing to do.

    Args:
        outer: the optimizer that wraps it.
        inner: the wrapped optimizer.
        pending: returns the update, after the user's closure; None: there is none.
        max_grad_norm: the largest norm, or None.
        closure: makes an update and returns the loss, or None.

    Raises:
        RuntimeError: ``GradScaler`` makes the step.
        ValueError: an option has changed to one that cannot be fused.
    """
    scaled = [name for name in ("grad_scale", "found_inf") if name in vars(outer)]
    for name in scaled:  # left by GradScaler, which clears them after a step only
        delattr(outer, name)
    if scaled:
        raise RuntimeError(
            "fused_step: expected a step without GradScaler, whose checks need grad, found one by "
            "it; use bfloat16, or fused_step=False"
        )

    def update() -> Any:
        loss = None if closure is None else closure()
        found = pending()
        if found is not None:
            found.apply(inner, max_grad_norm)
        return loss

    return inner.step(update)
