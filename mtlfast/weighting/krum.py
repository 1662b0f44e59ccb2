"""Krum: the task gradients that lie closest to their neighbours."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class Krum(Weighting):
    """Averages the task gradients that lie closest to their neighbours, and ignores the others.

    The distances ``D_ij = G_ii + G_jj - 2 G_ij`` are taken in float64, and at least 0. The score of
    a task is the sum of its ``K - num_byzantine - 2`` smallest distances to others; the
    ``num_selected`` tasks with the smallest scores get ``1 / num_selected`` each (Multi-Krum; 1 is
    Krum). Of equal scores the lowest index is taken: with a single neighbour, as for K = 3, the
    two closest gradients always tie.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64. No state.

    The paper sums squared distances, the default. TorchJD sums the distances themselves,
    ``distance="norm"``, and selects another gradient where they are nearly collinear or differ in
    length by decades.

    Degenerate (see ``status``): with ``num_byzantine=0`` and two tasks, neither has a neighbour to
    be compared by. Then the weights are 1/2 each, which is no fallback where ``num_selected=2``
    asks for it; a single task gets 1. A task with a zero gradient is one like any other. Use it
    where the K gradients are of one loss from K sources, some of which may not be trusted. It fails
    where the gradients differ by nature, as most tasks' do: what is not selected does not train.

    Args:
        num_byzantine: gradients that may be arbitrary, at least 0. Default 0; K must be at least
            ``num_byzantine + 3`` where it is above 0, and the paper's guarantee needs
            ``2 num_byzantine + 3``.
        num_selected: gradients to average, from 1 to K. Default 1.
        distance: "squared", or "norm" for its root. Default "squared".

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K is too small for
            ``num_byzantine`` or ``num_selected``.

    Reference: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NIPS 2017, arXiv 1703.02757.
    """

    name = "krum"
    family = "gramian"
    paper = (
        "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, 2017, "
        "arXiv 1703.02757"
    )

    def __init__(
        self,
        num_byzantine: int = 0,
        num_selected: int = 1,
        distance: Literal["squared", "norm"] = "squared",
    ) -> None:
        self.num_byzantine = _count("num_byzantine", num_byzantine, 0)
        self.num_selected = _count("num_selected", num_selected, 1)
        checks.choice("distance", distance, ("squared", "norm"))
        self.distance = distance

    def _weights(self, call: Call) -> Tensor:
        num_tasks = call.num_tasks
        if self.num_byzantine > max(num_tasks - 3, 0):
            raise ValueError(
                f"num_byzantine: expected at most {max(num_tasks - 3, 0)} for {num_tasks} tasks, "
                f"found {self.num_byzantine}"
            )
        if self.num_selected > num_tasks:
            raise ValueError(
                f"num_selected: expected at most {num_tasks}, the number of tasks, "
                f"found {self.num_selected}"
            )
        options = (self.num_byzantine, self.num_selected, self.distance == "norm")
        return self._solve(call, [float(option) for option in options])


def _count(key: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key}: expected an int, found {type(value).__name__}")
    if value < low:
        raise ValueError(f"{key}: expected at least {low}, found {value}")
    return value
