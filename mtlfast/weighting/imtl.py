"""IMTL: IMTL-G on the gradients of losses that are learned to be of one size."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class IMTL(Weighting):
    """Brings the losses to one size (IMTL-L) and projects equally on their gradients (IMTL-G).

    The losses are multiplied by ``exp(s_i)``, and s follows ``sum_i exp(s_i) L_i - s_i`` downwards,
    ``s_i <- s_i - lr (exp(s_i) L_i - 1)``, whose fixed point is ``exp(s_i) = 1 / L_i``. With the
    weights a of :class:`IMTLG` for the gradients ``exp(s_i) g_i``, sum 1, the update is
    ``sum_i a_i exp(s_i) g_i``: weights ``a_i exp(s_i)``. IMTL-G's direction does not depend on the
    lengths of the gradients, so that s sets the length of the update only. A call returns the
    weights from before its own update of s: the first call gives those of IMTLG.

    Shapes: gramian ``[K, K]``, losses ``[K]`` -> weights ``[K]`` float64. A task-specific parameter
    gets ``exp(s_k) g_k``, the gradient of its scaled loss, as in the paper's algorithm.

    The paper and LibMTL give s to the optimizer of the model; here it has a step length of its own,
    with no step longer than 1, so that a large loss at the start cannot throw the scales away, and
    ``|s| <= 50``.

    Degenerate (see ``status``): as IMTLG, with the norms of the scaled gradients, or a loss is not
    positive: its s then stays. A task with a zero gradient leaves the solve and gets weight 0.
    Non-finite losses, like a non-finite Gramian, give NaN weights and leave the state alone. Use it
    where the losses differ in size and their heads should not. It fails where a loss goes to zero,
    whose scale then grows without use, and where IMTLG fails.

    State: the scales s.

    Args:
        lr: step length of s, above 0. Default 0.025.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021,
    OpenReview IMPnRXEWpvr.
    """

    name = "imtl"
    family = "gramian"
    paper = "Towards Impartial Multi-task Learning, 2021, OpenReview IMPnRXEWpvr"
    needs_losses = True
    state_layout = (("log_scales", "K"),)

    _scales: Tensor | None = None  # [K] of the last call, from before its update

    def __init__(self, lr: float = 0.025) -> None:
        self.lr = checks.number("lr", lr, 0, open_low=True)

    def _weights(self, call: Call) -> Tensor:
        state = self._flat(call)
        self._scales = state.exp()
        return self._solve(call, (self.lr,), losses=call.losses, state=state)

    def own_weights(self, weights: Tensor, losses: Tensor) -> Tensor:
        """``exp(s)`` ``[K]``, as the last call had it."""
        del losses
        return torch.ones_like(weights) if self._scales is None else self._scales

    def reset(self) -> None:
        """Forgets the scales; the next call is the first."""
        super().reset()
        self._scales = None
