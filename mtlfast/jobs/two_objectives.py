"""Two objectives of two numbers: the toy of CAGrad and Nash-MTL, as published."""

import math
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlfast.jobs.base import Job, Metric, Trial

__all__ = [
    "REACHED",
    "TwoObjectives",
    "TwoObjectivesCAGrad",
    "TwoObjectivesTrial",
    "objectives",
    "pareto_set",
]

REACHED = 0.1  # closer than that to the Pareto set is there; Adam's own steps are 0.001
FLOOR = 5e-6  # of the argument of the logarithms
SEGMENTS = 400  # of the Pareto set


class TwoObjectives(Job):
    """Minimises two functions of two numbers, from the starting points of two papers.

    Where ``x2 > 0`` the objectives are ``tanh(x2 / 2) (log max(|(7 +- x1) / 2 - tanh(x2)|, 5e-6) +
    6)``: two narrow, curved valleys with steep walls, in which the plain sum comes to rest. Where
    ``x2 < 0`` they are ``-tanh(x2 / 2) (((x1 -+ 7)^2 + (x2 + 8)^2 / 10) / 10 - 20)``: two bowls,
    and between their lowest points the only Pareto set.

    The functions are those of Liu et al., "Conflict-Averse Gradient Descent for Multi-task
    Learning", 2021, arXiv 2110.14048. The first objective times 0.1, the five starts, Adam at 1e-3
    and the 35,000 steps are those of Navon et al., "Multi-Task Learning as a Bargaining Game",
    2022, arXiv 2202.01017. Starts, rates and steps are in the code that the authors published:
    ``toy.py`` of Cranial-XIX/CAGrad, ``experiments/toy`` of AvivNavon/nash-mtl.
    :class:`TwoObjectivesCAGrad` has the setting of the first paper.

    A seed is the number of a start, from 0; after the last one they come again, with other random
    numbers for the methods that draw some.
    """

    name = "two_objectives"
    title = "Two objectives of two numbers, from the starts of CAGrad's and Nash-MTL's papers"
    caption = (
        "Two objectives: the toy of CAGrad and Nash-MTL; the first objective is multiplied by 0.1. "
        "A seed is a start."
    )
    remark = (
        "A distance above 0.1 is a run that got stuck, or that went on elsewhere. The losses go "
        "down to -2 and -20, so methods that need positive losses are left out."
    )
    tasks = ("first", "second")
    metrics = (
        Metric(
            "distance",
            "distance to the Pareto set",
            measured="in the plane of the two numbers",
            lower_is_better=True,
            limits=(1e-4, 30.0),
            log_scale=True,
            reference=(REACHED, "closer than this: reached"),
        ),
        Metric("first", "first loss", measured="at the end", lower_is_better=True),
        Metric("second", "second loss", measured="at the end", lower_is_better=True),
    )
    methods: ClassVar[tuple[str, ...]] = ("sum", "mgda", "pcgrad", "cagrad", "nash_mtl", "famo")
    steps = 35_000
    threads = 1
    factor: ClassVar[float] = 0.1
    starts: ClassVar[tuple[tuple[float, float], ...]] = (
        (-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0),
    )  # fmt: skip
    options: ClassVar = {
        "constant": {"weights": (10.0, 1.0)},  # undoes the factor
        "crmogm": {"weighting": "mgda"},
        "famo": {"min_losses": (-2.1, -21.0)},  # as in FAMO's own run of this toy
        "gradnorm": {"alpha": 0.0},  # the ratios of losses to the first ones mean nothing here
    }
    unsupported: ClassVar = {
        "dbmtl": "it needs positive losses",
        "dtp": "its tasks have no performance indicator between 0 and 1",
        "dwa": "it needs positive losses",
        "gls": "it needs positive losses",
        "imtl": "it needs positive losses",
        "imtll": "it needs positive losses",
        "krum": "it needs three tasks: of two, neither has a neighbour to be compared by",
        "lbtw": "it needs positive losses",
        "scalarization": "it needs a function of the losses, which is the user's to choose",
        "si": "it needs positive losses",
        "trimmed_mean": "it needs three tasks: of two, none is left after trimming",
        "uw": "it needs positive losses",
    }

    def start(self, seed: int) -> "TwoObjectivesTrial":
        """Returns a fresh run from the start of this number."""
        torch.manual_seed(seed)  # for the methods
        point = self.starts[seed % len(self.starts)]
        return TwoObjectivesTrial(point, self.factor, self._pareto_set)

    @cached_property
    def _pareto_set(self) -> NDArray[np.float64]:
        return pareto_set(SEGMENTS + 1)


class TwoObjectivesCAGrad(TwoObjectives):
    """The same as CAGrad's paper has it: no factor, three starts, 100,000 steps of Adam at 1e-3."""

    name = "two_objectives_cagrad"
    title = "Two objectives of two numbers, as in CAGrad's paper"
    caption = "Two objectives: the toy of CAGrad, with both as they are. A seed is a start."
    remark = TwoObjectives.remark.replace("-2 and -20", "-20")
    methods = ("sum", "mgda", "pcgrad", "cagrad", "nash_mtl")
    steps = 100_000
    factor = 1.0
    starts = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))
    options: ClassVar = {
        **TwoObjectives.options,
        "constant": {"weights": (1.0, 1.0)},
        "famo": {"min_losses": (-21.0, -21.0)},
    }


