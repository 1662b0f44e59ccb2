"""The step under way: its task gradients, and what ``grad`` held before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mtlfast import capture, fused
from mtlfast.jacobian import Jacobian
from mtlfast.weighting import Weighting


@dataclass(frozen=True)
class Written:
    """What ``backward`` left in ``grad``: as long as it is there, the next call is a micro-batch.

    Whoever clears a ``grad`` by another way than the optimizer's begins a new step, too.
    """

    grads: list[tuple[Tensor, Tensor | None, int]]  # parameter, its grad, the grad's version

    @classmethod
    def read(cls, params: list[Tensor]) -> Written:
        """The gradients of T parameters as they are now."""
        grads = [param.grad for param in params]
        versions = [0 if grad is None else grad._version for grad in grads]
        return cls(list(zip(params, grads, versions, strict=True)))

    def stands(self, params: list[Tensor]) -> bool:
        """Whether these are the same parameters, and every ``grad`` is untouched."""
        return len(params) == len(self.grads) and all(
            param is known and param.grad is grad and (grad is None or grad._version == version)
            for param, (known, grad, version) in zip(params, self.grads, strict=True)
        )


@dataclass
class Pending:
    """What has been added up since ``zero_grad`` or ``step``.

    Attributes:
        params: T parameters.
        jacobian: the task gradients, summed over the micro-batches.
        losses: ``[K]`` float64, summed over the micro-batches.
        base: what ``grad`` held before the first micro-batch; None: nothing.
        state: snapshot of the method before the step.
        skip_counts: how often each task was dropped before the step; None: never.
        calls: micro-batches so far.
        update: what a fused step will do; None: ``backward`` has written ``grad``.
    """

    params: list[Tensor]
    jacobian: Jacobian
    losses: Tensor
    base: list[Tensor | None]
    state: dict[str, Any]
    skip_counts: Tensor | None
    calls: int = 1
    update: fused.Update | None = None
    _before: list[Tensor | None] = field(default_factory=list)
    _written: Written = field(default_factory=lambda: Written([]))

    @property
    def adds(self) -> bool:
        """Whether the combined gradient is added to what ``grad`` holds."""
        return any(grad is not None for grad in self.base)

    def continues(self, params: list[Tensor], num_tasks: int) -> bool:
        """Whether every ``grad`` is as the last micro-batch left it: the next one adds up."""
        return len(self.losses) == num_tasks and self._written.stands(params)

    @classmethod
    def start(
        cls,
        jacobian: Jacobian,
        losses: Tensor,
        method: Weighting,
        before: dict[str, Any],
        skip_counts: Tensor | None,
        fused_step: bool,
    ) -> Pending:
        """The first micro-batch of a step; ``before`` is a snapshot of the method."""
        is_known = method.prepare(losses.device) is False
        grads = [None if fused_step else param.grad for param in jacobian.params]
        return cls(
            jacobian.params,
            jacobian,
            losses,
            base=[None if grad is None else grad.clone() for grad in grads],
            state=before if is_known else method.snapshot(),
            skip_counts=None if skip_counts is None else skip_counts.clone(),
        )

    def further(self, jacobian: Jacobian, losses: Tensor, method: Weighting) -> Pending:
        """The step with one more micro-batch; this one stays as it is, should the next one fail.

        The method goes back to before the step, of which it sees one.
        """
        if method.keeps_buffers and capture.under_way(losses):
            raise RuntimeError(
                f"losses: expected one backward in a captured step of {type(method).__name__}, "
                f"whose buffers the first one has moved on, found a second"
            )
        method.restore(self.state)
        return Pending(
            self.params,
            self.jacobian.plus(jacobian),
            self.losses + losses,
            self.base,
            self.state,
            self.skip_counts,
            self.calls + 1,
        )

    def write(self) -> None:
        """Writes to ``grad`` what a fused step would have used, as without one."""
        if self.update is not None:
            self.update.write()

    def begin(self) -> None:
        """Brings every ``grad`` back to what it was before the first micro-batch."""
        self._before = [param.grad for param in self.params]
        if self.calls == 1:
            return
        for param, base in zip(self.params, self.base, strict=True):
            param.grad = None if base is None else base.clone()

    def undo(self) -> None:
        """Takes :meth:`begin` back."""
        for param, grad in zip(self.params, self._before, strict=False):
            param.grad = grad

    def finish(self) -> None:
        """Takes note of the gradients that were written."""
        self._before = []
        self._written = Written.read(self.params)
