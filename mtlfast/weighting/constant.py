"""Constant: weights chosen by hand."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlfast.weighting import checks, per_task
from mtlfast.weighting.base import Call, Weighting


class Constant(Weighting):
    """Fixed weights: ``w = weights``.

    Shapes: gramian ``[K, K]`` or losses ``[K]``, one of them to give K -> weights ``[K]`` float64.
    No state, never degenerate. Use it where good weights are known, or as the baseline whose
    weights were searched for. It fails where the best weights change during training, and the
    search for them costs one training run per try.

    Args:
        weights: one finite number per task, a sequence or a 1-D tensor; used as they are, so they
            need not sum to 1.

    Raises:
        TypeError: ``weights`` is no sequence of numbers.
        ValueError: ``weights`` is empty or holds NaN or Inf; at a call, K is not their number.
    """

    name = "constant"
    family = "constant"
    paper = ""
    needs_gramian = False
    weights_losses = True

    def __init__(self, weights: Sequence[float] | Tensor) -> None:
        values: object = weights.tolist() if isinstance(weights, Tensor) else weights
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(f"weights: expected K numbers, found {type(values).__name__}")
        if len(values) == 0:
            raise ValueError("weights: expected one number per task, found none")
        self.weights = [checks.number(f"weights[{i}]", value) for i, value in enumerate(values)]

    def _weights(self, call: Call) -> Tensor:
        found = per_task.vector("weights", self.weights, call.num_tasks, call.device)
        assert found is not None  # weights are no None
        return found.clone()  # the caller's own
