"""DB-MTL: logarithms of the losses, and task gradients of one common length."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast import ops
from mtlfast.ops import TaskGrads
from mtlfast.weighting import checks
from mtlfast.weighting.base import Call
from mtlfast.weighting.buffered import Buffered

_OFFSET = 1e-8  # the paper's, inside the logarithm


class DBMTL(Buffered):
    """Balances the losses by their logarithms and the gradients by the longest one's length.

    The gradient of ``log(L_i + 1e-8)`` is ``h_i = g_i / (L_i + 1e-8)``. Its moving average ``y_i <-
    beta_t y_i + (1 - beta_t) h_i``, ``beta_t = beta / t^sigma`` in step t, starts at zero, and the
    update is ``d = sum_i w_i y_i`` with ``w_i = max_j |y_j| / |y_i|``: all K terms are as long as
    the longest. With ``beta=0`` there is no buffer, and ``w_i = max_j |h_j| / |g_i|`` follows from
    the Gramian of the gradients and the losses.

    Shapes: gramian ``[K, K]`` of the buffers (of the gradients with ``beta=0``), of which only the
    diagonal is read, losses ``[K]`` -> weights ``[K]`` float64 of the rows that it was made of. A
    task-specific parameter gets its log-loss gradient, ``g_i / (L_i + 1e-8)``.

    LibMTL's default is ``sigma=0``. It adds 1e-8 to ``|y_i|``; nothing is added here, so that the
    weights do not depend on the scale.

    A zero gradient gets weight 0. Degenerate (see ``status``): all are zero, or a loss is not above
    zero. Such a task has no logarithm and leaves the step: weight 0, for its own parameters too,
    and a zero in its average. Where a gradient or loss is not finite the weights are NaN and
    buffers and state stay as they were. Use it where losses differ in scale by decades. It fails
    where a loss falls towards zero: its log-loss gradient, and with it the whole update, grows
    without bound; where a task is learned, since its gradient is then noise brought to full length;
    and under ``GradScaler``, which divides an update that did not grow with the losses: give it
    losses that are not scaled. In float16 buffers overflow where ``|g_i| / L_i`` is above 65504, in
    any half type slow changes of them are lost.

    Memory: with ``beta > 0`` ``K P`` elements of the gradients' dtype between steps, ``2 K P`` from
    ``backward`` to ``step`` (the former buffers are the way back), beside the task gradients; none
    with ``beta=0``.

    State: number of updates, and the buffers under "buffer"; none with ``beta=0``.

    Args:
        beta: share of the former average, in [0, 1). Default 0.9.
        sigma: exponent of t below beta, at least 0. Default 0.5.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K or shapes differ from
            earlier ones.

    Reference: Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, arXiv 2308.12029.
    """

    name = "dbmtl"
    family = "buffer"
    paper = "Dual-Balancing for Multi-Task Learning, 2023, arXiv 2308.12029"
    needs_losses = True

    def __init__(self, beta: float = 0.9, sigma: float = 0.5) -> None:
        self.beta = checks.number("beta", beta, 0, 1)
        self.sigma = checks.number("sigma", sigma, 0)
        self.keeps_buffers = self.beta > 0
        self.state_layout = (("num_updates", "1"),) if self.keeps_buffers else ()

    @property
    def compares_raw(self) -> bool:
        """True with ``beta=0``."""
        return not self.keeps_buffers

    def transform(self, task_grads: TaskGrads, losses: Tensor) -> TaskGrads:
        """The buffers with these log-loss gradients in them; with ``beta=0`` the gradients."""
        if not self.keeps_buffers:
            return task_grads
        kept = self.beta / self._step_number(task_grads, losses) ** self.sigma
        fresh = (1 - kept) * self._log_slopes(losses).to(kept.device)
        shares = torch.stack([fresh, kept.expand_as(fresh)], 1)  # [K, 2]
        previous = self._previous(task_grads)
        return self._arrive(
            [
                ops.combine([row, old], share)
                for row, old, share in zip(task_grads, previous, shares, strict=True)
            ]
        )

    def own_weights(self, weights: Tensor, losses: Tensor) -> Tensor:
        """``[K]`` factors that make a task's own gradients those of its log loss; 0 without one."""
        del weights
        return self._log_slopes(losses)

    def _log_slopes(self, losses: Tensor) -> Tensor:
        losses = losses.double()
        return torch.where(losses > 0, 1 / (losses + _OFFSET), losses * 0.0)  # NaN stays NaN

    def _weights(self, call: Call) -> Tensor:
        weights = self._solve(
            call,
            (float(self.keeps_buffers),),
            losses=call.losses,
            state=self._flat(call) if self.keeps_buffers else None,
        )
        self._settle()
        return weights
