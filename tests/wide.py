"""Models with weights that are large enough to be kept as products, and how to compare engines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from models import last, wrap
from torch import Tensor, nn

from mtlfast import MultiTaskOptimizer
from mtlfast.jacobian import Jacobian
from mtlfast.jacobian.product import LinearProduct

WIDTH = 128
"""The smallest square weight that can be kept as a product has this width."""
TOKENS = 12


class Wide(nn.Module):
    """A trunk, and a head of its own for every task."""

    def __init__(
        self,
        trunk: nn.Module | None = None,
        num_tasks: int = 3,
        dtype: torch.dtype = torch.float64,
        shape: Sequence[int] = (TOKENS,),
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = two_layers() if trunk is None else trunk
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(num_tasks))
        self.shape = tuple(shape)
        self.to(dtype)

    def batch(self, step: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(*self.shape, WIDTH, generator=generator, dtype=torch.float64)
        return x.to(self.heads[0].get_parameter("weight").dtype)

    def hidden(self, x: Tensor) -> Tensor:
        found: Tensor = self.trunk(x)
        return found

    def losses(self, step: int = 0, x: Tensor | None = None) -> list[Tensor]:
        """One loss per task, on data of that step."""
        hidden = self.hidden(self.batch(step) if x is None else x)
        generator = torch.Generator().manual_seed(step + 100)
        losses = []
        for k, head in enumerate(self.heads):
            target = torch.randn(*self.shape, 2, generator=generator, dtype=torch.float64)
            losses.append((head(hidden) - (k + 1) * target.to(hidden.dtype)).square().mean())
        return losses


def two_layers(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, 2 * WIDTH, bias), nn.Tanh(), nn.Linear(2 * WIDTH, WIDTH, bias), nn.Tanh()
    )


def kept(optimizer: MultiTaskOptimizer) -> Jacobian:
    """The task gradients of the step under way."""
    assert optimizer._pending is not None
    return optimizer._pending.jacobian


def assert_close_grads(found: nn.Module, expected: nn.Module, tolerance: float) -> None:
    """Each parameter's ``grad`` to within this share of its norm."""
    for (name, ours), (_, theirs) in zip(
        found.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            assert ours.grad.dtype == theirs.grad.dtype
            assert ours.grad.stride() == theirs.grad.stride(), name
            norm = float(theirs.grad.double().norm())
            difference = (ours.grad.double() - theirs.grad.double()).norm()
            torch.testing.assert_close(
                difference, torch.zeros_like(difference), rtol=0, atol=tolerance * norm, msg=name
            )


def compare(
    model: nn.Module,
    num_products: int,
    *,
    tolerance: float = 1e-9,
    losses: Callable[[Any], Sequence[Tensor]] = lambda model: model.losses(),
    method: str = "upgrad",
    **options: Any,
) -> MultiTaskOptimizer:
    """One ``backward`` by "factored" against one by "stored"; so many weights were products."""
    twin = copy.deepcopy(model)
    found = wrap(model, method, engine="factored", **options)
    expected = wrap(twin, method, engine="stored", **options)
    found.backward(losses(model))
    expected.backward(losses(twin))
    assert len(kept(found).products) == num_products
    assert last(found).engine == ("factored" if num_products else "stored")
    ours, theirs = last(found).gramian, last(expected).gramian
    assert ours is not None
    assert theirs is not None
    norms = theirs.diagonal().sqrt()
    scale = norms * norms[:, None]
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)
    assert_close_grads(model, twin, tolerance)
    return found


def in_order(optimizer: MultiTaskOptimizer) -> list[LinearProduct]:
    """The products, by the places of their parameters."""
    found = []
    for _, product in sorted(kept(optimizer).products.items()):
        assert isinstance(product, LinearProduct)
        found.append(product)
    return found


def check_against_float64(product: LinearProduct, tolerance: float | None) -> None:
    """Gramian, sum and rows against the same multiplied out in float64.

    None: the Gramian alone, of gradients beyond the range of their own dtype.
    """
    inputs = product.inputs.double()
    rows = [
        inputs.T @ delta.double() if product.is_flipped else delta.double().T @ inputs
        for delta in product.deltas
        if delta is not None
    ]
    stacked = torch.stack(rows).flatten(1)
    norms = stacked.norm(dim=1)
    scale = norms * norms[:, None]
    gramian = product.gramian()
    torch.testing.assert_close(gramian, gramian.T, rtol=0, atol=0)
    truth = stacked @ stacked.T
    torch.testing.assert_close(gramian / scale, truth / scale, rtol=0, atol=1e-6)
    if tolerance is None:
        return
    weights = torch.linspace(-1, 2, len(rows)).double()
    combined = product.combine(weights)
    assert combined.dtype == product.param.dtype
    expected = torch.einsum("k,kab->ab", weights, torch.stack(rows))
    error = (combined.double() - expected).norm()
    assert float(error) <= tolerance * float((weights.abs() * norms).sum())
    for row, truth in zip(product.rows(), rows, strict=True):
        assert row is not None
        assert float((row.double() - truth).norm()) <= tolerance * float(truth.norm())
