"""PCD: the first task's gradient, bent as little as the others' progress demands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting
from mtlfast.weighting.per_task import Numbers


class PCD(Weighting):
    """Follows the first task as closely as a minimum of progress for every other task allows.

    With the gradients over their running norms, ``h_i = g_i / sqrt(v_i + eps)``, the update is
    ``argmin |d - h_1|`` over ``<h_j, d> >= tau |h_j|²`` for the tasks j >= 2, brought to the length
    of g_1. v_i is the bias-corrected moving average of ``|g_i|²`` with decay beta. The dual is a
    non-negative quadratic programme on the Gramian, solved exactly by an active set.

    Shapes: gramian ``[K, K]``, the first task the primary one -> weights ``[K]`` float64.

    The default ``eps=0`` does not depend on the scale of the gradients; ``eps=1e-8`` is TorchJD's,
    which lets conditions of gradients shorter than 1e-4 fade. There are no tolerances beyond
    rounding here, where TorchJD's are 1e-9 of the longest gradient.

    Degenerate (see ``status``): conditions that contradict each other, such as those of opposite
    gradients, are all dropped, ``d = g_1``; and an answer of zero, with ``tau=0`` and a second task
    that opposes the first, has no direction to rescale: weights 0. A task with a zero gradient has
    no condition and weight 0; a primary gradient of zero makes every weight 0. A non-finite Gramian
    gives NaN weights and leaves the state alone. Use it where one loss is the goal and the others
    are side conditions. It fails where the primary task should wait for the others: it never does.

    State: number of updates, moving averages of the squared norms.

    Args:
        tau: the share, in [0, 1], of the progress along its own h_j that every other task is
            promised; a number, or K-1 of them, a sequence or a 1-D tensor. Default 0.02.
        beta: decay of the moving averages, in [0, 1). Default 0.999.
        eps: added to the moving averages, at least 0, in the unit of squared norms. Default 0.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones
            or does not fit tau.

    Reference: Varam and AlHajri, "Not All Objectives Are Born Equal: Priority-Constrained Descent
    for Hierarchical Multi-Objective Optimization", TMLR 2026, arXiv 2606.29521.
    """

    name = "pcd"
    family = "gramian"
    paper = (
        "Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical "
        "Multi-Objective Optimization, 2026, arXiv 2606.29521"
    )
    state_layout = (("num_updates", "1"), ("squared_norms", "K"))

    def __init__(self, tau: float | Numbers = 0.02, beta: float = 0.999, eps: float = 0.0) -> None:
        self.tau = _fractions(tau)
        self.beta = checks.number("beta", beta, 0, 1)
        self.eps = checks.number("eps", eps, 0)
        self._taus: Tensor | None = None  # [K] on the device of the calls, the first not read

    def _weights(self, call: Call) -> Tensor:
        if isinstance(self.tau, float):
            return self._solve(call, (self.beta, self.eps, self.tau), state=self._flat(call))
        if len(self.tau) != call.num_tasks - 1:
            raise ValueError(
                f"tau: expected one number for each of the {call.num_tasks - 1} tasks after the "
                f"first, found {len(self.tau)}"
            )
        if self._taus is None or self._taus.device != call.device:
            self._taus = torch.tensor([0.0, *self.tau], dtype=torch.float64, device=call.device)
        options = (self.beta, self.eps, 0.0)
        return self._solve(call, options, inputs=self._taus, state=self._flat(call))


def _fractions(tau: object) -> float | list[float]:
    """``tau``, or each of its numbers, as a float in [0, 1]."""
    values: object = tau.tolist() if isinstance(tau, Tensor) else tau
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [_fraction(f"tau[{i}]", value) for i, value in enumerate(values)]
    return _fraction("tau", values)


def _fraction(key: str, value: object) -> float:
    found = checks.number(key, value)
    if not 0.0 <= found <= 1.0:
        raise ValueError(f"{key}: expected a number in [0, 1], found {value}")
    return found
