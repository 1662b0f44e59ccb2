"""What UW and IMTL-L have in common: one learned scalar per task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call, Weighting


class LearnedScales(Weighting):
    """Weights that depend on one scalar per task, learned here or by an optimizer of the user's.

    A subclass sets ``scalars``, the name of the scalars in the state.
    """

    family = "loss"
    needs_gramian = False
    needs_losses = True
    weights_losses = True
    scalars: ClassVar[str]

    def __init__(
        self,
        lr: float | None = 0.025,
        optimizer: Literal["adam", "sgd"] = "adam",
        initial: float = 0.0,
        num_tasks: int | None = None,
    ) -> None:
        self.lr = None if lr is None else checks.number("lr", lr, 0, open_low=True)
        self._optimizer = checks.choice("optimizer", optimizer, ("adam", "sgd"))
        self.optimizer = optimizer
        self.initial = checks.number("initial", initial, -50, 50)
        self.num_tasks = None if num_tasks is None else checks.count("num_tasks", num_tasks, 1)
        self.state_layout = (
            ("num_updates", "1"),
            (self.scalars, "K"),
            ("exp_avg", "K"),
            ("exp_avg_sq", "K"),
        )
        self._parameter: Parameter | None = None
        if self.lr is None:
            if self.num_tasks is None:
                raise ValueError("num_tasks: expected their number beside lr=None, found None")
            first = torch.full((self.num_tasks,), self.initial, dtype=torch.float64)
            self._parameter = Parameter(first)

    def parameters(self) -> Iterator[Parameter]:
        """The scalars ``[K]`` float64 for an optimizer of the user's; none unless ``lr`` is None.

        Every step adds the slope of the method's objective to their ``grad``, as ``backward`` adds
        to that of a model's parameters: clear it between steps, which the ``zero_grad`` of the
        optimizer that holds them does. They are on torch's default device: for losses on a GPU
        build the weighting inside ``with torch.device("cuda")``, or every step copies them there.
        """
        if self._parameter is not None:
            yield self._parameter

    def _weights(self, call: Call) -> Tensor:
        if self.num_tasks not in (None, call.num_tasks):
            raise ValueError(
                f"num_tasks: expected losses of {self.num_tasks} tasks, found {call.num_tasks}"
            )
        parameter = self._parameter
        if parameter is None:
            options = (self.lr or 0.0, float(self._optimizer), self.initial)
            return self._solve(call, options, losses=call.losses, state=self._flat(call))
        # The solver leaves the slopes in the state, where the first moments would be; zeros stay
        # there if the losses are not finite.
        state = self._flat(call).zero_()
        scalars = parameter.detach().to(call.device)
        options = (0.0, 2.0, self.initial)
        weights = self._solve(call, options, losses=call.losses, inputs=scalars, state=state)
        slopes = state[1 + call.num_tasks : 1 + 2 * call.num_tasks].to(parameter.device)
        parameter.grad = slopes.clone() if parameter.grad is None else parameter.grad.add_(slopes)
        return weights

    def snapshot(self) -> dict[str, Any]:
        """Everything this weighting is, for :meth:`restore`; made without a synchronisation."""
        parameter = self._parameter
        if parameter is None:
            return super().snapshot()
        self._parameter = None
        try:
            snapshot = super().snapshot()
        finally:
            self._parameter = parameter
        grad = None if parameter.grad is None else parameter.grad.clone()
        return {**snapshot, "_parameter": (parameter.detach().clone(), grad)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to a :meth:`snapshot`; ``parameters()`` stay the objects that they are."""
        parameter = self._parameter
        if parameter is None:
            super().restore(snapshot)
            return
        value, grad = snapshot["_parameter"]
        super().restore({**snapshot, "_parameter": None})
        self._parameter = parameter
        parameter.detach().copy_(value)
        parameter.grad = None if grad is None else grad.clone()

    def reset(self) -> None:
        """Forgets the state, as if the weighting were new: the next call is the first."""
        super().reset()
        if self._parameter is not None:
            self._parameter.detach().fill_(self.initial)
            self._parameter.grad = None

    def _state_tensors(self) -> dict[str, Tensor]:
        if self._parameter is None:
            return super()._state_tensors()
        return {self.scalars: self._parameter}

    def _load(self, entries: dict[str, Any]) -> None:
        if self._parameter is None:
            super()._load(entries)
            return
        checks.entries(entries, (self.scalars,))
        shape = tuple(self._parameter.shape)
        value = checks.entry(entries, self.scalars, torch.float64, shape)
        self._parameter.detach().copy_(value)
