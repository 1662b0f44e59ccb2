"""MGDA: the shortest mixture of the task gradients."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting

_NORMALIZATIONS = ("none", "l2", "loss", "loss+")


class MGDA(Weighting):
    """Takes the shortest vector among the mixtures of the task gradients.

    ``w = argmin |Jᵀw|`` over the simplex (``w >= 0``, ``sum w = 1``). Every task then gains the
    same, ``<g_i, d> = |d|²``, or more where its weight is 0, and ``d = 0`` says that the point is
    Pareto stationary. It is solved exactly, by Wolfe's active set on the Gramian; d is unique even
    where w is not. With a normalisation it is the shortest mixture of the ``g_i / s_i``, and the
    weights are ``w_i / s_i``: ``s_i = |g_i|`` ("l2"), the loss ("loss") or their product ("loss+").

    Shapes: gramian ``[K, K]``, losses ``[K]`` with "loss" and "loss+" -> weights ``[K]`` float64.
    No state.

    "none" is Désidéri's formula and TorchJD's, LibMTL's and the official code's default; nash-mtl
    multiplies by K. LibMTL applies w to the normalised gradients, as here; nash-mtl and FAMO's code
    apply it to the losses as they are. The peers stop early: TorchJD after a hundred Frank-Wolfe
    steps, 20 % off on ordinary gradients and far more on conflicting ones. The official solver,
    which LibMTL keeps, may never stop, and cannot start where squared norms exceed 1e8.

    Never degenerate but for the losses: gradients with 0 among their mixtures have the answer 0, to
    rounding, and those that are zero share the weight 1. A loss that is not positive cannot divide:
    the answer is then that of "none" or "l2" (see ``status``). With "none" and "loss" the weights
    do not depend on the scale of the gradients, with "l2" and "loss+" they divide by it. Use it to
    find Pareto-stationary points, or with "l2" as a balance of directions. It fails where a short
    gradient rules: one task that has converged keeps the update of all near zero.

    Args:
        normalization: what a gradient is divided by first, "none", "l2", "loss" or "loss+" (both).
            Default "none".

    Raises:
        ValueError: an argument out of its range; at a call, no losses where they are needed.

    Reference: Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS
    2018, arXiv 1810.04650; the algorithm by Désidéri, "Multiple-gradient descent algorithm (MGDA)
    for multiobjective optimization", Comptes Rendus Mathematique 2012.
    """

    name = "mgda"
    family = "gramian"
    paper = "Multi-Task Learning as Multi-Objective Optimization, 2018, arXiv 1810.04650"

    def __init__(self, normalization: Literal["none", "l2", "loss", "loss+"] = "none") -> None:
        checks.choice("normalization", normalization, _NORMALIZATIONS)
        self.normalization = normalization
        self.needs_losses = normalization in ("loss", "loss+")

    def _weights(self, call: Call) -> Tensor:
        lengths = self.normalization in ("l2", "loss+")
        losses = call.losses if self.needs_losses else None
        return self._solve(call, (float(lengths), float(self.needs_losses)), losses=losses)
