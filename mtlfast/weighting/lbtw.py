"""LBTW: tasks that have learned much in this epoch step back."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class LBTW(Weighting):
    """Weights each task by how much of its loss at the epoch's start is left.

    ``w_i = (L_i / F_i)^alpha``, F the losses of the epoch's first batch, which therefore gets
    weight 1 for every task. ``end_epoch()`` makes the next call the first of an epoch::

        for batch in loader:
            ...  # optimizer.backward(losses); optimizer.step()
        optimizer.weighting.end_epoch()

    Shapes: losses ``[K]`` -> weights ``[K]`` float64; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    ``alpha=0`` is plain training on the sum. Without ``end_epoch()`` the first call of the run
    stays the measure. The rates of :class:`~mtlfast.weighting.gradnorm.GradNorm` are the same
    ratios; there they are targets for gradient norms.

    Degenerate (see ``status``): a task that has had no positive loss in this epoch gets weight 1,
    one whose loss has turned negative 0. NaN or Inf in the losses gives NaN weights and leaves the
    state alone. Scaling a loss changes nothing, since rates are ratios. Use it where tasks learn at
    different speeds. It fails where losses differ in scale, which it does not see, and where the
    first batch is no typical one, since the whole epoch is measured by it.

    State: batches of this epoch, losses of its first one.

    Args:
        alpha: strength, at least 0. Default 0.5.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Liu et al., "Loss-Balanced Task Weighting to Reduce Negative Transfer in Multi-Task
    Learning", AAAI 2019, doi 10.1609/aaai.v33i01.33019977.
    """

    name = "lbtw"
    family = "loss"
    paper = (
        "Loss-Balanced Task Weighting to Reduce Negative Transfer in Multi-Task Learning, "
        "2019, doi 10.1609/aaai.v33i01.33019977"
    )
    needs_gramian = False
    needs_losses = True
    weights_losses = True
    state_layout = (("num_batches", "1"), ("first_losses", "K"))

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = checks.number("alpha", alpha, 0)

    def _weights(self, call: Call) -> Tensor:
        return self._solve(call, (self.alpha,), losses=call.losses, state=self._flat(call))

    def end_epoch(self) -> None:
        """Makes the next call the first of an epoch."""
        if self._state is not None:
            self._state.zero_()
