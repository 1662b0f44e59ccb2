"""ConFIG: one direction at equal angles to all task gradients."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting import per_task
from mtlfast.weighting.base import Call, Weighting


class ConFIG(Weighting):
    """Follows the direction whose cosines with the task gradients are in given proportions.

    With the unit gradients U, ``C = U Uᵀ`` and ``x = C⁺ p``, the direction is ``e = Uᵀx / |Uᵀx|``:
    ``<u_i, e>`` is proportional to p_i, equal for all tasks by default. Its length is the sum of
    the gradients' projections on it, ``sum_i <g_i, e>``, so that parallel gradients give their sum.
    The weights are ``length x_i / (n_i |Uᵀx|)``. Where C is singular the cosines are as near to p
    as they can be.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64. No state.

    These are the formulas of the paper, of TorchJD's ConFIG and of conflictfree's with equal
    weights and projection lengths. Both of them decompose the K x P matrix in its own precision;
    for two opposite gradients in float32 they return an update of half a gradient's length that is
    all rounding, and conflictfree stops with an error on float64 gradients.

    Degenerate (see ``status``): no direction has such cosines, as for two opposite gradients, or
    all gradients are zero. Then all weights are 0. A task with a zero gradient leaves the solve and
    gets weight 0. Use it where all losses have to fall together, such as the residual, boundary and
    initial conditions of one differential equation. It fails where gradients are nearly opposite:
    the only direction with equal cosines is then nearly orthogonal to all, and the update short.

    Args:
        preference: p, one number per task, at least 0 and not all 0; only their proportions count.
            Default None: all equal.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K is not the number of
            preferences.

    Reference: Liu et al., "ConFIG: Towards Conflict-free Training of Physics Informed Neural
    Networks", ICLR 2025, arXiv 2408.11104.
    """

    name = "config"
    family = "gramian"
    paper = (
        "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, 2025, "
        "arXiv 2408.11104"
    )

    def __init__(self, preference: per_task.Numbers | None = None) -> None:
        self.preference = per_task.preference(preference)

    def _weights(self, call: Call) -> Tensor:
        given = per_task.vector("preference", self.preference, call.num_tasks, call.device)
        return self._solve(call, (), inputs=given)
