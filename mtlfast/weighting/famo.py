"""FAMO: every loss falls at the same relative rate, from the losses alone."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast import ops
from mtlfast.weighting import checks, per_task
from mtlfast.weighting.base import Call, Weighting
from mtlfast.weighting.per_task import Numbers, Scalars


class FAMO(Weighting):
    """Learns weights under which all log losses fall at about the same rate.

    With ``z = softmax(logits)``, lowest losses b and ``D_i = L_i - b_i + 1e-8``, the step is that
    of ``sum_i z_i log D_i``, scaled so that ``w_i = (z_i / D_i) / sum_j (z_j / D_j)`` sums to 1.
    When the losses of the same batch after the step are known, ``delta_i = log D_i(before) -
    log D_i(after)`` says how far each has come, and Adam (0.9, 0.999, 1e-8) moves the logits along
    ``-(z o (delta - <z, delta>) + weight_decay * logits)``: towards the tasks that fell least. The
    caller hands them over after the step::

        optimizer.backward(losses)
        optimizer.step()
        with torch.no_grad():
            optimizer.weighting.observe(model_losses(batch))  # the same batch

    Without ``observe`` the next call's losses take their place: one forward pass less, with the
    noise from batch to batch in delta.

    Shapes: losses ``[K]`` -> weights ``[K]`` float64, sum 1; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    ``weight_decay`` is 1e-3 in the paper, LibMTL and TorchJD (whose ``update`` is ``observe`` here,
    ``shape`` K), 1e-2 in the official ``famo.py``, 1e-5 in the official training code.

    Degenerate (see ``status``): a task with ``L_i <= b_i`` has no logarithm; it gets weight 0, and
    its logit stays as it is while the others learn. NaN or Inf gives NaN weights and leaves the
    state alone; an observation with NaN or Inf counts as none. Scaling a loss changes nothing in
    ``w_i L_i`` up to a common factor, as long as it is well above 1e-8. Use it for balance at the
    price of plain training. It fails where a loss comes close to its b: its weight takes over the
    step.

    State: number of updates, logits, Adam's moments, the losses that wait for those after the step.

    Args:
        lr: step length of the logits, above 0. Default 0.025.
        weight_decay: pull of the logits to 0, at least 0. Default 1e-3.
        min_losses: b, one number or one per task; every loss should stay above. Default 0.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023,
    arXiv 2306.03792.
    """

    name = "famo"
    family = "loss"
    paper = "FAMO: Fast Adaptive Multitask Optimization, 2023, arXiv 2306.03792"
    needs_gramian = False
    needs_losses = True
    weights_losses = True
    state_layout = (
        ("num_updates", "1"),
        ("waits", "1"),
        ("logits", "K"),
        ("exp_avg", "K"),
        ("exp_avg_sq", "K"),
        ("losses", "K"),
    )

    def __init__(
        self,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
        min_losses: float | Numbers = 0.0,
    ) -> None:
        self.lr = checks.number("lr", lr, 0, open_low=True)
        self.weight_decay = checks.number("weight_decay", weight_decay, 0)
        single = isinstance(min_losses, (int, float))
        self.min_losses: float | list[float] = (
            checks.number("min_losses", min_losses)
            if single
            else per_task.numbers("min_losses", min_losses)
        )

    def _weights(self, call: Call) -> Tensor:
        assert call.losses is not None  # _check has made sure
        options = (self.lr, self.weight_decay, 0.0)
        lowest = self._lowest(call)
        return self._solve(call, options, losses=call.losses, inputs=lowest, state=self._flat(call))

    def observe(self, losses: Scalars) -> None:
        """Takes in the losses of the last call's batch after the step; the logits move.

        A second observation of the same step changes nothing.

        Args:
            losses: ``[K]``, or K scalars: a list, a tuple, or a dict in the tasks' order.

        Raises:
            RuntimeError: there was no call before.
            TypeError, ValueError: ``losses`` are no K scalars. The state is unchanged.
        """
        values = per_task.scalars("losses", losses)
        if self._state is None:
            raise RuntimeError("losses: expected a step before they are observed, found none")
        values = values.to(self._state.device)
        call = Call(len(values), values.device, None, values, {})
        ops.solve(
            self.name,
            None,
            options=(self.lr, self.weight_decay, 1.0),
            losses=values,
            state=self._flat(call),
            inputs=self._lowest(call),
        )

    def _lowest(self, call: Call) -> Tensor | None:
        if isinstance(self.min_losses, list):
            return per_task.vector("min_losses", self.min_losses, call.num_tasks, call.device)
        if self.min_losses == 0.0:
            return None
        return torch.full(
            (call.num_tasks,), self.min_losses, dtype=torch.float64, device=call.device
        )
