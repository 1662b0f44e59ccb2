"""SI: the sum of the log losses."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting.base import Call, Weighting


class SI(Weighting):
    """Minimises the sum of the log losses, which no loss's scale can change: ``w_i = 1 / L_i``.

    Shapes: losses ``[K]`` -> weights ``[K]`` float64; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    No options. It is the scale-invariant baseline of the Nash-MTL paper and code, and what the
    official code of STCH minimises during its warm-up. The fixed point of
    :class:`~mtlfast.weighting.imtll.IMTLL` without the learning; the direction of
    :class:`~mtlfast.weighting.gls.GLS`.

    Degenerate (see ``status``): a task whose loss is not positive has no logarithm and gets weight
    0. NaN or Inf in the losses gives NaN weights. Scaling a loss changes nothing. Use it as the
    baseline where losses differ in unit or scale and stay positive. It fails where a loss goes to
    zero: its weight grows without end, and its noise rules the step.

    No state.

    Reference: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022,
    arXiv 2202.01017, section 5 (baselines).
    """

    name = "si"
    family = "loss"
    paper = "Multi-Task Learning as a Bargaining Game (baseline), 2022, arXiv 2202.01017"
    needs_gramian = False
    needs_losses = True
    weights_losses = True

    def _weights(self, call: Call) -> Tensor:
        return self._solve(call, (), losses=call.losses)
