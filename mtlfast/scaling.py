"""What a ``GradScaler`` changes: scaled backwards, of whose scale the method sees nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtlfast.weighting import Weighting


def factor(scaler: Any, like: Tensor, method: Weighting, fused_step: bool) -> Tensor | None:
    """What a ``GradScaler`` multiplies losses by, on the device; None where it is off.

    Raises:
        TypeError: not a ``GradScaler``.
        ValueError: beside ``fused_step`` or a method that carries gradients from step to step.
    """
    if scaler is None:
        return None
    if not callable(getattr(scaler, "scale", None)) or not hasattr(scaler, "is_enabled"):
        raise TypeError(f"scaler: expected a GradScaler, found {type(scaler).__name__}")
    if not scaler.is_enabled():
        return None
    if fused_step:
        raise ValueError(
            "scaler: expected None with fused_step, which leaves no grad for its checks, "
            "found a GradScaler"
        )
    if method.needs_task_grads and not method.compares_raw and method.family != "column":
        raise ValueError(
            f"scaler: expected None for {type(method).__name__}, which carries gradients from step "
            f"to step while the scale changes, found a GradScaler; use bfloat16"
        )
    found: Tensor = scaler.scale(torch.ones((), dtype=torch.float32, device=like.device))
    return found


def unscaled(gramian: Tensor, scale: Tensor | None) -> Tensor:
    """The Gramian of the gradients of unscaled losses."""
    return gramian if scale is None else gramian * scale.to(gramian).reciprocal().square()


def weigh(
    method: Weighting,
    gramian: Tensor | None,
    losses: Tensor,
    inputs: Mapping[str, Tensor],
    scale: Tensor | None,
) -> Tensor:
    """The method's weights; slopes of learned numbers are scaled as all gradients of the step."""
    if scale is None:
        return method(gramian, losses, **inputs)
    learned = list(method.parameters())
    before = [None if p.grad is None else p.grad.clone() for p in learned]
    weights = method(gramian, losses, **inputs)
    for param, old in zip(learned, before, strict=True):
        if param.grad is not None:
            new = param.grad if old is None else param.grad - old
            new = new * scale.to(new)
            param.grad = new if old is None else old + new
    return weights


def undo(method: Weighting, before: dict[str, Any]) -> None:
    """Takes a method back to before a step that was skipped.

    Learned numbers stay as they are: they are the user's optimizer's, as the model's parameters.
    """
    learned = [(p, p.detach().clone(), p.grad) for p in method.parameters()]
    method.restore(before)
    for param, value, grad in learned:
        param.detach().copy_(value)
        param.grad = grad


@contextmanager
def undone(method: Weighting, before: dict[str, Any]) -> Iterator[None]:
    """Inside the block the method is as it was before a step that may have been skipped."""
    now = method.snapshot()
    undo(method, before)
    try:
        yield
    finally:
        method.restore(now)
