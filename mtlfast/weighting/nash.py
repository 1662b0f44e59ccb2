"""Nash-MTL: the update on which the tasks, as bargainers, agree."""

from __future__ import annotations

import math

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class NashMTL(Weighting):
    """Takes the Nash bargaining solution: the direction of the largest product of improvements.

    ``d`` maximises ``sum_i log <g_i, d>`` over a ball, which is ``d = Jᵀa`` with ``a > 0`` and
    ``G a = 1 / a``: every task contributes ``a_i <g_i, d> = 1``. The root is found by Newton's
    method to rounding, at every scale of the gradients.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64, of the true size: s times longer
    gradients have s times smaller weights, so that only the directions of the gradients matter.

    At the root ``|d| = sqrt(K)`` whatever the losses are, so with ``max_norm=1`` (the paper's, and
    that of its code, LibMTL and TorchJD) EVERY update has length 1. Set the learning rate for that:
    weights of 1e-3 are those of gradients of length 1000, not a method that does not train.
    ``max_norm=None`` leaves the root as it is; ``FairGrad(alpha=1)`` gives the same. The official
    code and LibMTL shorten the gradient, here as in TorchJD the weights are made smaller; they
    multiply a task-specific parameter's gradient by its weight, which here as in TorchJD stays as
    it is. The official solver, also TorchJD's, stops early: its answer is off by 4 times its length
    on conflicting gradients, 40 times on unequal ones. TorchJD's ``max_norm=0`` is None here.

    Degenerate (see ``status``): no root exists where 0 is in the convex hull of the gradients, up
    to rounding: a combination of them is shorter than 5e-7 of the sum of their weighted lengths.
    Then the last weights are used again, at first ``1 / n_i`` with ``n_i = |g_i|``, made smaller
    only where the update would be longer than ``max_norm``. A task with a zero gradient leaves the
    solve and gets weight 0. Use it where the gradients differ much in length for no good reason, as
    the losses of physics-informed networks do. It fails where the lengths should count: a task
    about to converge pulls as hard as any other, and the step does not shrink near the optimum.

    State: weights of the last root.

    Args:
        max_norm: largest length of the update, above 0; None for no limit. Default 1.0.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022,
    arXiv 2202.01017.
    """

    name = "nash_mtl"
    family = "gramian"
    paper = "Multi-Task Learning as a Bargaining Game, 2022, arXiv 2202.01017"
    state_layout = (("weights", "K"),)

    def __init__(self, max_norm: float | None = 1.0) -> None:
        if max_norm is not None:
            max_norm = checks.number("max_norm", max_norm, 0, open_low=True)
        self.max_norm = max_norm

    def _weights(self, call: Call) -> Tensor:
        limit = math.inf if self.max_norm is None else self.max_norm
        return self._solve(call, (limit,), state=self._flat(call))
