"""ExcessMTL: tasks that are far from convergence count more."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mtlfast import column_ops, ops
from mtlfast.ops import TaskGrads
from mtlfast.weighting import checks
from mtlfast.weighting.base import Call
from mtlfast.weighting.buffered import Buffered


class ExcessMTL(Buffered):
    """Learns weights that grow with a task's excess risk, its estimated distance from convergence.

    With ``S_k`` the sum of the squared gradients so far, element by element, the excess is
    ``e_k = Σ_p g_kp² / sqrt(S_kp + 1e-7)``, and ``w_k <- w_k exp(lr e_k / (e0_k + 1e-7))``, scaled
    to a constant sum; e0 is the first e, or its mean over the warm-up. The first call without a
    warm-up has no e0 yet and takes ``exp(lr e_k)``.

    Shapes: task gradients ``[K, P]`` -> weights ``[K]`` float64. The gradients go to
    :meth:`transform`, as MultiTaskOptimizer and ``aggregate()`` do; the call itself reads neither
    Gramian nor losses. A task-specific parameter gets ``w_k g_k``, as the weighted losses would
    give it.

    ``reduction="mean"`` gives TorchJD's weights, which sum to 1, as the paper's do. LibMTL's sum to
    K ("sum"), have no warm-up and stay equal in the first call; a baseline of zero is NaN there.
    Here the logarithms of the weights are kept, so that a task whose weight underflows can come
    back.

    Degenerate (see ``status``): every gradient is zero; the weights stay. A task whose baseline is
    zero has rate 0 until its excess is positive, which then is its baseline. Where a gradient is
    not finite the weights are NaN and sums and state stay as they were. Use it where some tasks
    have noisy labels: their losses stay large, their excess risk does not. It fails on large models
    without a warm-up unless ``lr`` is small: the first excess is a sum over all parameters, so that
    one task may get all the weight at once; and the excess grows with the gradients' scale.

    Memory: ``K P`` elements between steps, float32 (float64 for float64 gradients), ``2 K P`` from
    ``backward`` to ``step`` (the former sums are the way back), beside the task gradients.

    State: number of updates, logarithms of the weights, baselines, and the sums of squares under
    "buffer".

    Args:
        lr: step length of the weights, above 0. Default 1.0.
        num_warmup_steps: steps at the beginning in which the weights stay equal, at least 0.
            Default 0; the paper takes three epochs.
        reduction: "mean" for weights that sum to 1, "sum" to K. Default "mean".

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K or shapes differ from
            earlier ones, or no :meth:`transform` came before it.

    Reference: He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024,
    arXiv 2402.02009.
    """

    name = "excess_mtl"
    family = "buffer"
    paper = "Robust Multi-Task Learning with Excess Risks, 2024, arXiv 2402.02009"
    needs_gramian = False
    weights_losses = True
    state_layout = (("num_updates", "1"), ("log_weights", "K"), ("initial_excess", "K"))

    _excess: Tensor | None = None  # [K] of the gradients that the next call is about

    def __init__(
        self,
        lr: float = 1.0,
        num_warmup_steps: int = 0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        self.lr = checks.number("lr", lr, 0, open_low=True)
        self.num_warmup_steps = checks.count("num_warmup_steps", num_warmup_steps, 0)
        checks.choice("reduction", reduction, ("mean", "sum"))
        self.reduction = reduction

    @property
    def needs_task_grads(self) -> bool:
        """True: the excess is a sum over their elements."""
        return True

    def transform(self, task_grads: TaskGrads, losses: Tensor) -> TaskGrads:
        """The task gradients themselves, of which the next call gives the weights."""
        del losses
        rows = ops.rows(task_grads)
        self._excess, sums = column_ops.excess(rows, self._previous(rows))
        self._arrive(sums)
        return rows

    def reset(self) -> None:
        """Forgets weights, baselines and sums: the next call is the first."""
        super().reset()
        self._excess = None

    def _weights(self, call: Call) -> Tensor:
        excess, self._excess = self._excess, None
        if excess is None:
            raise ValueError(
                "gramian: ExcessMTL weighs the gradients of the last transform(task_grads, losses) "
                "and expected one before each call, found none"
            )
        if len(excess) != call.num_tasks:
            raise ValueError(
                f"losses: expected {len(excess)} tasks as in transform(), found {call.num_tasks}"
            )
        options = (self.lr, float(self.num_warmup_steps), float(self.reduction == "sum"))
        weights = self._solve(call, options, losses=excess, state=self._flat(call))
        self._settle()
        return weights

    def _buffer_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Squares outgrow the half types."""
        return torch.float64 if dtype == torch.float64 else torch.float32

    def _load(self, entries: dict[str, Any]) -> None:
        before = self.snapshot()
        super()._load(entries)
        if any(bool((s < 0).any()) for row in self._buffer or () for s in row if s is not None):
            self.restore(before)
            raise ValueError(
                "state_dict['buffer']: expected sums of squares, found a number below zero"
            )
        self._excess = None
