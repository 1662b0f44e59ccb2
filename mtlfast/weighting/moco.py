"""MoCo: task gradients tracked over the steps, and weights that follow them slowly."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast import ops
from mtlfast.ops import TaskGrads
from mtlfast.weighting import checks
from mtlfast.weighting.base import Call
from mtlfast.weighting.buffered import Buffered


class MoCo(Buffered):
    """Tracks every task gradient by a moving average, and the best weights by small steps.

    A minibatch's gradients are noisy, and so the minimum-norm weights of MGDA are biased. Here
    ``Y <- Y + beta_t (J - Y)`` averages the noise out, ``lambda <- P(lambda - gamma_t (Y Yᵀ lambda
    + rho lambda))``, P the projection onto the simplex, takes one step towards the minimum norm,
    and the update is ``d = Yᵀ lambda``. In step t, ``beta_t = beta / t^beta_decay`` and ``gamma_t =
    gamma / t^gamma_decay``. It starts with Y = 0 and ``lambda = 1/K``.

    Shapes: gramian ``[K, K]`` of the buffers Y -> weights ``[K]`` float64, at least 0 and of sum 1.
    ``optimizer.last.gramian`` is the buffers' as well.

    The defaults are those of the authors' later code (Trade-Off-MOL: constant rates, 0.1 each,
    ``rho=0.1``). Their first code is ``MoCo(beta, 2 * gamma, 0.0, 0.5, 0.5)``: rates that fall like
    the root of the steps, and twice the step of lambda. LibMTL's MoCo is another algorithm: each
    gradient is brought to the length of its loss, and a softmax of lambda stands in for the
    projection.

    Never degenerate: with zero gradients only rho moves lambda, towards 1/K. Where a gradient or
    its buffer is not finite the weights are NaN and buffers and state stay as they were, so that a
    step that ``GradScaler`` skips does no harm. Use it where batches are small and noisy. It fails
    where gradients are large: gamma is a rate for squared gradients, hence depends on their scale,
    and with gamma ``|g|²`` much above 1 lambda jumps from corner to corner; scaled losses are of
    that kind, and a scale that ``GradScaler`` changes is in the buffers late. They lag by about
    1/beta steps, and in half precision steps of less than 1/256 of a buffer are lost.

    Memory: ``K P`` elements of the gradients' dtype between steps, ``2 K P`` from ``backward`` to
    ``step`` (the former buffers are the way back), beside the task gradients.

    State: number of updates, lambda, and the buffers under "buffer".

    Args:
        beta: share of a new gradient in its buffer, in (0, 1]. Default 0.1; 1 keeps no history.
        gamma: rate of lambda, at least 0. Default 0.1.
        rho: pull of lambda towards 1/K, at least 0. Default 0.1.
        beta_decay: exponent of t below beta, at least 0. Default 0.0: constant.
        gamma_decay: exponent of t below gamma, at least 0. Default 0.0: constant.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K or shapes differ from
            earlier ones.

    Reference: Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably
    Convergent Stochastic Approach", ICLR 2023, arXiv 2210.12624.
    """

    name = "moco"
    family = "buffer"
    paper = (
        "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Stochastic "
        "Approach, 2023, arXiv 2210.12624"
    )
    state_layout = (("num_updates", "1"), ("weights", "K"))

    def __init__(
        self,
        beta: float = 0.1,
        gamma: float = 0.1,
        rho: float = 0.1,
        beta_decay: float = 0.0,
        gamma_decay: float = 0.0,
    ) -> None:
        self.beta = checks.share("beta", beta)
        self.gamma = checks.number("gamma", gamma, 0)
        self.rho = checks.number("rho", rho, 0)
        self.beta_decay = checks.number("beta_decay", beta_decay, 0)
        self.gamma_decay = checks.number("gamma_decay", gamma_decay, 0)

    def transform(self, task_grads: TaskGrads, losses: Tensor) -> TaskGrads:
        """The buffers with these gradients in them; see :meth:`Weighting.transform`."""
        rate = self.beta / self._step_number(task_grads, losses) ** self.beta_decay
        shares = torch.stack([rate, 1 - rate])
        previous = self._previous(task_grads)
        return self._arrive(
            [
                ops.combine([row, kept], shares)
                for row, kept in zip(task_grads, previous, strict=True)
            ]
        )

    def _weights(self, call: Call) -> Tensor:
        options = (self.gamma, self.rho, self.gamma_decay)
        weights = self._solve(call, options, state=self._flat(call))
        self._settle()
        return weights
