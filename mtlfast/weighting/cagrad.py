"""CAGrad: the best worst-task improvement near the mean gradient."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class CAGrad(Weighting):
    """Maximises the smallest ``<g_i, d>`` over the ball of radius ``c |g0|`` around the mean g0.

    With ``rho = c |g0|`` and ``g_w = Jᵀw``, the dual ``w* = argmin <g_w, g0> + rho |g_w|`` over the
    simplex gives ``d = g0 + rho g_w* / |g_w*|``: weights ``1/K + (rho / |g_w*|) w*``. It is solved
    exactly, by an active set on the support of w* and a closed form for ``|g_w*|``, at every scale
    of the gradients.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64. No state.

    ``rescale=0, reduction="mean"`` is the paper's formula and TorchJD's scaling, ``rescale=1`` is
    LibMTL's default, ``rescale=1, reduction="sum"`` (times K) is nash-mtl's: at c = 0.5 LibMTL's
    update is 0.8 of TorchJD's, and nash-mtl's K times LibMTL's. The peers stop earlier: the
    official code's solver is off by 1e-3 on ordinary gradients and fails on very small or large
    ones, and TorchJD returns exactly zero where the norm of all gradients is below 1e-2.

    Degenerate (see ``status``): the mean gradient is zero, or the best g_w is, which happens where
    0 is in the convex hull of the gradients. Then ``d = g0``, scaled like any other answer; always
    ``|d| <= (1 + c) |g0|`` before rescaling. A task with a zero gradient leaves the solve, counts
    in the mean and gets weight 1/K. With c = 0 the answer is the mean. Use it where the worst task
    counts, under conflict and under imbalance. It fails where c is too small for the conflict: the
    update may then still oppose a task.

    Args:
        c: radius of the ball relative to ``|g0|``, in [0, 1). Default 0.5; 0.4 is common too.
        rescale: divides the update by 1 (0), ``1 + c²`` (1) or ``1 + c`` (2). Default 0.
        reduction: "mean", or "sum" to multiply the update by K. Default "mean".

    Raises:
        TypeError, ValueError: an argument out of its range.

    Reference: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021,
    arXiv 2110.14048.
    """

    name = "cagrad"
    family = "gramian"
    paper = "Conflict-Averse Gradient Descent for Multi-task Learning, 2021, arXiv 2110.14048"

    def __init__(
        self,
        c: float = 0.5,
        rescale: Literal[0, 1, 2] = 0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        self.c = checks.number("c", c, 0, 1)
        checks.choice("rescale", rescale, (0, 1, 2))
        checks.choice("reduction", reduction, ("mean", "sum"))
        self.rescale = rescale
        self.reduction = reduction

    def _weights(self, call: Call) -> Tensor:
        return self._solve(call, (self.c, float(self.rescale), float(self.reduction == "sum")))
