"""AlignedMTL: the principal components of the task gradients, all of one length."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlfast.weighting import checks, per_task
from mtlfast.weighting.base import Call, Weighting

_SCALES = ("min", "median", "rmse")


class AlignedMTL(Weighting):
    """Makes the task gradients orthogonal and equally long, and adds what that leaves of them.

    With ``G = V diag(lambda) Vᵀ`` on its rank, the aligned gradients ``B J`` with
    ``B = sqrt(level) V diag(lambda)^-½ Vᵀ`` are the nearest ones to J whose Gramian has condition
    number 1; the level is one of the eigenvalues, see ``scale``. The weights are ``B p`` with the
    preference p. An eigenvalue counts towards the rank where it is above ``K eps`` times the
    largest in float64, and a gradient that lies, to rounding, in the span of others adds nothing to
    it. The eigenvalues are found by one-sided Jacobi rotations of a Cholesky factor, so that norms
    over many decades keep their digits.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64. No state.

    The default preference, 1/K each, gives TorchJD's mean of the aligned gradients. The paper, its
    official code and LibMTL take their sum: ``preference=[1.0] * K``. All of them have "min" as the
    default; TorchJD's ``scale_mode`` has the other two as well. In float32 the peers' eigensolvers
    lose every eigenvalue below 1e-7 of the largest: norms over four decades then give an answer
    that is wrong by a factor of 1e4. LibMTL calls ``torch.symeig``, which torch no longer has.

    Degenerate (see ``status``): all gradients are zero. Then the weights are the preference. A task
    with a zero gradient gets weight 0, as does the part of p outside the rank. Use it where
    gradients both conflict and differ in length: it settles the two at once. It fails where they
    nearly depend on each other: with "min" the update is as short as the least certain eigenvalue
    says, and its direction as noisy.

    Args:
        scale: the level, that is the squared length of an aligned gradient: the smallest
            eigenvalue ("min"), the lower median ("median") or the mean ("rmse"). Default "min".
        preference: p, one number per task, at least 0 and not all 0. Default None: 1/K each.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K is not the number of
            preferences.

    Reference: Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR
    2023, arXiv 2305.19000.
    """

    name = "aligned_mtl"
    family = "gramian"
    paper = "Independent Component Alignment for Multi-Task Learning, 2023, arXiv 2305.19000"

    def __init__(
        self,
        scale: Literal["min", "median", "rmse"] = "min",
        preference: per_task.Numbers | None = None,
    ) -> None:
        self._scale = checks.choice("scale", scale, _SCALES)
        self.scale = scale
        self.preference = per_task.preference(preference)

    def _weights(self, call: Call) -> Tensor:
        given = per_task.vector("preference", self.preference, call.num_tasks, call.device)
        return self._solve(call, (float(self._scale),), inputs=given)
