"""PCGrad: conflicting gradients lose the component along each other."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class PCGrad(Weighting):
    """Projects each task gradient off the gradients that it conflicts with, then adds them up.

    For each task i: ``v = g_i``; for every other task j in random order, where ``<v, g_j> < 0``:
    ``v <- v - <v, g_j> / |g_j|² g_j``. The update is the sum of the v. Always against the original
    g_j, so that every inner product is one of the Gramian.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64. A call takes ``order=``, ``[K, K]``
    int64: row i lists the tasks as task i meets them, its own index skipped. Without it the order
    is drawn on the device by this weighting's own counter-based generator.

    The paper, its TensorFlow code, TorchJD, LibMTL and nash-mtl add up ("sum"); Pytorch-PCGrad
    averages whatever it is asked for ("mean"). TorchJD and the paper's Algorithm 1 skip j = i;
    Pytorch-PCGrad, LibMTL, nash-mtl and the TensorFlow code meet it too (``include_self=True``),
    which changes the answer only where the running v conflicts with its own g_i. LibMTL adds 1e-8
    to ``|g_j|²``; nothing is added here, so the answer does not depend on the scale.

    Never degenerate: zero gradients conflict with nobody, exactly opposite ones cancel. With K = 2
    no task is opposed by the update; with more a later projection can undo an earlier one. Use it
    where gradients of similar length conflict. It fails where the gradients differ much in length:
    conflicts are removed, the imbalance stays.

    State: seed and counter of the random orders.

    Args:
        reduction: "sum" or "mean" over the projected gradients. Default "sum".
        include_self: whether task i also meets its own gradient. Default False.
        seed: 64-bit seed of the random orders. Default None: drawn at the first use from torch's
            global generator, hence reproducible by ``torch.manual_seed``.

    Raises:
        TypeError, ValueError: an argument out of its range.

    Reference: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020,
    arXiv 2001.06782.
    """

    name = "pcgrad"
    family = "gramian"
    paper = "Gradient Surgery for Multi-Task Learning, 2020, arXiv 2001.06782"
    inputs = ("order",)
    draws = True

    def __init__(
        self,
        reduction: Literal["sum", "mean"] = "sum",
        include_self: bool = False,
        seed: int | None = None,
    ) -> None:
        checks.choice("reduction", reduction, ("sum", "mean"))
        checks.choice("include_self", include_self, (False, True))
        self.reduction = reduction
        self.include_self = include_self
        self.seed = checks.seed(seed)

    def _weights(self, call: Call) -> Tensor:
        order, rng = self._meetings(call)
        options = (float(self.include_self), float(self.reduction == "mean"))
        return self._solve(call, options, order=order, rng=rng)
