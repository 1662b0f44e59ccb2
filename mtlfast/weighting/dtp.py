"""DTP: the worse a task performs, the more weight it gets."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast import ops
from mtlfast.weighting import checks, per_task
from mtlfast.weighting.base import Call, Weighting
from mtlfast.weighting.per_task import Scalars


class DTP(Weighting):
    """Puts the tasks first that perform worst, by an indicator such as their accuracy.

    With k_i the running mean of the task's key performance indicator (KPI) in (0, 1], the weights
    are those of the focal loss: ``w_i = -(1 - k_i)^gamma log k_i``. The caller hands over new KPIs
    whenever there are some, and ``k <- alpha * kpi + (1 - alpha) * k``::

        optimizer.weighting.observe(accuracies)  # K numbers

    The first KPIs are taken as they are. Before them all weights are 1.

    Shapes: gramian ``[K, K]`` or losses ``[K]``, one of them to give K; neither is read -> weights
    ``[K]`` float64. A task-specific parameter gets ``w_k g_k``, as the weighted losses would give
    it.

    There is no official code, and no peer has the method. The paper orders the tasks by these
    weights; it calls the smoothing factor a discount.

    Never degenerate (see ``status``), and independent of the scale of losses and gradients. Use it
    where the measure that counts is not the loss. It fails where the KPIs differ in meaning: an
    error of 0.1 in one counts as 0.1 in any other. The weights of tasks that are all nearly solved
    go to zero together, and so does the step.

    State: number of observations, running means.

    Args:
        gamma: how much the weight of a good task is reduced further, at least 0. Default 1.
        alpha: share of a new KPI in the running mean, in (0, 1]. Default 0.5.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018,
    doi 10.1007/978-3-030-01270-0_17.
    """

    name = "dtp"
    family = "loss"
    paper = (
        "Dynamic Task Prioritization for Multitask Learning, 2018, doi 10.1007/978-3-030-01270-0_17"
    )
    needs_gramian = False
    weights_losses = True
    state_layout = (("num_observations", "1"), ("means", "K"))

    def __init__(self, gamma: float = 1.0, alpha: float = 0.5) -> None:
        self.gamma = checks.number("gamma", gamma, 0)
        self.alpha = checks.share("alpha", alpha)

    def _weights(self, call: Call) -> Tensor:
        # The losses are not read: zeros tell the solver K, and a NaN in them is not its business.
        losses = torch.zeros(call.num_tasks, dtype=torch.float64, device=call.device)
        return self._solve(call, (self.gamma, self.alpha), losses=losses, state=self._flat(call))

    def observe(self, kpi: Scalars) -> None:
        """Takes in new KPIs; they are read on the host.

        Args:
            kpi: ``[K]``, or K scalars: a list, a tuple, or a dict in the tasks' order; in (0, 1].

        Raises:
            TypeError, ValueError: ``kpi`` are no K numbers in (0, 1]. The state is unchanged.
        """
        values = per_task.scalars("kpi", kpi)
        for i, value in enumerate(values.tolist()):
            checks.share(f"kpi[{i}]", value)
        if self._state is not None and len(values) != self._state_tasks:
            raise ValueError(f"kpi: expected {self._state_tasks} numbers, found {len(values)}")
        if self._state is not None:
            values = values.to(self._state.device)
        call = Call(len(values), values.device, None, values, {})
        options = (self.gamma, self.alpha)
        state = self._flat(call)
        ops.solve(self.name, None, options=options, losses=values, inputs=values, state=state)
