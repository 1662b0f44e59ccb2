"""Scalarization: any differentiable function of the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlfast.weighting.base import Call, Weighting


class Scalarization(Weighting):
    """Minimises a function of the losses that the user gives: ``w = d fn(L) / d L``.

    ``fn`` gets the losses ``[K]`` as a float64 tensor that requires grad, and returns one scalar
    that depends on them differentiably: ``Scalarization(lambda losses: losses.logsumexp(0))``.

    Shapes: losses ``[K]`` -> weights ``[K]`` float64; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    Any scalarizer of TorchJD that is a function of the losses alone can be passed as it is. A
    module with parameters of its own is called, but not trained: they get no gradient.

    Degenerate cases and scale are those of ``fn``. NaN or Inf in the losses or in the derivative
    gives NaN weights and status "non-finite". Use it for a trade-off that no other method has. It
    fails where ``fn`` is constant or has steps: the derivative is then zero or does not exist.

    No state.

    Args:
        fn: from losses ``[K]`` float64 to a scalar tensor. To pickle the weighting it must be a
            function of a module, not a lambda.

    Raises:
        TypeError: ``fn`` cannot be called; at a call, it returns no tensor.
        ValueError: at a call, ``fn`` returns no scalar, or one that does not depend on the losses
            differentiably.
    """

    name = "scalarization"
    family = "loss"
    paper = ""
    needs_gramian = False
    needs_losses = True
    weights_losses = True

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        if not callable(fn):
            raise TypeError(f"fn: expected a function of the losses, found {type(fn).__name__}")
        self.fn = fn

    def _weights(self, call: Call) -> Tensor:
        assert call.losses is not None  # _check has made sure
        with torch.enable_grad():
            losses = call.losses.clone().requires_grad_()
            value: object = self.fn(losses)
        if not isinstance(value, Tensor):
            raise TypeError(f"fn: expected to return a scalar tensor, found {type(value).__name__}")
        if value.numel() != 1:
            raise ValueError(f"fn: expected to return a scalar, found shape {list(value.shape)}")
        found = None
        if value.requires_grad:
            (found,) = torch.autograd.grad(value, losses, allow_unused=True)
        if found is None:
            raise ValueError(
                "fn: expected a result that depends differentiably on the losses, "
                "found one that does not"
            )
        finite = losses.detach().isfinite().all() & found.isfinite().all()
        self._status = torch.where(finite, 0, 3).to(torch.int32)
        return torch.where(finite, found, math.nan)

    def __repr__(self) -> str:
        """The constructor call, with the function by its name where it has one."""
        return f"{type(self).__name__}(fn={getattr(self.fn, '__name__', repr(self.fn))})"

    def snapshot(self) -> dict[str, Any]:
        """The status of the last call; ``fn`` is the user's and is left alone."""
        return {"_status": None if self._status is None else self._status.clone()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to a :meth:`snapshot` of this weighting, which may be used again."""
        status = snapshot["_status"]
        self._status = None if status is None else status.clone()
