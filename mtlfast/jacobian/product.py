"""The K gradients of a linear layer's weight as products of its inputs and output gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlfast import ops
from mtlfast.jacobian.gradients import Product, TaskGradients
from mtlfast.jacobian.linear import Layer

EXACT_TOKENS = 128
"""Up to so many rows of inputs, their inner products cost next to nothing in float64."""


@dataclass
class LinearProduct(Product):
    """``g_k = Δ_kᵀ A``.

    Attributes:
        param: the weight.
        name: how errors call it.
        is_flipped: the weight is ``[in, out]``: its gradients are ``Aᵀ Δ_k``.
        inputs: A, ``[T, in]``.
        version: of ``inputs``, when the gradients were made.
        deltas: K output gradients ``[T, out]``; None where a task does not reach the layer.
    """

    param: Tensor
    name: str
    is_flipped: bool
    inputs: Tensor
    version: int
    deltas: list[Tensor | None]

    @classmethod
    def of(cls, layer: Layer, deltas: Sequence[Tensor | None]) -> LinearProduct:
        """A layer's K gradients; inputs that are the user's own are copied."""
        inputs = layer.inputs if layer.is_made else layer.inputs.clone()
        name = f"params[{layer.column}]"
        return cls(layer.param, name, layer.is_flipped, inputs, inputs._version, list(deltas))

    def gramian(self) -> Tensor:
        """``<Δ_i, S Δ_j>`` with ``S = A Aᵀ``, each factor scaled to about 1, ``[K, K]`` float64."""
        self._check()
        count = len(self.deltas)
        reached = [k for k, delta in enumerate(self.deltas) if delta is not None]
        whole = torch.zeros(count, count, dtype=torch.float64, device=self.inputs.device)
        if not reached:
            return whole
        kind = self._wide()
        inputs, scale = _scaled(self.inputs.to(kind))
        # A row of inputs is its distance from the mean; the mean is one more row, whose output
        # gradient is the sum of all. Where a normalisation follows, that sum is 0, and a mean that
        # is large beside the distances would leave nothing but rounding errors of S.
        mean = inputs.mean(0)
        inputs = inputs - mean
        exact = inputs.double() if len(inputs) <= EXACT_TOKENS else inputs
        between, cross, square = (exact @ exact.T).to(kind), inputs @ mean, mean.dot(mean)
        given: TaskGradients = []
        made: TaskGradients = []
        scales = []
        for delta in self.deltas:
            if delta is not None:
                scaled, factor = _scaled(delta.to(kind))
                total = scaled.sum(0)
                given.append([scaled, total])
                end = scaled.T @ cross + square * total
                made.append([(between @ scaled).addr_(cross, total), end])
                scales.append(factor * scale)
        found = ops.gramian(given + made)[: len(reached), len(reached) :]
        outer = torch.stack(scales)
        found = (found + found.T) / 2 * (outer * outer[:, None])
        if len(reached) == count:
            return found
        at = torch.tensor(reached, device=whole.device)
        whole[at[:, None], at] = found
        return whole

    def combine(self, weights: Tensor) -> Tensor:
        """``(Σ w_k Δ_k)ᵀ A``: one product for all tasks."""
        self._check()
        kind = self._wide()
        deltas: list[list[Tensor | None]] = [
            [None if delta is None else delta.to(kind)] for delta in self.deltas
        ]
        mixed = ops.combine(deltas, weights)[0]
        if mixed is None:
            return torch.zeros_like(self.param)
        inputs = self.inputs.to(kind)
        # Where no task counts, neither does a NaN of the inputs.
        inputs = torch.where(weights.count_nonzero() > 0, inputs, 0.0)
        return self._laid_out(self._product(mixed, inputs))

    def rows(self) -> list[Tensor | None]:
        """``Δ_kᵀ A``, one by one."""
        self._check()
        kind = self._wide()
        inputs = self.inputs.to(kind)
        return [
            None if delta is None else self._laid_out(self._product(delta.to(kind), inputs))
            for delta in self.deltas
        ]

    def plus(self, other: Product) -> Product | None:
        """Inputs and output gradients one below another, as long as that takes less memory."""
        if not isinstance(other, LinearProduct) or other.is_flipped != self.is_flipped:
            return None
        if other.inputs.dtype != self.inputs.dtype:
            return None
        self._check()
        other._check()
        tokens = len(self.inputs) + len(other.inputs)
        wide = self.inputs.shape[1]
        out = self.param.numel() // wide
        count = len(self.deltas)
        if tokens * (wide + count * out) >= count * wide * out:
            return None
        deltas: list[Tensor | None] = []
        for mine, theirs in zip(self.deltas, other.deltas, strict=True):
            if mine is None and theirs is None:
                deltas.append(None)
                continue
            parts = (
                self.inputs.new_zeros(len(product.inputs), out) if delta is None else delta
                for product, delta in ((self, mine), (other, theirs))
            )
            deltas.append(torch.cat(list(parts)))
        inputs = torch.cat([self.inputs, other.inputs])
        return LinearProduct(
            self.param, self.name, self.is_flipped, inputs, inputs._version, deltas
        )

    def _wide(self) -> torch.dtype:
        """What to compute in: float32 at least."""
        return torch.promote_types(self.inputs.dtype, torch.float32)

    def _product(self, delta: Tensor, inputs: Tensor) -> Tensor:
        return inputs.T @ delta if self.is_flipped else delta.T @ inputs

    def _laid_out(self, grad: Tensor) -> Tensor:
        """As the parameter is."""
        if grad.dtype == self.param.dtype and grad.stride() == self.param.stride():
            return grad
        return torch.empty_like(self.param).copy_(grad)

    def _check(self) -> None:
        if self.inputs._version != self.version:
            raise RuntimeError(
                f"{self.name}: expected the inputs of its linear layer as the backward saw them, "
                f"found them changed in place since; its gradients are kept as products of these "
                f"inputs (engine='stored' multiplies them out)"
            )


def _scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled to at most about 1 in size, and what to multiply by to undo it, float64.

    NaN and Inf stay what they are. No synchronisation.
    """
    if not values.numel():
        return values, torch.ones((), dtype=torch.float64, device=values.device)
    least, most = torch.aminmax(values)
    largest = torch.maximum(-least, most)
    tiny = 4 * torch.finfo(values.dtype).tiny
    usual = (largest > 0) & (largest < torch.inf)
    factor = torch.where(usual, largest, 1.0).clamp_(min=tiny).reciprocal_().clamp_(min=tiny)
    return values * factor, factor.double().reciprocal_()
