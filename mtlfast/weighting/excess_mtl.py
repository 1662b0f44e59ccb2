"""ExcessMTL: tasks far from convergence count more, noisy ones do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mtlfast import column_ops, ops
from mtlfast.ops import TaskGrads
from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting

Buffers = list[list["Tensor | None"]]

_BUFFERS = ("_squares", "_seen")


class ExcessMTL(Weighting):
    """Learns weights that grow with a task's excess risk, its estimated distance from convergence.

    With ``S_k`` the sum of the squared gradients so far, element by element, the excess is
    ``e_k = Σ_p g_kp² / sqrt(S_kp + 1e-7)``, and ``w_k <- w_k exp(lr e_k / (e0_k + 1e-7))``, scaled
    to a constant sum; e0 is the first e, or its mean over the warm-up. The first call without a
    warm-up has no e0 yet and takes ``exp(lr e_k)``.

    Shapes: task gradients ``[K, P]`` -> weights ``[K]`` float64. The gradients go to
    :meth:`transform`, as MultiTaskOptimizer and ``aggregate()`` do; the call itself reads neither
    Gramian nor losses. A task-specific parameter gets ``w_k g_k``, as the weighted losses would
    give it.

    ``reduction="mean"`` gives the paper's and TorchJD's weights, which sum to 1; LibMTL's and the
    official code's sum to K ("sum"), and have no warm-up. The logarithms of the weights are kept,
    so that a task whose weight underflows can come back. In LibMTL a baseline of zero gives NaN.

    Degenerate (see ``status``): every gradient is zero; the weights stay. A task whose baseline is
    zero has rate 0 until its excess is positive, which then is its baseline. Non-finite gradients
    give NaN weights and leave the state alone. It fails with ``lr`` of the paper's order on large
    models without a warm-up: the first excess is a sum over all parameters, so one task may get all
    the weight at once, and it is not invariant to the gradients' scale.

    State: number of calls, logarithms of the weights, baselines, and the sums of squares: K times
    the memory of the shared gradients, in float32 (float64 for float64 gradients), twice that
    during a step.

    Args:
        lr: step length of the weights, above 0. Default 1.0.
        num_warmup_steps: calls at the beginning in which the weights stay equal, at least 0.
            Default 0; the paper takes three epochs.
        reduction: "mean" for weights that sum to 1, "sum" to K. Default "mean".

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, tasks or shapes other than
            in earlier calls, or no :meth:`transform` before it.

    Reference: He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024,
    arXiv 2402.02009.
    """

    name = "excess_mtl"
    family = "buffer"
    paper = "Robust Multi-Task Learning with Excess Risks, 2024, arXiv 2402.02009"
    needs_gramian = False
    weights_losses = True
    state_layout = (("num_calls", "1"), ("log_weights", "K"), ("initial_excess", "K"))

    _squares: Buffers | None = None  # K rows of T; never written in place, always replaced
    _seen: tuple[Tensor, Buffers] | None = None  # excess and new squares of the step under way

    def __init__(
        self,
        lr: float = 1.0,
        num_warmup_steps: int = 0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        self.lr = checks.number("lr", lr, 0, open_low=True)
        if isinstance(num_warmup_steps, bool) or not isinstance(num_warmup_steps, int):
            kind = type(num_warmup_steps).__name__
            raise TypeError(f"num_warmup_steps: expected an int, found {kind}")
        if num_warmup_steps < 0:
            raise ValueError(
                f"num_warmup_steps: expected a number of at least 0, found {num_warmup_steps}"
            )
        checks.choice("reduction", reduction, ("mean", "sum"))
        self.num_warmup_steps = num_warmup_steps
        self.reduction = reduction

    @property
    def needs_task_grads(self) -> bool:
        """True: the excess is a sum over their elements."""
        return True

    def transform(self, task_grads: TaskGrads, losses: Tensor) -> TaskGrads:
        """Sees the gradients of one step; the call that follows turns them into weights.

        Returns:
            The task gradients themselves.

        Raises:
            ValueError: tasks, tensors or shapes other than in earlier steps.
        """
        del losses
        rows = ops.rows(task_grads)
        device = column_ops.device_of(rows)
        known = self._squares
        if known is not None:
            _check_same(rows, known)
            known = [[None if s is None else s.to(device) for s in row] for row in known]
        self._seen = column_ops.excess(rows, known)
        return rows

    def _weights(self, call: Call) -> Tensor:
        if self._seen is None:
            raise ValueError(
                "gramian: ExcessMTL weighs gradients and expected a call of "
                "transform(task_grads, losses) before this one, found none"
            )
        (excess, squares), self._seen = self._seen, None
        if len(excess) != call.num_tasks:
            raise ValueError(
                f"losses: expected {len(excess)} tasks, as in transform(), found {call.num_tasks}"
            )
        options = (self.lr, float(self.num_warmup_steps), float(self.reduction == "sum"))
        weights = self._solve(call, options, losses=excess, state=self._flat(call))
        self._squares = _where(excess.isfinite().all(), squares, self._squares)
        return weights

    def snapshot(self) -> dict[str, Any]:
        """As for any weighting, but with the sums of squares by reference: none is written to."""
        held = {key: vars(self).pop(key) for key in _BUFFERS if key in vars(self)}
        try:
            return {**super().snapshot(), **held}
        finally:
            vars(self).update(held)

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to a :meth:`snapshot` of this weighting, which may be used again."""
        super().restore({key: value for key, value in snapshot.items() if key not in _BUFFERS})
        vars(self).update({key: snapshot[key] for key in _BUFFERS if key in snapshot})

    def reset(self) -> None:
        """Forgets weights, baselines and sums of squares: the next call is the first."""
        super().reset()
        self._squares = self._seen = None

    def state_dict(self) -> dict[str, Any]:
        """The state: tensors, and under "squares" K lists of T tensors or None."""
        state = super().state_dict()
        if self._squares is not None:
            state["squares"] = [
                [None if s is None else s.detach().clone() for s in row] for row in self._squares
            ]
        return state

    def _load(self, entries: dict[str, Any]) -> None:
        rest = dict(entries)
        squares = rest.pop("squares", None)
        if squares is not None or rest:
            checks.entries(entries, [*(key for key, _ in self.state_layout), "squares"])
            squares = _checked(squares)
        before = self.snapshot()
        super()._load(rest)
        if squares is not None and len(squares) != self._state_tasks:
            found = self._state_tasks
            self.restore(before)
            raise ValueError(
                f"state_dict['squares']: expected {found} lists, one for each task, found "
                f"{len(squares)}"
            )
        self._squares, self._seen = squares, None


