"""STCH: a smooth maximum of the losses."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting import checks, per_task
from mtlfast.weighting.base import Call, Weighting
from mtlfast.weighting.per_task import Numbers


class STCH(Weighting):
    """Follows a smooth maximum of the losses, so that the worst task gets most of the weight.

    The gradient of ``mu log sum_i exp(lambda_i f_i / mu)``, where lambda is the preference:
    ``w = lambda o softmax(lambda o f / mu)`` on each f_i. It nears ``max_i lambda_i f_i`` as mu
    goes to 0.

    Shapes: losses ``[K]`` -> weights ``[K]`` float64; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    Three conventions are in use. The paper: ``f = L - reference`` with the ideal point as the
    reference and lambda on the simplex. TorchJD: the same with lambda = 1/K, the default here. The
    official multi-task code: ``f = log(L / nadir)``, lambda = 1 and the result times K; here
    ``nadir=`` chooses the logarithm (then ``w_i`` above is divided by ``L_i``), and
    ``preference=[K] * K`` with mu K times as large gives the rest: ``STCH(mu=3.0, nadir=nadir,
    preference=[3, 3, 3])`` is its mu = 1 with three tasks. It takes the mean losses of its warm-up
    epochs for the nadir, and minimises the sum of the log losses meanwhile, which is
    :class:`~mtlfast.weighting.si.SI`. ``nadir=[1] * K`` takes the logarithm of the losses as they
    are.

    Degenerate (see ``status``): with a nadir, a loss that is not positive has no logarithm; its
    task gets weight 0. NaN or Inf in the losses gives NaN weights. Without a nadir the losses
    should be of one scale: mu is in their unit, and the largest rules. With one, scaling a loss
    together with its nadir changes nothing in ``w_i L_i``. Use it where the worst task counts. It
    fails where one loss is larger than all others but cannot fall: the others then wait for it.

    No state.

    Args:
        mu: smoothing, above 0. Default 1, as in the official multi-task code.
        nadir: one number above 0 per task: compare the logarithms of ``L / nadir``. Default None:
            compare the losses.
        preference: lambda, one number per task, at least 0 and not all 0. Default None: 1/K each.
        reference: the ideal point, one number per task, subtracted from the losses; without
            ``nadir`` only. Default None: 0.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K is not its length.

    Reference: Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization",
    ICML 2024, arXiv 2402.19078.
    """

    name = "stch"
    family = "loss"
    paper = (
        "Smooth Tchebycheff Scalarization for Multi-Objective Optimization, 2024, arXiv 2402.19078"
    )
    needs_gramian = False
    needs_losses = True
    weights_losses = True

    def __init__(
        self,
        mu: float = 1.0,
        nadir: Numbers | None = None,
        preference: Numbers | None = None,
        reference: Numbers | None = None,
    ) -> None:
        self.mu = checks.number("mu", mu, 0, open_low=True)
        self.nadir = per_task.optional("nadir", nadir, 0, open_low=True)
        self.preference = per_task.preference(preference)
        self.reference = per_task.optional("reference", reference)
        if self.nadir is not None and self.reference is not None:
            raise ValueError(f"reference: expected None beside a nadir, found {self.reference}")

    def _weights(self, call: Call) -> Tensor:
        losses = call.losses
        assert losses is not None  # _check has made sure
        given = (call.num_tasks, call.device)
        nadir = per_task.vector("nadir", self.nadir, *given)
        preference = per_task.vector("preference", self.preference, *given)
        reference = per_task.vector("reference", self.reference, *given)
        if nadir is not None:
            losses = losses / nadir
        if reference is not None:
            losses = losses - reference
        options = (self.mu, float(nadir is not None))
        weights = self._solve(call, options, losses=losses, inputs=preference)
        return weights if nadir is None else weights / nadir
