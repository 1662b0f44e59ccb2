"""MoDo: unbiased minimum-norm steps from two independent batches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class MoDo(Weighting):
    """Moves the weights towards the minimum norm by inner products across two batches.

    The Gramian of one batch's gradients overestimates that of the expected gradients by their
    noise. With J1 and J2 of two independent batches ``A = J1 J2ᵀ`` does not: ``lambda <- P(lambda -
    gamma (A lambda + rho lambda))``, P the projection onto the simplex, from ``lambda = 1/K``. The
    update is ``d = (J1 + J2)ᵀ lambda`` with lambda after its step. Give both batches' losses:
    ``optimizer.backward(losses1, losses2)``.

    Shapes: gramian ``[2K, 2K]`` of both batches' gradients, first batch first -> weights ``[2K]``
    float64, twice lambda. A task-specific parameter gets the sum (mean) of its two gradients.

    ``reduction="sum"`` is the authors' code, "mean" TorchJD's example; all take gamma and rho from
    0.1. LibMTL updates by the gradients of a third batch.

    Never degenerate: with zero gradients only rho moves lambda, towards 1/K. NaN or Inf in a
    gradient gives NaN weights and leaves lambda alone. Use it where MGDA suffers from noise and two
    batches a step are affordable. It fails where the two batches are not independent, since the
    bias is back then, and where gradients are large: gamma is a rate for squared gradients, hence
    depends on their scale.

    State: the task weights lambda.

    Args:
        gamma: rate of lambda, at least 0. Default 0.1.
        rho: pull of lambda towards 1/K, at least 0. Default 0.1.
        reduction: "sum" or "mean" of the two batches' gradients. Default "sum".

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Chen et al., "Three-Way Trade-Off in Multi-Objective Learning: Optimization,
    Generalization and Conflict-Avoidance", NeurIPS 2023, arXiv 2305.20057.
    """

    name = "modo"
    family = "buffer"
    paper = (
        "Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and "
        "Conflict-Avoidance, 2023, arXiv 2305.20057"
    )
    num_batches = 2
    state_layout = (("weights", "K"),)

    def __init__(
        self,
        gamma: float = 0.1,
        rho: float = 0.1,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        self.gamma = checks.number("gamma", gamma, 0)
        self.rho = checks.number("rho", rho, 0)
        checks.choice("reduction", reduction, ("sum", "mean"))
        self.reduction = reduction

    def own_weights(self, weights: Tensor, losses: Tensor) -> Tensor:
        """``[K]`` factors of the mean over both batches: 2 where the batches are added up."""
        del losses
        return torch.full_like(weights, 2.0 if self.reduction == "sum" else 1.0)

    def _weights(self, call: Call) -> Tensor:
        options = (self.gamma, self.rho, float(self.reduction == "mean"))
        return self._solve(call, options, state=self._flat(call))
