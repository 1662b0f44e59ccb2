"""Sum: every task counts once."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.weighting.base import Call, Weighting


class Sum(Weighting):
    """Plain joint training on the sum of the losses: ``w_i = 1``.

    Shapes: gramian ``[K, K]`` or losses ``[K]``, one of them to give K -> weights ``[K]`` float64.
    No options, no state, never degenerate.

    "Equal weighting" is this sum in the methods' own code and in LibMTL; TorchJD has both this and
    :class:`~mtlfast.weighting.mean.Mean`. Use it as the baseline, and where losses of one scale
    agree. It fails where the task gradients differ much in length, because the longest decides, and
    where they conflict.
    """

    name = "sum"
    family = "constant"
    paper = ""
    needs_gramian = False
    weights_losses = True

    def _weights(self, call: Call) -> Tensor:
        return torch.ones(call.num_tasks, dtype=torch.float64, device=call.device)
