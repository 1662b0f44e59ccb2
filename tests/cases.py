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
from fiber_gpu import fibers
from torch import Tensor

from mtlfast import ops
from mtlfast.weighting import (
    COSMOS,
    CRMOGM,
    DBMTL,
    DTP,
    DWA,
    FAMO,
    GLS,
    IMTL,
    IMTLG,
    IMTLL,
    LBTW,
    MGDA,
    PBI,
    PCD,
    RLW,
    SI,
    STCH,
    UW,
    AlignedMTL,
    CAGrad,
    ColumnWise,
    ConFIG,
    Constant,
    DualProj,
    ExcessMTL,
    FairGrad,
    GradDrop,
    GradNorm,
    GradVac,
    Krum,
    Mean,
    MoCo,
    MoDo,
    NashMTL,
    PCGrad,
    Random,
    Scalarization,
    SDMGrad,
    Sum,
    TrimmedMean,
    UPGrad,
    Weighting,
)

BACKENDS = ("native", "reference")
EVERYWHERE = (*BACKENDS, "fibers")
"""Fibers: the CUDA kernels, on a GPU made of fibers (:mod:`fiber_gpu`)."""


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
    loss_scale_free: bool = True  # the same weights for s L
    symmetric: bool = True  # renaming the tasks renames the weights
    least: int = 1  # the smallest K that the method takes
    smooth: bool = True  # Jᵀw is continuous where gradients become dependent
    drawn: bool = False  # without `order` and the like the answer is random
    after: Callable[[Weighting], object] = lambda weighting: None  # called after every step
    seen: Callable[[Tensor], Tensor] = lambda losses: losses  # what it gets of the stream's losses

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


def _aligned(scale: Literal["min", "median", "rmse"]) -> Callable[[int], Weighting]:
    return lambda k: AlignedMTL(scale)


def _stch(mu: float) -> Callable[[int], Weighting]:
    return lambda k: STCH(mu)


def _uneven(num_tasks: int) -> list[float]:
    return [1.0 + i for i in range(num_tasks)]


def _end_epoch(weighting: Weighting) -> None:
    assert isinstance(weighting, (DWA, LBTW))
    weighting.end_epoch()


def _descend(weighting: Weighting) -> None:
    """A step of an optimizer of the user's on learned scalars."""
    assert isinstance(weighting, UW)
    (parameter,) = weighting.parameters()
    if parameter.grad is not None:
        parameter.detach().sub_(0.1 * parameter.grad)
    parameter.grad = None


def _nash(max_norm: float | None) -> Callable[[int], Weighting]:
    return lambda k: NashMTL(max_norm)


