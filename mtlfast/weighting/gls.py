"""GLS: the geometric mean of the losses."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting.base import Call, Weighting


class GLS(Weighting):
    """Minimises the geometric mean of the losses: ``w_i = (L_1 ... L_K)^(1/K) / (K L_i)``.

    Every task then contributes the same ``w_i L_i``, and a fall by the same factor counts the same
    in each. The mean is taken of logarithms, so that no product can overflow or vanish.

    Shapes: losses ``[K]`` -> weights ``[K]`` float64; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    No options. TorchJD's ``GeometricMean`` and LibMTL's ``GLS`` minimise the same; LibMTL forms the
    product itself, which leaves float32 from about ten tasks on. The direction is that of
    :class:`~mtlfast.weighting.si.SI`, at a length that shrinks with the losses.

    Degenerate (see ``status``): a task whose loss is not positive leaves the mean and gets weight
    0. NaN or Inf in the losses gives NaN weights. Scaling one loss scales the whole step, and
    changes no ratio of the ``w_i L_i``. Use it where losses differ in unit or scale and stay
    positive. It fails where a loss goes to zero: its weight grows without end, and its noise rules
    the step.

    No state.

    Reference: Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss
    Strategy for Multi-Task Learning", CVPR workshops 2019, arXiv 1904.08492.
    """

    name = "gls"
    family = "loss"
    paper = (
        "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task "
        "Learning, 2019, arXiv 1904.08492"
    )
    needs_gramian = False
    needs_losses = True
    weights_losses = True

    def _weights(self, call: Call) -> Tensor:
        return self._solve(call, (), losses=call.losses)
