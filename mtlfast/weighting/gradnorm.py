"""GradNorm: learned weights that pull the gradient norms to a common level."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class GradNorm(Weighting):
    """Learns weights that balance the norms of the task gradients against the training rates.

    With ``n_i = |g_i|`` (unweighted) and the rate ``r_i = (L_i / L0_i) / mean_j (L_j / L0_j)``,
    L0 the losses of the first call, the weights go down the gradient of
    ``sum_i | w_i n_i - mean_j(w_j n_j) r_i^alpha |``, the second term held constant:
    ``n_i sign(...)``. So norms are all it needs, and no double backward. A call returns the weights
    from before its own update: the first call gives 1 for every task. They sum to K.

    Shapes: gramian ``[K, K]`` (only its diagonal is read), losses ``[K]`` -> weights ``[K]``
    float64. A task-specific parameter gets ``w_k g_k``, as the weighted losses would give it.

    The paper's W is the last shared layer: choose it with ``gramian_params=`` of the optimizer.
    LibMTL takes all shared parameters, Samsung's code and physicsnemo the last one. LibMTL's form
    is ``parametrization="softmax"`` (it steps the logits with the model's optimizer, and its L0 is
    the mean of the first epoch). gradnorm-pytorch raises the rates to -alpha: the opposite pull.

    Relative Adam, the default, divides n by its mean over the tasks and takes the step
    ``w <- w (1 - lr m / sqrt(v))`` (0.9 and 0.999, bias-corrected; on logits ``s <- s - lr m /
    sqrt(v)``), then raises weights below 1e-6 to it and divides so that they sum to K. It does not
    depend on the scale of the gradients and trains through a loss imbalance of 100, where
    the paper's raw step ("sgd", ``w <- w - lr n sign(...)``) is too long for the long gradients.

    Degenerate (see ``status``): every weighted norm is zero; nothing is updated. A loss that starts
    at zero has rate 1 until it is nonzero, which then is its L0. Non-finite losses, like a
    non-finite Gramian, give NaN weights and leave the state alone. Use it where all tasks should
    train at one rate, with steps that weigh them smoothly. It fails where the losses reach zero or
    change sign, since the rates are ratios; and it moves by ``lr`` a step, not at once.

    State: number of updates, weights or logits, initial losses, Adam's moments.

    Args:
        alpha: strength of the pull towards equal rates, at least 0. Default 1.5, as in the paper's
            NYUv2 runs and LibMTL; the paper's toy example uses 0.12.
        lr: step length, above 0. Default 0.025.
        optimizer: "adam" (relative, see above) or "sgd". Default "adam".
        parametrization: "sum" holds the weights themselves, "softmax" logits s with
            ``w = K softmax(s)``. Default "sum".

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks", ICML 2018, arXiv 1711.02257.
    """

    name = "gradnorm"
    family = "gramian"
    paper = (
        "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks, "
        "2018, arXiv 1711.02257"
    )
    needs_losses = True
    weights_losses = True

    def __init__(
        self,
        alpha: float = 1.5,
        lr: float = 0.025,
        optimizer: Literal["adam", "sgd"] = "adam",
        parametrization: Literal["sum", "softmax"] = "sum",
    ) -> None:
        self.alpha = checks.number("alpha", alpha, 0)
        self.lr = checks.number("lr", lr, 0, open_low=True)
        checks.choice("optimizer", optimizer, ("adam", "sgd"))
        checks.choice("parametrization", parametrization, ("sum", "softmax"))
        self.optimizer = optimizer
        self.parametrization = parametrization
        values = "weights" if parametrization == "sum" else "logits"
        self.state_layout = (
            ("num_updates", "1"),
            ("started", "1"),
            (values, "K"),
            ("initial_losses", "K"),
            ("exp_avg", "K"),
            ("exp_avg_sq", "K"),
        )

    def _weights(self, call: Call) -> Tensor:
        softmax = self.parametrization == "softmax"
        options = (self.alpha, self.lr, float(self.optimizer == "sgd"), float(softmax))
        return self._solve(call, options, losses=call.losses, state=self._flat(call))
