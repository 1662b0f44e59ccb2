"""SDMGrad: near the mean gradient, a minimum norm from three independent batches."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class SDMGrad(Weighting):
    """Finds the minimum-norm weights near equal ones from two batches and updates by a third.

    With r the ``regularization`` and u = 1/K, w minimises ``|Jᵀ(w + r u)|²`` over the simplex. Its
    gradient is estimated without bias by ``A (w + r u)``, ``A = J1 J2ᵀ`` over the square of the
    mean of ``sqrt(max(A_ii, 0))``: ``num_steps`` steps ``v <- momentum v + A (w + r u)``, ``w <-
    P(w - lr v)``, P the projection onto the simplex, start where the last call ended (1/K at
    first). The update is ``d = J3ᵀ (w + r u) / (1 + r)``. Give the losses of three independent
    batches: ``optimizer.backward(losses1, losses2, losses3)``.

    Shapes: gramian ``[3K, 3K]`` of the batches' gradients, one batch after another -> weights
    ``[3K]`` float64: zeros for the first two, whose gradients are compared and not combined. A
    task-specific parameter gets the mean of its three gradients.

    The defaults are the paper's experiments' and TorchJD's; LibMTL has ``lr=5``, the authors'
    class ``regularization=0.6``. The peers add 1e-8 to the square that A is divided by, which
    shortens the steps for small gradients; nothing is added here, so the answer does not depend on
    the scale. In the authors' code the three sets of gradients share their memory, so that in
    effect it uses one batch.

    Where no ``A_ii`` is positive, the mean is that of ``sqrt(|g_i| |g_i'|)``, the most that it can
    be. Degenerate (see ``status``): that is zero too; w stays as it was. NaN or Inf in any of the
    three batches gives NaN weights and leaves w alone. Use it where a preference for the mean
    gradient and small noise in the weights are worth three batches a step. It fails where batches
    are not independent, and where they are so small that A is mere noise: with lr = 10 the weights
    then jump between corners.

    State: the task weights w.

    Args:
        lr: rate of w, above 0. Default 10.0.
        momentum: share of the former step in the next, in [0, 1). Default 0.5.
        regularization: pull r towards the mean gradient, at least 0. Default 0.3.
        num_steps: steps of w in each call, at least 1. Default 20.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Xiao et al., "Direction-oriented Multi-objective Learning: Simple and Provable
    Stochastic Algorithms", NeurIPS 2023, arXiv 2305.18409.
    """

    name = "sdmgrad"
    family = "buffer"
    paper = (
        "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms, "
        "2023, arXiv 2305.18409"
    )
    num_batches = 3
    state_layout = (("weights", "K"),)

    def __init__(
        self,
        lr: float = 10.0,
        momentum: float = 0.5,
        regularization: float = 0.3,
        num_steps: int = 20,
    ) -> None:
        self.lr = checks.number("lr", lr, 0, open_low=True)
        self.momentum = checks.number("momentum", momentum, 0, 1)
        self.regularization = checks.number("regularization", regularization, 0)
        self.num_steps = checks.count("num_steps", num_steps, 1)

    def _weights(self, call: Call) -> Tensor:
        options = (self.lr, self.momentum, self.regularization, float(self.num_steps))
        return self._solve(call, options, state=self._flat(call))
