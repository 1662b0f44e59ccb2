"""Mean: the tasks share one unit of weight."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.weighting.base import Call, Weighting


class Mean(Weighting):
    """Plain joint training on the mean of the losses: ``w_i = 1 / K``.

    Shapes: gramian ``[K, K]`` or losses ``[K]``, one of them to give K -> weights ``[K]`` float64.
    No options, no state, never degenerate.

    The same direction as :class:`~mtlfast.weighting.sum.Sum` at a step shorter by K; under Adam the
    two train alike. It reproduces TorchJD's ``Mean``. Use it where the step should not grow with
    the number of tasks. It fails where ``Sum`` does.
    """

    name = "mean"
    family = "constant"
    paper = ""
    needs_gramian = False
    weights_losses = True

    def _weights(self, call: Call) -> Tensor:
        return torch.full(
            (call.num_tasks,), 1.0 / call.num_tasks, dtype=torch.float64, device=call.device
        )
