"""The step under way: its task gradients, who shares what, and what ``grad`` held before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mtlfast import fused, jacobian
from mtlfast.jacobian import TaskGradients
from mtlfast.ops import TaskGrads
from mtlfast.weighting import Weighting


@dataclass(frozen=True)
class Blocks:
    """The parameters that losses reach, split by who shares them.

    Attributes:
        shared_params: the parameters whose gradients are balanced.
        shared: their task gradients, K rows.
        own_params: the others.
        own: their task gradients, K rows.
        compared: the task gradients that the method's Gramian is made of, K rows.
        others: all that are not compared, K rows.

    Where the method compares B batches there are B K rows, one batch's tasks after another's.
    """

    shared_params: list[Tensor]
    shared: TaskGradients
    own_params: list[Tensor]
    own: TaskGradients
    compared: TaskGradients
    others: TaskGradients

    @classmethod
    def split(
        cls,
        params: list[Tensor],
        task_grads: TaskGradients,
        num_tasks: int,
        shared: tuple[Tensor, ...] | None,
        compared: tuple[Tensor, ...] | None,
    ) -> Blocks:
        """Splits T parameters and their rows of gradients.

        Args:
            params: T parameters.
            task_grads: K (B K) rows of T gradients.
            num_tasks: K.
            shared: the parameters to balance; None: those that two or more tasks reach.
            compared: the parameters to compare; None: the shared ones.
        """
        reach = [
            sum(any(grad is not None for grad in block[k::num_tasks]) for k in range(num_tasks))
            for block in zip(*task_grads, strict=True)
        ]

        def rows(columns: list[int]) -> TaskGradients:
            return [[row[t] for t in columns] for row in task_grads]

        def places(chosen: tuple[Tensor, ...]) -> list[bool]:
            ids = {id(param) for param in chosen}
            return [id(param) in ids for param in params]

        # A single task shares with nobody: all that it reaches is balanced, trivially.
        least = min(2, num_tasks)
        is_shared = [count >= least for count in reach] if shared is None else places(shared)
        both = [t for t, count in enumerate(reach) if count and is_shared[t]]
        alone = [t for t, count in enumerate(reach) if count and not is_shared[t]]
        shared_rows, own_rows = rows(both), rows(alone)
        compared_rows, other_rows = shared_rows, own_rows
        if compared is not None:
            is_compared = places(compared)
            compared_rows = rows([t for t, here in enumerate(is_compared) if here])
            other_rows = rows([t for t, here in enumerate(is_compared) if not here])
        return cls(
            shared_params=[params[t] for t in both],
            shared=shared_rows,
            own_params=[params[t] for t in alone],
            own=own_rows,
            compared=compared_rows,
            others=other_rows,
        )


def transformed(
    method: Weighting,
    rows: TaskGrads,
    losses: Tensor,
    shared: list[Tensor],
    params: list[Tensor],
) -> TaskGrads:
    """What the method makes of the rows of the shared parameters.

    A method with buffers knows a parameter by its place among all ``params`` of the optimizer.
    """
    if not method.keeps_buffers:
        return method.transform(rows, losses)
    known = {id(param): t for t, param in enumerate(params)}
    places = [known[id(param)] for param in shared]
    wide: TaskGradients = [[None] * len(params) for _ in rows]
    for wide_row, row in zip(wide, rows, strict=True):
        for place, grad in zip(places, row, strict=True):
            wide_row[place] = grad
    return [[row[place] for place in places] for row in method.transform(wide, losses)]


@dataclass(frozen=True)
class Written:
    """What ``backward`` left in ``grad``: as long as it is there, the next call is a micro-batch.

    Whoever clears a ``grad`` by another way than the optimizer's begins a new step, too.
    """

    grads: list[tuple[Tensor, Tensor | None, int]]  # parameter, its grad, the grad's version

    @classmethod
    def read(cls, params: list[Tensor]) -> Written:
        """The gradients of T parameters as they are now."""
        return cls([(p, p.grad, 0 if p.grad is None else p.grad._version) for p in params])

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
        task_grads: K rows of T gradients, summed over the micro-batches.
        losses: ``[K]`` float64, summed over the micro-batches.
        base: what ``grad`` held before the first micro-batch; None: nothing.
        state: snapshot of the method before the step.
        skip_counts: how often each task was dropped before the step; None: never.
        calls: micro-batches so far.
        update: what a fused step will do; None: ``backward`` has written ``grad``.
    """

    params: list[Tensor]
    task_grads: TaskGradients
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

    def plus(self, task_grads: TaskGradients, losses: Tensor) -> Pending:
        """The step with one more micro-batch; this one stays as it is, should the next one fail."""
        return Pending(
            self.params,
            jacobian.summed(self.task_grads, task_grads),
            self.losses + losses,
            self.base,
            self.state,
            self.skip_counts,
            self.calls + 1,
        )

    def skipped(self, kept: Tensor) -> Tensor:
        """How often each task was dropped, this step included; ``kept`` [K] holds who stayed."""
        now = (~kept).long()
        before = self.skip_counts
        return now if before is None or before.shape != now.shape else before + now

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
