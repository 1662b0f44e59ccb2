"""What the benchmarks run on: the same gradients, Gramians and model for every contestant."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

NUM_TENSORS = 60
LARGE = 10_000_000  # P: elements per task; far beyond the cache
SMALL = 100_000  # P: within the cache, where overhead decides


def tensor_sizes(total: int, seed: int = 0, num_tensors: int = NUM_TENSORS) -> list[int]:
    """60 or another number of sizes over three decades, ``total`` elements together."""
    shares = 10 ** np.random.default_rng(seed).uniform(0, 3, num_tensors)
    ends = np.rint(np.cumsum(shares) / shares.sum() * total).astype(int)
    return [int(size) for size in np.diff(ends, prepend=0)]


def mixing(num_tasks: int, seed: int) -> Tensor:
    """``[K, K]``: turns independent noise into task gradients with conflicts and unequal norms."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_tasks, num_tasks, generator=generator)
    return torch.eye(num_tasks) + noise * (0.5 / math.sqrt(num_tasks))


def task_gradients(
    num_tasks: int,
    total: int,
    seed: int = 0,
    *,
    num_tensors: int = NUM_TENSORS,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> list[list[Tensor]]:
    """K rows of flat tensors, each with memory of its own, as autograd leaves them.

    The numbers are drawn in float32 on the CPU: the same for every dtype and device, but for
    rounding.
    """
    torch.manual_seed(seed)
    mix = mixing(num_tasks, seed)
    sizes = tensor_sizes(total, seed, num_tensors)
    blocks = [mix @ torch.randn(num_tasks, size) for size in sizes]
    return [[block[k].to(device, dtype, copy=True) for block in blocks] for k in range(num_tasks)]


def gramians(num_tasks: int, count: int = 16) -> list[Tensor]:
    """``count`` Gramians ``[K, K]`` float64 of :func:`jacobians`."""
    return [jacobian @ jacobian.T for jacobian in jacobians(num_tasks, count)]


def jacobians(num_tasks: int, count: int = 16) -> list[Tensor]:
    """``count`` Jacobians ``[K, 2K]`` float64 with many conflicts."""
    generator = torch.Generator().manual_seed(num_tasks)
    shape = (count, num_tasks, 2 * num_tasks)
    found = torch.randn(shape, generator=generator, dtype=torch.float64)
    found[..., 0] += 0.5  # something in common: zero is not among their mixtures
    return list(found)


class MultiTaskModel(nn.Module):
    """A shared trunk of 3.4 million parameters and K small heads."""

    def __init__(self, num_tasks: int, width: int = 1024, depth: int = 4, classes: int = 4) -> None:
        super().__init__()
        widths = [width // 4] + depth * [width]
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
        self.trunk = nn.Sequential(*(module for layer in layers for module in layer))
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(num_tasks))
        self.inputs = torch.randn(32, widths[0])
        self.targets = torch.randint(classes, (num_tasks, 32))

    def losses(self) -> list[Tensor]:
        """K cross-entropies on one fixed batch."""
        features = self.trunk(self.inputs)
        return [
            nn.functional.cross_entropy(head(features), target)
            for head, target in zip(self.heads, self.targets, strict=True)
        ]

    def shared_elements(self) -> int:
        """P."""
        return sum(p.numel() for p in self.trunk.parameters())


def relative_difference(found: Iterator[Tensor], expected: Iterator[Tensor]) -> float:
    """``|found - expected| / |expected|`` over lists of tensors, in float64."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    square = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((square / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5)
