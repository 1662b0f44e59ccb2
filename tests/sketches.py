"""What the tests of sketches share: a sketch by hand, and calls of the doors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast import sketch_ops

_MASK = 2**64 - 1
SMALL = 1024  # buckets
SEED = -7


def splitmix(state: int) -> int:
    """A step of splitmix64: the output that follows from a state."""
    x = (state + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def sign_by_hand(seed: int, number: int) -> float:
    state = splitmix(seed & _MASK)
    term = splitmix((state + number // 64 * 0x9E3779B97F4A7C15) & _MASK)
    return -1.0 if term >> (number % 64) & 1 else 1.0


def sketched(
    grads: Sequence[Tensor],
    first: int = 0,
    *,
    num_buckets: int = SMALL,
    seed: int = SEED,
    start: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Sketch and norm after one call; both held ``start`` before."""
    device = grads[0].device if grads else "cpu"
    sketch = torch.full((num_buckets,), start, device=device)
    norm = torch.full((1,), start, dtype=torch.float64, device=device)
    sketch_ops.sketch_(sketch, norm, list(grads), first, seed)
    return sketch, norm


def vectors(
    sizes: Sequence[int], dtype: torch.dtype = torch.float32, *, integers: bool = False
) -> list[Tensor]:
    """Random tensors; sums of the integers are exact."""
    generator = torch.Generator().manual_seed(len(sizes))
    if integers:
        return [torch.randint(-3, 4, (n,), generator=generator).to(dtype) for n in sizes]
    return [torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) for n in sizes]