def _where(condition: Tensor, new: Buffers, old: Buffers | None) -> Buffers | None:
    """The new buffers if the condition holds, else the old; no synchronisation on a device."""
    if condition.device.type == "cpu":
        return new if bool(condition) else old
    chosen: Buffers = []
    for k, row in enumerate(new):
        before = [None] * len(row) if old is None else old[k]
        chosen.append(
            [
                None
                if n is None
                else torch.where(condition, n, torch.zeros_like(n) if o is None else o)
                for n, o in zip(row, before, strict=True)
            ]
        )
    return chosen


def _check_same(rows: TaskGrads, known: Buffers) -> None:
    """Raises ValueError unless tasks, tensors and shapes are those of earlier steps."""
    again = "as in earlier calls"
    if len(rows) != len(known):
        raise ValueError(
            f"task_grads: expected {len(known)} tasks {again}, found {len(rows)}; "
            "reset() starts anew"
        )
    for k, (row, buffers) in enumerate(zip(rows, known, strict=True)):
        if len(row) != len(buffers):
            raise ValueError(
                f"task_grads[{k}]: expected {len(buffers)} tensors {again}, found {len(row)}; "
                "shared_params= keeps them the same, reset() starts anew"
            )
        for t, (gradient, buffer) in enumerate(zip(row, buffers, strict=True)):
            if not isinstance(gradient, Tensor) or buffer is None:
                continue
            wide = gradient.dtype == torch.float64
            if gradient.shape != buffer.shape or wide != (buffer.dtype == torch.float64):
                raise ValueError(
                    f"task_grads[{k}][{t}]: expected shape {list(buffer.shape)} {again}, with "
                    f"sums in {buffer.dtype}, found {list(gradient.shape)} of {gradient.dtype}; "
                    "reset() starts anew"
                )


def _checked(squares: Any) -> Buffers:
    """A copy of the saved buffers, or a ValueError that names the entry."""
    key = "state_dict['squares']"
    if not _is_list(squares) or not all(_is_list(row) for row in squares):
        raise ValueError(
            f"{key}: expected K lists of tensors or None, found {type(squares).__name__}"
        )
    for k, row in enumerate(squares):
        if len(row) != len(squares[0]):
            raise ValueError(
                f"{key}[{k}]: expected {len(squares[0])} entries, as in the first list, "
                f"found {len(row)}"
            )
        for t, buffer in enumerate(row):
            if buffer is None:
                continue
            name = f"{key}[{k}][{t}]"
            if not isinstance(buffer, Tensor) or buffer.dtype not in (torch.float32, torch.float64):
                kind = buffer.dtype if isinstance(buffer, Tensor) else type(buffer).__name__
                raise ValueError(f"{name}: expected float32 or float64 or None, found {kind}")
            if not bool((buffer.isfinite() & (buffer >= 0)).all()):
                raise ValueError(f"{name}: expected finite numbers of at least 0, found others")
    return [[None if s is None else s.detach().clone() for s in row] for row in squares]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, Tensor))
