"""RLW: fresh random weights at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.weighting import checks, per_task
from mtlfast.weighting.base import Call, Weighting


class RLW(Weighting):
    """Draws the weights anew at every step: ``w = softmax(z)``, z standard normal.

    The weights are positive, sum to 1 and have mean 1/K, so that the step is on average that of
    :class:`~mtlfast.weighting.mean.Mean` (1/K of ``Sum``'s) with noise on it.

    Shapes: gramian ``[K, K]`` or losses ``[K]``, one of them to give K; neither is read -> weights
    ``[K]`` float64. A call takes ``normal=``, ``[K]``: the numbers z. Without it they are drawn on
    the device by this weighting's own counter-based generator. A task-specific parameter gets
    ``w_k g_k``, as the weighted losses would give it.

    LibMTL's ``RLW`` and TorchJD's ``Random`` (here also :class:`Random`) are the same up to the
    generator; LibMTL scales the weights to sum to 1 as well.

    Never degenerate (see ``status``), and independent of the scale of losses and gradients. Use it
    as the baseline that a method has to beat: it costs nothing and regularises by its noise. It
    fails where losses differ in scale: on average the weights are equal.

    State: seed and counter of the random numbers.

    Args:
        seed: 64-bit seed. Default None: drawn at the first use from torch's global generator, hence
            reproducible by ``torch.manual_seed``.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, ``normal`` does not fit.

    Reference: Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for
    Multi-Task Learning", TMLR 2022, arXiv 2111.10603.
    """

    name = "rlw"
    family = "loss"
    paper = (
        "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning, "
        "2022, arXiv 2111.10603"
    )
    needs_gramian = False
    weights_losses = True
    inputs = ("normal",)
    draws = True

    def __init__(self, seed: int | None = None) -> None:
        self.seed = checks.seed(seed)

    def _weights(self, call: Call) -> Tensor:
        normal = call.inputs.get("normal")
        rng = self._drawn(call) if normal is None else None
        if normal is not None:
            normal = per_task.given("normal", normal, call.num_tasks, call.device)
        # The losses are not read: zeros tell the solver K, and a NaN in them is not its business.
        losses = torch.zeros(call.num_tasks, dtype=torch.float64, device=call.device)
        return self._solve(call, (), losses=losses, inputs=normal, rng=rng)


class Random(RLW):
    """TorchJD's name for :class:`RLW`: the same weights ``softmax(z)`` from the same seed.

    Shapes: gramian ``[K, K]`` or losses ``[K]``, one of them to give K; neither is read -> weights
    ``[K]`` float64. A call takes ``normal=``, ``[K]``, the numbers z.

    Never degenerate. Use it as RLW, under the name that a configuration already has. It fails where
    losses differ in scale, as RLW does.

    State: seed and counter of the random numbers.

    Args:
        seed: 64-bit seed. Default None: drawn at the first use from torch's global generator.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, ``normal`` does not fit.

    Reference: Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for
    Multi-Task Learning", TMLR 2022, arXiv 2111.10603.
    """

    name = "random"
