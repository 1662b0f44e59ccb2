"""The table of methods: one row per method and options. Every common test runs on every row.

A new method adds its rows to ``ROWS``; no test file changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mtlfast import ops
from mtlfast.weighting import CAGrad, Constant, GradNorm, Mean, PCGrad, Sum, Weighting

BACKENDS = ("native", "reference")


@dataclass(frozen=True)
class Row:
    """A method with options, and what the common tests may expect of it."""

    id: str
    make: Callable[[int], Weighting]  # from K
    answer: str = ""  # its certified weights in oracle.npz, up to `factor`
    stream: str = ""  # its certified weights over twelve steps in oracle.npz
    factor: Callable[[int], float] = lambda num_tasks: 1.0  # from K: weights / certified weights
    alone: float = 1.0  # the weight of a single task
    bound: float = float("inf")  # |d| <= bound |g0| wherever the answer is degenerate, for factor 1
    stateful: bool = False  # a call changes the state
    scale_free: bool = True  # the same weights for s J
    symmetric: bool = True  # renaming the tasks renames the weights

    def __str__(self) -> str:
        return self.id


def _cagrad(
    c: float, rescale: Literal[0, 1, 2] = 0, reduction: Literal["mean", "sum"] = "mean"
) -> Callable[[int], Weighting]:
    return lambda k: CAGrad(c, rescale, reduction)


def _gradnorm(
    alpha: float = 1.5,
    lr: float = 0.025,
    optimizer: Literal["adam", "sgd"] = "adam",
    parametrization: Literal["sum", "softmax"] = "sum",
) -> Callable[[int], Weighting]:
    return lambda k: GradNorm(alpha, lr, optimizer, parametrization)


ROWS = [
    Row("sum", lambda k: Sum()),
    Row("mean", lambda k: Mean(), factor=lambda k: 1 / k),
    Row("constant", lambda k: Constant([1.0 + i for i in range(k)]), symmetric=False),
    Row("pcgrad", lambda k: PCGrad(), "pcgrad", stateful=True),
    Row("pcgrad-self", lambda k: PCGrad(include_self=True), "pcgrad_selfproj", stateful=True),
    Row("pcgrad-mean", lambda k: PCGrad("mean"), "pcgrad", factor=lambda k: 1 / k, stateful=True),
    Row("cagrad-0", _cagrad(0.0)),
    *(
        Row(f"cagrad-{c}", _cagrad(c), f"cagrad_c{c}", alone=1 + c, bound=1 + c)
        for c in (0.1, 0.4, 0.5, 0.9)
    ),
    Row(
        "cagrad-rescale1-sum",
        _cagrad(0.4, 1, "sum"),
        "cagrad_c0.4",
        factor=lambda k: k / 1.16,
        alone=1.4 / 1.16,
        bound=1.4,
    ),
    Row("cagrad-rescale2", _cagrad(0.4, 2), "cagrad_c0.4", factor=lambda k: 1 / 1.4, bound=1.4),
    Row("gradnorm", _gradnorm(), stateful=True),
    Row("gradnorm-softmax", _gradnorm(parametrization="softmax"), stateful=True),
    *(
        Row(
            f"gradnorm-{alpha}-sgd",
            _gradnorm(alpha, optimizer="sgd"),
            stream=f"gradnorm_w_a{alpha}",
            stateful=True,
            scale_free=False,
        )
        for alpha in (0.12, 1.5)
    ),
    *(
        Row(
            f"gradnorm-{alpha}-sgd-softmax",
            _gradnorm(alpha, 0.01, "sgd", "softmax"),
            stream=f"gradnorm_softmax_w_a{alpha}",
            stateful=True,
            scale_free=False,
        )
        for alpha in (0.12, 1.5)
    ),
]


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs the body on one backend, or skips the test where this build lacks it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(ops.use_backend(name))
        except ImportError as error:
            pytest.skip(f"{name} backend: {error}")
        yield


def call(
    weighting: Weighting, gramian: Tensor, losses: Tensor | None, order: Tensor | None
) -> Tensor:
    """One call with those of the inputs that the method takes."""
    inputs = {"order": order} if "order" in weighting.inputs else {}
    return weighting(gramian, losses if weighting.needs_losses else None, **inputs)


def random_jacobian(num_tasks: int, seed: int, conflict: float = 0.5) -> Tensor:
    """``[K, K + 7]`` float64; at conflict 1 the rows sum to zero."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_tasks, num_tasks + 7, generator=generator, dtype=torch.float64)
    lengths = torch.rand(num_tasks, 1, generator=generator, dtype=torch.float64) + 0.5
    return lengths * (rows - conflict * rows.mean(0))


def random_orders(num_tasks: int, seed: int) -> Tensor:
    """``[K, K]`` int64, a permutation of the tasks in each row."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_tasks, num_tasks, generator=generator).argsort(1)


def random_losses(num_tasks: int, seed: int) -> Tensor:
    """``[K]`` float64 above 0.1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_tasks, generator=generator, dtype=torch.float64) + 0.1


@cache
def oracle() -> dict[str, npt.NDArray[np.generic]]:
    """The certified cases and streams; ``data/make_oracle.py`` says what is in it."""
    with np.load(Path(__file__).with_name("data") / "oracle.npz") as arrays:
        return dict(arrays)
