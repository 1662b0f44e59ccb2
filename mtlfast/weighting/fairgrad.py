"""FairGrad: a fair share of the improvement for every task, as fair as asked for."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class FairGrad(Weighting):
    """Maximises the alpha-fair utility ``sum_i <g_i, d>^(1 - alpha) / (1 - alpha)`` of the update.

    The direction is ``d = Jᵀw`` with ``w > 0`` and ``G w = w^(-1 / alpha)``. Towards alpha = 0 it
    is the sum of the gradients, alpha = 1 is Nash-MTL without its ``max_norm``, alpha = 2 weighs
    a task by the inverse square of its improvement, and a large alpha looks at the worst task only.
    The root is found by Newton's method to rounding, at every scale of the gradients.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64, of the true size: s times longer
    gradients have weights smaller by the factor ``s^(2 alpha / (1 + alpha))``.

    The defaults are the paper's formula and TorchJD's scaling. The official code multiplies by K
    and then shortens the gradient to length 1: ``reduction="sum", max_norm=1``. Both give the
    Gramian as it is to a least-squares routine of scipy, which fails on gradients of length 1e-20
    or 1e18, and gives a zero gradient a huge weight.

    Degenerate (see ``status``): no root exists where 0 is in the convex hull of the gradients, up
    to rounding: a combination of them is shorter than 5e-7 of the sum of their weighted lengths.
    Then the last weights are used again, at first ``1 / |g_i|``, made smaller only where the update
    would be longer than ``max_norm``. A task with a zero gradient leaves the solve and gets weight
    0. "not converged" happens only for alpha far from 1, below 0.05 or above 50, on strongly
    conflicting gradients; the weights are then those of the last step. Use it where the tasks that
    improve least should have more, alpha saying how much. It fails where one learning rate must
    serve all scales: for alpha above 1 the update grows as the gradients shrink.

    State: weights of the last root.

    Args:
        alpha: the fairness, above 0. Default 2.0.
        reduction: "mean", or "sum" to multiply the update by K. Default "mean".
        max_norm: largest length of the update, above 0; None for no limit. Default None.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024,
    arXiv 2402.15638.
    """

    name = "fairgrad"
    family = "gramian"
    paper = "Fair Resource Allocation in Multi-Task Learning, 2024, arXiv 2402.15638"
    state_layout = (("weights", "K"),)

    def __init__(
        self,
        alpha: float = 2.0,
        reduction: Literal["mean", "sum"] = "mean",
        max_norm: float | None = None,
    ) -> None:
        self.alpha = checks.number("alpha", alpha, 0, open_low=True)
        checks.choice("reduction", reduction, ("mean", "sum"))
        if max_norm is not None:
            max_norm = checks.number("max_norm", max_norm, 0, open_low=True)
        self.reduction = reduction
        self.max_norm = max_norm

    def _weights(self, call: Call) -> Tensor:
        limit = math.inf if self.max_norm is None else self.max_norm
        options = (self.alpha, float(self.reduction == "sum"), limit)
        return self._solve(call, options, state=self._flat(call))
