"""What UPGrad and DualProj share: projections onto the dual cone, by preference."""

from __future__ import annotations

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from mtlfast.weighting import per_task
from mtlfast.weighting.base import Call, Weighting
from mtlfast.weighting.per_task import Numbers


class DualCone(Weighting):
    """A method with a preference that projects onto ``{d : <g_i, d> >= 0 for all i}``."""

    def __init__(self, preference: Numbers | None = None) -> None:
        self.preference = per_task.preference(preference)
        self._preference: Tensor | None = None  # the same on the device of the calls

    def _weights(self, call: Call) -> Tensor:
        kept = None if is_dynamo_compiling() else self._preference
        if kept is None or len(kept) != call.num_tasks or kept.device != call.device:
            kept = per_task.vector("preference", self.preference, call.num_tasks, call.device)
            self._preference = kept
        return self._solve(call, (), inputs=kept)
