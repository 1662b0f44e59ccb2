"""PBI: along a preferred ray of losses, with a penalty on the distance from it."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting import checks, per_task
from mtlfast.weighting.base import Call, Weighting
from mtlfast.weighting.per_task import Numbers


class PBI(Weighting):
    """Minimises the losses along a preferred ray, and their distance from that ray.

    With u the unit vector of the preference, ``f = L - reference``, ``d1 = <f, u>`` and
    ``d2 = |f - d1 u|``, the gradient of ``d1 + theta d2`` is ``w = u + theta (f - d1 u) / d2``. A
    task too good for the preferred ratio can get a negative weight.

    Shapes: losses ``[K]`` -> weights ``[K]`` float64; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    TorchJD's ``PBI(theta, weights, reference)`` is ``PBI(theta, preference, reference)``; it adds
    1e-12 to the square of d2. Here nothing is added: on the ray itself, where d2 has a kink, the
    answer is the subgradient w = u, and rounding (d2 below about 1e-15 |f|) counts as on the ray.

    Never degenerate (see ``status``). NaN or Inf in the losses gives NaN weights. Scaling all of
    ``L - reference`` changes nothing; scaling one loss moves the ray. Use it to reach a chosen
    trade-off between the tasks. It fails where theta is large: near the ray the weights jump from
    one side to the other at each step, and a task is pushed up to keep the ratio.

    No state.

    Args:
        theta: penalty on the distance from the ray, at least 0. Default 5, as in the paper.
        preference: one number per task, at least 0 and not all 0; only its direction counts.
            Default None: equal ones.
        reference: the ideal point, one number per task. Default None: 0.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K is not its length.

    Reference: Zhang and Li, "MOEA/D: A Multiobjective Evolutionary Algorithm Based on
    Decomposition", IEEE Transactions on Evolutionary Computation 2007,
    doi 10.1109/TEVC.2007.892759.
    """

    name = "pbi"
    family = "loss"
    paper = (
        "MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition, "
        "2007, doi 10.1109/TEVC.2007.892759"
    )
    needs_gramian = False
    needs_losses = True
    weights_losses = True

    def __init__(
        self,
        theta: float = 5.0,
        preference: Numbers | None = None,
        reference: Numbers | None = None,
    ) -> None:
        self.theta = checks.number("theta", theta, 0)
        self.preference = per_task.preference(preference)
        self.reference = per_task.optional("reference", reference)

    def _weights(self, call: Call) -> Tensor:
        losses = call.losses
        assert losses is not None  # _check has made sure
        given = (call.num_tasks, call.device)
        preference = per_task.vector("preference", self.preference, *given)
        reference = per_task.vector("reference", self.reference, *given)
        if reference is not None:
            losses = losses - reference
        return self._solve(call, (self.theta,), losses=losses, inputs=preference)
