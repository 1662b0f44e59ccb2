"""GradVac: gradients are pulled together until they agree as much as they used to."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class GradVac(Weighting):
    """Lifts the cosine between task gradients to its own running mean, then adds the gradients up.

    For each task i: ``v = g_i``; for every other task j in random order, with ``c`` the cosine
    between v and the original g_j and ``phi = phi_ij``: where ``c < phi``,

        v <- v + |v| (phi sqrt(1 - c²) - c sqrt(1 - phi²)) / (|g_j| sqrt(1 - phi²)) g_j,

    after which the cosine is phi; then ``phi_ij <- (1 - beta) phi_ij + beta c`` in any case. The
    update is the sum of the v. All goals phi start at 0, so the first step is that of PCGrad.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64. A call takes ``order=``, ``[K, K]``
    int64: row i lists the tasks as task i meets them, its own index skipped. Without it the order
    is drawn on the device by this weighting's own counter-based generator.

    The update is the sum in the paper, TorchJD and LibMTL ("sum"); beta = 0.5 is the default of
    TorchJD and LibMTL, the paper takes 0.01. Both add 1e-8 to the norms, which turns the update of
    small gradients into another one; nothing is added here, so the answer does not depend on the
    scale. Samsung's code moves a goal only where it has changed v. The paper's grouping of the
    parameters by layer takes one Gramian per group: there is one group here.

    Degenerate (see ``status``): goals so close to 1 that a v beyond 1e100 times the gradients would
    be needed; such a lift is left out. Zero gradients meet nobody and keep their goals, and so does
    a v that has vanished between opposite gradients. No cosine is lifted above 1 - 1.5e-14. Use it
    where tasks are related, such as the languages of one model, and should stay as close as they
    were. It fails where gradients that always agreed turn apart: their goal asks for a very long v.

    State: goals phi (row i: those of task i), seed and counter of the random orders.

    Args:
        beta: how fast the goals follow the cosines, in [0, 1]; 0 is PCGrad. Default 0.5.
        reduction: "sum" or "mean" over the lifted gradients. Default "sum".
        seed: 64-bit seed of the random orders. Default None: drawn at the first use from torch's
            global generator, hence reproducible by ``torch.manual_seed``.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization
    in Massively Multilingual Models", ICLR 2021, arXiv 2010.05874.
    """

    name = "gradvac"
    family = "gramian"
    paper = (
        "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively "
        "Multilingual Models, 2021, arXiv 2010.05874"
    )
    inputs = ("order",)
    state_layout = (("phi", "KK"),)
    draws = True

    def __init__(
        self,
        beta: float = 0.5,
        reduction: Literal["sum", "mean"] = "sum",
        seed: int | None = None,
    ) -> None:
        self.beta = checks.number("beta", beta)
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta: expected a number in [0, 1], found {beta}")
        checks.choice("reduction", reduction, ("sum", "mean"))
        self.reduction = reduction
        self.seed = checks.seed(seed)

    def _weights(self, call: Call) -> Tensor:
        order, rng = self._meetings(call)
        options = (self.beta, float(self.reduction == "mean"))
        return self._solve(call, options, order=order, rng=rng, state=self._flat(call))
