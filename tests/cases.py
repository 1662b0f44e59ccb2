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
from mtlfast.weighting import (
    CRMOGM,
    DBMTL,
    CAGrad,
    ColumnWise,
    Constant,
    GradNorm,
    Mean,
    MoCo,
    MoDo,
    PCGrad,
    SDMGrad,
    Sum,
    Weighting,
)

BACKENDS = ("native", "reference")


@dataclass(frozen=True)
class Row:
    """A method with options, and what the common tests may expect of it."""

    id: str
    make: Callable[[int], Weighting]  # from K
    answer: str = ""  # its certified weights in oracle.npz, up to `factor`
    stream: str = ""  # its certified weights over twelve steps of losses and norms, or one
    steps: int = 1  # calls with the same gradients until `answer`
    floor: float = 1e-6  # |Jᵀw| counts as at least this much of the longest gradient
    opposes_none: bool = False  # <g_i, d> >= 0 for every task, also where degenerate
    factor: Callable[[int], float] = lambda num_tasks: 1.0  # from K: weights / certified weights
    alone: float = 1.0  # the weight of a single task
    bound: float = float("inf")  # |d| <= bound |g0| wherever the answer is degenerate, for factor 1
    stateful: bool = False  # a call changes the state
    scale_free: bool = True  # the same weights for s J
    amp: bool = True  # the update grows with the losses, so that GradScaler can unscale it
    symmetric: bool = True  # renaming the tasks renames the weights
    least: int = 1  # the smallest K that the method takes
    drawn: bool = False  # without `order` and the like the answer is random
    after: Callable[[Weighting], object] = lambda weighting: None  # called after every step

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
    Row("pcgrad", lambda k: PCGrad(), "pcgrad", stateful=True, drawn=True),
    Row(
        "pcgrad-self",
        lambda k: PCGrad(include_self=True),
        "pcgrad_selfproj",
        stateful=True,
        drawn=True,
    ),
    Row(
        "pcgrad-mean",
        lambda k: PCGrad("mean"),
        "pcgrad",
        factor=lambda k: 1 / k,
        stateful=True,
        drawn=True,
    ),
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
    Row("moco", lambda k: MoCo(), stateful=True, scale_free=False),
    Row(
        "moco-decays",
        lambda k: MoCo(0.5, 0.1, 0.0, 0.5, 0.5),
        stateful=True,
        scale_free=False,
    ),
    Row("modo", lambda k: MoDo(), alone=2.0, stateful=True, scale_free=False),
    Row("modo-mean", lambda k: MoDo(reduction="mean"), stateful=True, scale_free=False),
    Row("sdmgrad", lambda k: SDMGrad(), stateful=True),
    Row("dbmtl", lambda k: DBMTL(), stateful=True),
    Row("dbmtl-0", lambda k: DBMTL(beta=0.0), amp=False),
    Row("crmogm-mean", lambda k: CRMOGM("mean"), factor=lambda k: 1 / k, stateful=True),
    Row("crmogm-pcgrad", lambda k: CRMOGM("pcgrad"), stateful=True, drawn=True),
    Row("crmogm-dbmtl-0", lambda k: CRMOGM(DBMTL(0.0)), amp=False, stateful=True),
    Row("crmogm-gradnorm", lambda k: CRMOGM(GradNorm(), 0.5), stateful=True),
    Row("crmogm-sdmgrad", lambda k: CRMOGM(SDMGrad()), stateful=True),
    Row("crmogm-dbmtl", lambda k: CRMOGM(DBMTL()), stateful=True),
]


PLAIN = [row for row in ROWS if row.make(3).compares_raw and row.make(3).num_batches == 1]
"""Rows of methods whose weights follow from one batch's Gramian or losses."""


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
    inputs = _inputs(weighting, gramian, losses, order)
    return weighting(gramian, losses if weighting.needs_losses else None, **inputs)


def step(
    row: Row, weighting: Weighting, jacobian: Tensor, losses: Tensor, order: Tensor | None
) -> Tensor:
    """One whole step: the weights ``[B K]``, or the combined gradient ``[P]`` of columns.

    Args:
        row: the weighting's row.
        weighting: made by the row.
        jacobian: ``[K, P]``; a method that compares B batches sees B versions of it.
        losses: ``[K]``.
        order: ``[K, K]``, or None: whatever is random in the method is drawn.
    """
    answer, _ = _step(row, weighting, jacobian, losses, order)
    return answer


def direction(
    row: Row, weighting: Weighting, jacobian: Tensor, losses: Tensor, order: Tensor | None
) -> Tensor:
    """The combined gradient ``[P]`` of one whole step."""
    answer, rows = _step(row, weighting, jacobian, losses, order)
    if isinstance(weighting, ColumnWise):
        return answer
    return answer.to(jacobian.dtype) @ torch.stack([g for (g,) in rows if g is not None])


def _step(
    row: Row, weighting: Weighting, jacobian: Tensor, losses: Tensor, order: Tensor | None
) -> tuple[Tensor, ops.TaskGrads]:
    seen = batches(weighting, jacobian)
    rows = weighting.transform([[gradient] for gradient in seen], losses)
    inputs = _inputs(weighting, seen, losses, order)
    if isinstance(weighting, ColumnWise):
        (answer,) = weighting.combine(rows, None, None, **inputs)
        assert answer is not None
    else:
        given = losses if weighting.needs_losses or not weighting.needs_gramian else None
        gramian = ops.gramian(rows) if weighting.needs_gramian else None
        answer = weighting(gramian, given, **inputs)
    row.after(weighting)
    return answer, rows


def batches(weighting: Weighting, jacobian: Tensor) -> Tensor:
    """``[B K, P]``: the Jacobian, and B - 1 others that rename and scale as it does."""
    return torch.cat([jacobian.roll(shift, 1) for shift in range(weighting.num_batches)])


def renamed(weighting: Weighting, answer: Tensor, old: Tensor) -> Tensor:
    """A step's answer with task ``old[a]`` called a; columns know no names."""
    if isinstance(weighting, ColumnWise):
        return answer
    return answer.view(weighting.num_batches, -1)[:, old].flatten()


def _inputs(
    weighting: Weighting, matrix: Tensor, losses: Tensor | None, order: Tensor | None
) -> dict[str, Tensor | None]:
    """The inputs that the method takes, made of the order; none without it."""
    if order is None:
        return {}
    generator = torch.Generator().manual_seed(matrix.shape[1])
    given: dict[str, Tensor | None] = {
        "order": order,
        "uniform": torch.rand(matrix.shape[1], generator=generator, dtype=torch.float64),
        "normal": None if losses is None else losses.double().exp().cos(),
    }
    return {key: given[key] for key in weighting.inputs}


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