def _fairgrad(
    alpha: float, reduction: Literal["mean", "sum"] = "mean", max_norm: float | None = None
) -> Callable[[int], Weighting]:
    return lambda k: FairGrad(alpha, reduction, max_norm)


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
    Row("mgda", lambda k: MGDA(), "mgda", opposes_none=True),
    Row("mgda-l2", lambda k: MGDA("l2"), alone=0.5, scale_free=False),
    Row("mgda-loss", lambda k: MGDA("loss"), loss_scale_free=False),
    Row("mgda-loss+", lambda k: MGDA("loss+"), alone=0.5, scale_free=False),
    Row("upgrad", lambda k: UPGrad(), "upgrad", opposes_none=True),
    Row("upgrad-ones", lambda k: UPGrad([1.0] * k), "upgrad", factor=lambda k: k),
    Row("dualproj", lambda k: DualProj(), "dualproj", opposes_none=True),
    Row("dualproj-ones", lambda k: DualProj([1.0] * k), "dualproj", factor=lambda k: k),
    Row("pcd", lambda k: PCD(), "pcd_tau0.02_eps0", stateful=True, symmetric=False),
    Row(
        "pcd-taus",
        lambda k: PCD([i / k for i in range(1, k)], beta=0.9),
        stateful=True,
        symmetric=False,
    ),
    Row("pcd-eps", lambda k: PCD(eps=1e-8), stateful=True, scale_free=False, symmetric=False),
    Row("gradvac", lambda k: GradVac(), "gradvac_step1", stateful=True, drawn=True),
    Row(
        "gradvac-again",
        lambda k: GradVac(),
        "gradvac_step2",
        steps=2,
        floor=1e-2,  # exactly opposite gradients cancel; the certified answer is their rounding
        stateful=True,
        drawn=True,
    ),
    Row(
        "gradvac-mean",
        lambda k: GradVac(0.2, "mean"),
        "gradvac_step1",
        factor=lambda k: 1 / k,
        stateful=True,
        drawn=True,
    ),
    Row(
        "nash", _nash(1.0), "nash_maxnorm1", floor=0.0, alone=1 / 2, stateful=True, scale_free=False
    ),
    Row("nash-root", _nash(None), "nash", floor=0.0, alone=1 / 2, stateful=True, scale_free=False),
    *(
        Row(
            f"fairgrad-{alpha}",
            _fairgrad(alpha),
            answer,
            floor=0.0,
            alone=4 ** (-alpha / (1 + alpha)),
            stateful=True,
            scale_free=False,
        )
        for alpha, answer in ((0.5, "fairgrad_a0.5"), (1.0, "nash"), (2.0, "fairgrad_a2.0"))
    ),
    Row(
        "fairgrad-sum",
        _fairgrad(2.0, "sum"),
        "fairgrad_a2.0",
        factor=float,
        floor=0.0,
        alone=4 ** (-2 / 3),
        stateful=True,
        scale_free=False,
    ),
    Row(
        "fairgrad-sum-1",
        _fairgrad(1.0, "sum", 1.0),
        "nash_maxnorm1",
        floor=0.0,
        alone=1 / 2,
        stateful=True,
        scale_free=False,
    ),
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
    *(
        Row(f"aligned-{scale}", _aligned(scale), f"alignedmtl_{scale}", smooth=False)
        for scale in ("min", "median", "rmse")
    ),
    Row(
        "aligned-sum",
        lambda k: AlignedMTL(preference=[1.0] * k),
        "alignedmtl_min",
        factor=lambda k: k,
        smooth=False,
    ),
    Row("config", lambda k: ConFIG(), "config", smooth=False),
    Row("config-preference", lambda k: ConFIG([0.3] * k), "config", smooth=False),
    Row("imtlg", lambda k: IMTLG(), "imtlg", smooth=False),
    Row("imtl", lambda k: IMTL(), stateful=True, smooth=False, loss_scale_free=False),
    Row("krum", lambda k: Krum(), "krum_f0_sq", symmetric=False, least=3),
    Row("krum-norm", lambda k: Krum(distance="norm"), "krum_f0_unsq", symmetric=False, least=3),
    Row(
        "krum-byzantine",
        lambda k: Krum(num_byzantine=int(k > 3), num_selected=min(2, k)),
        "krum_f1m2_sq",
        symmetric=False,
        least=4,
    ),
    Row("rlw", lambda k: RLW(), stateful=True, drawn=True),
    Row("random", lambda k: Random(), stateful=True, drawn=True),
    Row("uw", lambda k: UW(), alone=0.5, stateful=True, loss_scale_free=False),
    Row(
        "uw-sgd",
        lambda k: UW(0.1, "sgd"),
        stream="uw_w_sgd0.1",
        alone=0.5,
        stateful=True,
        loss_scale_free=False,
    ),
    Row(
        "uw-parameters",
        lambda k: UW(None, num_tasks=k),
        stream="uw_w_sgd0.1",
        alone=0.5,
        stateful=True,
        after=_descend,
        loss_scale_free=False,
    ),
    Row("imtll", lambda k: IMTLL(), stateful=True, loss_scale_free=False),
    Row(
        "imtll-sgd",
        lambda k: IMTLL(0.01, "sgd"),
        stream="imtll_w_sgd0.01",
        stateful=True,
        loss_scale_free=False,
    ),
    Row("dwa", lambda k: DWA(), stream="dwa_w", stateful=True, after=_end_epoch),
    Row("famo", lambda k: FAMO(), stream="famo_w", stateful=True),
    Row(
        "famo-min-losses",
        lambda k: FAMO(0.1, 0.0, [0.05] * k),
        stateful=True,
        loss_scale_free=False,
    ),
    *(
        Row(
            f"stch-{mu}",
            _stch(mu),
            stream=f"stch_w_mu{mu}",
            seen=torch.log,
            loss_scale_free=False,
        )
        for mu in (0.01, 0.1, 1.0)
    ),
    Row("stch-nadir", lambda k: STCH(0.5, [2.0] * k), loss_scale_free=False),
    Row("gls", lambda k: GLS(), stream="gls_w"),
    Row("si", lambda k: SI(), loss_scale_free=False),
    Row("cosmos", lambda k: COSMOS(), loss_scale_free=False),
    Row(
        "cosmos-preference",
        lambda k: COSMOS(0.5, _uneven(k)),
        symmetric=False,
        loss_scale_free=False,
    ),
    Row("pbi", lambda k: PBI()),
    Row(
        "pbi-preference",
        lambda k: PBI(2.0, _uneven(k), [0.1] * k),
        symmetric=False,
        loss_scale_free=False,
    ),
    Row("lbtw", lambda k: LBTW(), stateful=True),
    Row("lbtw-epochs", lambda k: LBTW(2.0), stateful=True, after=_end_epoch),
    Row("dtp", lambda k: DTP()),
    Row("scalarization", lambda k: Scalarization(max)),
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
    Row("dbmtl-0", lambda k: DBMTL(beta=0.0), loss_scale_free=False),
    Row("crmogm-mean", lambda k: CRMOGM("mean"), stateful=True),
    Row("crmogm-pcgrad", lambda k: CRMOGM("pcgrad"), stateful=True, drawn=True),
    Row("crmogm-dbmtl-0", lambda k: CRMOGM(DBMTL(0.0)), loss_scale_free=False, stateful=True),
    Row("crmogm-gradnorm", lambda k: CRMOGM(GradNorm(), 0.5), stateful=True),
    Row("crmogm-sdmgrad", lambda k: CRMOGM(SDMGrad()), stateful=True),
    Row("crmogm-dbmtl", lambda k: CRMOGM(DBMTL()), stateful=True),
    Row("graddrop", lambda k: GradDrop(), stateful=True, drawn=True),
    Row("graddrop-leak", lambda k: GradDrop(0.25), stateful=True, drawn=True),
    Row(
        "graddrop-leaks",
        lambda k: GradDrop([i / k for i in range(k)]),
        stateful=True,
        drawn=True,
        symmetric=False,
    ),
    Row("trimmed_mean", lambda k: TrimmedMean(1), least=3),
    Row("median", lambda k: TrimmedMean((k - 1) // 2)),
    *(
        Row(f"excess_mtl-{name}", make, alone=1.0, stateful=True, scale_free=False)
        for name, make in (
            ("slow", lambda k: ExcessMTL(0.01)),
            ("warmup-sum", lambda k: ExcessMTL(0.1, 2, "sum")),
        )
    ),
]


PLAIN = [row for row in ROWS if row.make(3).compares_raw and row.make(3).num_batches == 1]
"""Rows of methods whose weights follow from one batch's Gramian or losses."""


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs the body on one backend, or skips the test where this build lacks it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(ops.use_backend("native" if name == "fibers" else name))
            if name == "fibers":
                stack.enter_context(fibers("shuffled"))
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