class TwoObjectivesTrial(Trial):
    """One run of :class:`TwoObjectives`.

    Args:
        start: Where it begins.
        factor: What the first objective is multiplied by.
        pareto: [N, 2] points along the Pareto set.
    """

    def __init__(
        self, start: tuple[float, float], factor: float, pareto: NDArray[np.float64]
    ) -> None:
        self.x = nn.Parameter(torch.tensor(start))
        self.factor = factor
        self.pareto = pareto
        self.shared_parameters = [self.x]
        self.optimizer = torch.optim.Adam([self.x], lr=1e-3)

    def draw_batch(self) -> None:
        """Nothing: the objectives are the same in every step."""

    def losses(self, batch: None) -> dict[str, Tensor]:
        """Returns both objectives, the first one times ``factor``."""
        del batch
        first, second = _Point.apply(self.x, self.factor)  # type: ignore[no-untyped-call]
        return {"first": first, "second": second}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the metrics and, for a figure of the path, the point: ``x1`` and ``x2``."""
        losses = {name: float(loss) for name, loss in self.losses(None).items()}
        x1, x2 = self.x.tolist()
        distance = _distance(np.array([x1, x2]), self.pareto)
        return {"distance": distance, **losses, "x1": x1, "x2": x2}


def objectives(points: Tensor) -> Tensor:
    """Returns both objectives [..., 2] at points [..., 2]."""
    x1, x2 = points[..., :1], points[..., 1:]  # [..., 1]
    sides = points.new_tensor([1.0, -1.0])
    valleys = ((7 + sides * x1) / 2 - torch.tanh(x2)).abs().clamp(min=FLOOR).log() + 6
    bowls = ((x1 - 7 * sides).square() + 0.1 * (x2 + 8).square()) / 10 - 20
    # clamp, unlike relu, has a gradient at 0, which one of the starts needs.
    half = torch.tanh(x2 / 2)
    return valleys * half.clamp(min=0) + bowls * (-half).clamp(min=0)


class _Point(torch.autograd.Function):
    """:func:`objectives` at one point [2], by Python's floats.

    A graph of some thirty nodes for two numbers would take most of a step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        x1, x2 = x.tolist()
        (first, *slope), (second, *ctx.slope) = _one(x1, x2, 1), _one(x1, x2, -1)
        ctx.first_slope = [factor * value for value in slope]
        return x.new_tensor(factor * first), x.new_tensor(second)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        first, second = (float(grad) for grad in grads)
        pairs = zip(ctx.first_slope, ctx.slope, strict=True)
        return grads[0].new_tensor([first * a + second * b for a, b in pairs]), None


def _one(x1: float, x2: float, side: int) -> tuple[float, float, float]:
    """One objective and its derivatives by x1 and x2, with those of clamp and abs as torch's."""
    bent, half = math.tanh(x2), math.tanh(x2 / 2)
    slope = (1 - half * half) / 2  # of half
    value = by_x1 = by_x2 = 0.0
    if not x2 < 0:  # NaN too
        inner = (7 + side * x1) / 2 - bent
        valley = math.log(max(abs(inner), FLOOR)) + 6
        inverse = 1 / inner if abs(inner) >= FLOOR else 0.0
        value += half * valley
        by_x1 += half * inverse * side / 2
        by_x2 += slope * valley - half * inverse * (1 - bent * bent)
    if not x2 > 0:
        bowl = ((x1 - 7 * side) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20
        value -= half * bowl
        by_x1 -= half * (x1 - 7 * side) / 5
        by_x2 -= slope * bowl + half * (x2 + 8) / 50
    return value, by_x1, by_x2


def pareto_set(count: int) -> NDArray[np.float64]:
    """Returns points [count, 2] along the Pareto set, from the second objective's lowest point.

    Where a mixture ``w f1 + (1 - w) f2`` of the bowls is lowest: ``x1 = 14 w - 7``, whatever x2 is,
    which leaves ``tanh(y / 2) (19.6 w (1 - w) + (y - 8)^2 / 100 - 20)`` to be minimised over
    ``y = -x2``. Its derivative has one zero above 8, found by bisection. With other factors of the
    objectives other w belong to the points, but the points are the same. CAGrad's code draws
    the set as the line ``x2 = -8.3552``, which is right in the middle; towards its ends it bends
    down to -8.4345.

    Args:
        count: At least 2.
    """
    w = np.linspace(0.0, 1.0, count)
    low, high = np.full(count, 8.0), np.full(count, 12.0)
    for _ in range(60):
        y = (low + high) / 2
        height = 19.6 * w * (1 - w) + (y - 8) ** 2 / 100 - 20
        rises = 0.02 * (y - 8) * np.tanh(y / 2) + height / (2 * np.cosh(y / 2) ** 2) > 0
        low, high = np.where(rises, low, y), np.where(rises, y, high)
    return np.stack([14 * w - 7, -(low + high) / 2], axis=1)


def _distance(point: NDArray[np.float64], line: NDArray[np.float64]) -> float:
    """From a point [2] to a line through points [N, 2]; NaN if the point is."""
    begin, along = line[:-1], np.diff(line, axis=0)
    share = ((point - begin) * along).sum(1) / (along**2).sum(1)
    nearest = begin + share.clip(0.0, 1.0)[:, None] * along
    return float(np.linalg.norm(point - nearest, axis=1).min())
