"""COSMOS: weighted losses, pulled towards a preferred ratio."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting import checks, per_task
from mtlfast.weighting.base import Call, Weighting
from mtlfast.weighting.per_task import Numbers


class COSMOS(Weighting):
    """Minimises the preferred mix of losses while keeping the losses along the preference.

    The gradient of ``<r, L> - penalty * cos(r, L)``, where r is the preference:
    ``w = r - penalty / |L| * (r / |r| - cos(r, L) L / |L|)``. A task whose loss is too large for
    the preferred ratio gets more than r_i, one too small less, even a negative weight.

    Shapes: losses ``[K]`` -> weights ``[K]`` float64; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    TorchJD's ``COSMOS(lambda_, weights)`` is ``COSMOS(penalty, preference)``; it counts ``|L|``
    below 1e-8 as 1e-8. The full method also feeds r to the model and draws it from a Dirichlet
    distribution at each step: assign ``weighting.preference`` for that.

    Degenerate (see ``status``): all losses are zero, where there is no cosine; then w = r. NaN or
    Inf in the losses gives NaN weights. The second part of w falls with the scale of the losses:
    penalty must be chosen for it. Use it to reach a chosen trade-off between the tasks. It fails
    where the penalty is large: a task is then pushed up to keep the ratio.

    No state.

    Args:
        penalty: lambda of the paper, at least 0; it uses 0.01 to 8. Default 1.
        preference: r, one number per task, at least 0 and not all 0. Default None: 1/K each.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K is not its length.

    Reference: Ruchte and Grabocka, "Scalable Pareto Front Approximation for Deep Multi-Objective
    Learning", ICDM 2021, arXiv 2103.13392.
    """

    name = "cosmos"
    family = "loss"
    paper = (
        "Scalable Pareto Front Approximation for Deep Multi-Objective Learning, "
        "2021, arXiv 2103.13392"
    )
    needs_gramian = False
    needs_losses = True
    weights_losses = True

    def __init__(self, penalty: float = 1.0, preference: Numbers | None = None) -> None:
        self.penalty = checks.number("penalty", penalty, 0)
        self.preference = per_task.preference(preference)

    def _weights(self, call: Call) -> Tensor:
        wanted = per_task.vector("preference", self.preference, call.num_tasks, call.device)
        return self._solve(call, (self.penalty,), losses=call.losses, inputs=wanted)
