"""PCGrad: conflicting gradients lose the component along each other."""

from __future__ import annotations

from typing import Any, Literal

import torch
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
    no task is opposed by the update; with more a later projection can undo an earlier one. It fails
    where the gradients differ much in length: conflicts are removed, the imbalance stays.

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

    def __init__(
        self,
        reduction: Literal["sum", "mean"] = "sum",
        include_self: bool = False,
        seed: int | None = None,
    ) -> None:
        checks.choice("reduction", reduction, ("sum", "mean"))
        checks.choice("include_self", include_self, (False, True))
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed: expected an int or None, found {type(seed).__name__}")
        if seed is not None and not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed: expected a 64-bit integer, found {seed}")
        self.reduction = reduction
        self.include_self = include_self
        self.seed = seed
        self._rng: Tensor | None = None  # [2] int64: seed, number of calls that drew from it

    def _weights(self, call: Call) -> Tensor:
        order = call.inputs.get("order")
        rng = None
        if order is None:
            self.prepare(call.device)
            rng = self._rng
        else:
            order = checks.orders("order", order, call.num_tasks).to(call.device)
        options = (float(self.include_self), float(self.reduction == "mean"))
        return self._solve(call, options, order=order, rng=rng)

    def prepare(self, device: torch.device) -> None:
        """Draws the seed if there is none yet."""
        if self._rng is not None:
            self._rng = self._rng.to(device)
            return
        seed = self.seed
        if seed is None:
            seed = int(torch.randint(-(2**63), 2**63 - 1, ()))
        self._rng = torch.tensor([seed, 0], dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forgets the random state: the next call starts from ``seed``, or draws a new one."""
        super().reset()
        self._rng = None

    def _state_tensors(self) -> dict[str, Tensor]:
        return {} if self._rng is None else {"rng": self._rng}

    def _load(self, entries: dict[str, Any]) -> None:
        if not entries:
            self._rng = None
            return
        checks.entries(entries, ("rng",))
        self._rng = checks.entry(entries, "rng", torch.int64, (2,))
