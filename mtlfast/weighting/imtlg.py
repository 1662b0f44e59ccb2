"""IMTLG: an update with the same projection on every task gradient."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting.base import Call, Weighting


class IMTLG(Weighting):
    """Weights with sum 1 whose update projects equally on every task gradient.

    ``<u_i, Jᵀw>`` is the same for all unit gradients ``u_i = g_i / n_i``: with the cosine matrix C,
    ``w = D⁻¹ C⁻¹ 1 / sum`` where ``D = diag(n)``. Solving with the cosines instead of the Gramian
    keeps the digits where norms differ by decades. The weights may be negative.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64. No state.

    The peers' IMTL-G has the same formula. TorchJD takes the pseudo-inverse of the Gramian and
    returns zeros where the sum before the division is below 1e-12, which every gradient above 1e12
    is; LibMTL and nash-mtl give NaN for a zero gradient, and for equal gradients an error or the
    answer of another matrix.

    Degenerate (see ``status``): the gradients depend on each other, so that the weights are not
    unique and equal projections may not exist; then C⁻¹ is the pseudo-inverse, which makes the
    projections as equal as they can be. Where that gives nothing but rounding, as for opposite
    gradients, or the sum of the weights before the division is rounding, the answer is ``1 / n_i``
    over its sum, as for orthogonal gradients. A task with a zero gradient leaves the solve and gets
    weight 0; without any gradient all are 0 (degenerate). Use it where no task may be favoured,
    however long its gradient is. It fails where that sum is nearly zero: the weights, and the
    update, are then as large as the sum is small.

    Raises:
        TypeError: an argument was given.

    Reference: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021,
    OpenReview IMPnRXEWpvr.
    """

    name = "imtlg"
    family = "gramian"
    paper = "Towards Impartial Multi-task Learning, 2021, OpenReview IMPnRXEWpvr"

    def _weights(self, call: Call) -> Tensor:
        return self._solve(call, ())
