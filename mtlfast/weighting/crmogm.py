"""CR-MOGM: another method's weights, averaged over the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlfast.ops import TaskGrads
from mtlfast.weighting import checks
from mtlfast.weighting.base import STATUSES, Call, Weighting, get
from mtlfast.weighting.column_wise import ColumnWise


class CRMOGM(Weighting):
    """Smooths the weights of another method by a moving average over the steps.

    Methods that choose their weights by the gradients at hand, such as MGDA, PCGrad or CAGrad, need
    not converge with minibatches: the weights depend on the batch. Here ``lambda_k = alpha
    lambda_(k-1) + (1 - alpha) lambdahat_k`` with lambdahat the wrapped method's weights, and
    lambda is what combines the gradients. The first lambda is the first lambdahat.

    Shapes: as the wrapped method's: gramian ``[K, K]``, losses ``[K]`` -> weights ``[K]`` float64
    (``B K`` for a method of B batches). It needs, takes and transforms what the wrapped one does.

    TorchJD's ``CRMOGMWeighting`` is the same (and takes a first average). The paper lets alpha rise
    towards 1 as the learning rate falls: set the attribute ``alpha`` between steps, for example to
    ``1 - lr / initial_lr``.

    Degenerate, and every other status, is what the wrapped method says; its weights enter the
    average whatever they are, unless one is not finite: then the weights are NaN and the average
    stays as it was. Use it to calm a method whose weights jump from step to step. It fails where
    the gradients' lengths change fast and the wrapped weights scale with them (NashMTL): the
    average pairs old weights with new gradients; and what the wrapped method guarantees for each
    step, such as no conflict, holds for lambdahat alone.

    State: the average, and the wrapped method's state under "weighting".

    Args:
        weighting: a method, such as ``mtlfast.PCGrad()``, or its name. Not one that combines
            columns, since it has no weights.
        alpha: share of the former average, in [0, 1]. Default 0.9.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, as the wrapped method
            raises, or K differs from earlier calls.

    Reference: Zhou et al., "On the Convergence of Stochastic Multi-Objective Gradient Manipulation
    and Beyond", NeurIPS 2022.
    """

    name = "crmogm"
    family = "gramian"
    paper = (
        "On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond, "
        "NeurIPS 2022"
    )
    state_layout = (("started", "1"), ("weights", "K"))
    _by_reference = frozenset({"weighting"})  # it has a snapshot of its own

    def __init__(self, weighting: Weighting | str, alpha: float = 0.9) -> None:
        self.weighting = get(weighting)
        if isinstance(self.weighting, ColumnWise):
            raise TypeError(
                f"weighting: expected a method with task weights, "
                f"found {type(self.weighting).__name__}, which combines columns"
            )
        self.alpha = alpha
        self.needs_gramian = self.weighting.needs_gramian
        self.needs_losses = self.weighting.needs_losses
        self.weights_losses = self.weighting.weights_losses
        self.inputs = self.weighting.inputs
        self.num_batches = self.weighting.num_batches
        self.keeps_buffers = self.weighting.keeps_buffers

    @property
    def alpha(self) -> float:
        """Share of the former average, in [0, 1]; may be set between steps."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = checks.number("alpha", value, 0, 1, closed_high=True)

    @property
    def needs_task_grads(self) -> bool:
        """As the wrapped method."""
        return self.weighting.needs_task_grads

    @property
    def compares_raw(self) -> bool:
        """As the wrapped method."""
        return self.weighting.compares_raw

    def transform(self, task_grads: TaskGrads, losses: Tensor) -> TaskGrads:
        """As the wrapped method."""
        return self.weighting.transform(task_grads, losses)

    def own_weights(self, weights: Tensor, losses: Tensor) -> Tensor:
        """As the wrapped method would from the averaged weights."""
        return self.weighting.own_weights(weights, losses)

    def combine(
        self, task_grads: TaskGrads, weights: Tensor | None, out: list[Tensor | None] | None = None
    ) -> list[Tensor | None]:
        """As the wrapped method."""
        return self.weighting.combine(task_grads, weights, out)

    def combine_(
        self,
        params: list[Tensor],
        task_grads: TaskGrads,
        weights: Tensor | None,
        *,
        accumulate: bool = False,
    ) -> None:
        """As the wrapped method."""
        self.weighting.combine_(params, task_grads, weights, accumulate=accumulate)

    @property
    def status(self) -> str:
        """How the wrapped method's last call went; "non-finite" where its weights were not."""
        flag = self.status_flag()
        return flag if isinstance(flag, str) else STATUSES[int(flag)]

    def status_flag(self) -> str | Tensor:
        """The status without a copy to the host: "ok", or an int32 scalar."""
        own, wrapped = super().status_flag(), self.weighting.status_flag()
        if isinstance(own, str) or isinstance(wrapped, str):
            return own if isinstance(wrapped, str) else wrapped
        return torch.maximum(own, wrapped)  # its own is 0, or 3 for what is not finite

    def parameters(self) -> Iterator[Parameter]:
        """As the wrapped method."""
        return self.weighting.parameters()

    def prepare(self, device: torch.device) -> bool:
        """As the wrapped method."""
        return self.weighting.prepare(device)

    def snapshot(self) -> dict[str, Any]:
        """Everything that it and the wrapped method are, for :meth:`restore`."""
        return {**super().snapshot(), "weighting": self.weighting.snapshot()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to a :meth:`snapshot`; the wrapped method stays the same object."""
        super().restore({**snapshot, "weighting": self.weighting})
        self.weighting.restore(snapshot["weighting"])

    def reset(self) -> None:
        """Forgets the average and the wrapped method's state."""
        super().reset()
        self.weighting.reset()

    def state_dict(self) -> dict[str, Any]:
        """The average, and under "weighting" the wrapped method's ``state_dict``."""
        return {**super().state_dict(), "weighting": self.weighting.state_dict()}

    # For the base class

    def _load(self, entries: dict[str, Any]) -> None:
        keys = [name for name, _ in self.state_layout if entries.keys() != {"weighting"}]
        checks.entries(entries, [*keys, "weighting"])
        wrapped = entries.pop("weighting")
        if not isinstance(wrapped, Mapping):
            raise ValueError(
                f"state_dict['weighting']: expected a state_dict, found {type(wrapped).__name__}"
            )
        before = self.snapshot()
        super()._load(entries)
        try:
            self.weighting.load_state_dict(wrapped)
        except BaseException:
            self.restore(before)
            raise

    def _weights(self, call: Call) -> Tensor:
        count = call.num_tasks * self.num_batches
        if self._state is not None:
            self._flat(call._replace(num_tasks=count) if self.num_batches > 1 else call)
        weights = self.weighting(call.gramian, call.losses, **call.inputs)
        own = Call(count, call.device, None, None, {})
        return self._solve(own, (self._alpha,), losses=weights, state=self._flat(own))
