"""Methods that look at single columns of the Jacobian and so have no task weights."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from mtlfast.ops import TaskGrads
from mtlfast.weighting.base import Call, Weighting


class ColumnWise(Weighting):
    """A method that combines the task gradients column by column: there are no task weights.

    A subclass defines :meth:`combine` and :meth:`combine_`, which take the method's own inputs as
    keyword arguments and check their names by :meth:`check_inputs`.
    """

    family = "column"
    needs_gramian = False

    @property
    def needs_task_grads(self) -> bool:
        """True: it reads every element of them."""
        return True

    @property
    def compares_raw(self) -> bool:
        """False: a Gramian would not be enough."""
        return False

    @abstractmethod
    def combine(
        self,
        task_grads: TaskGrads,
        weights: Tensor | None = None,
        out: list[Tensor | None] | None = None,
        **inputs: Tensor | None,
    ) -> list[Tensor | None]:
        """The combined gradient, as :func:`mtlfast.ops.combine`; ``weights`` is ignored."""

    @abstractmethod
    def combine_(
        self,
        params: list[Tensor],
        task_grads: TaskGrads,
        weights: Tensor | None = None,
        *,
        accumulate: bool = False,
        **inputs: Tensor | None,
    ) -> None:
        """Writes the combined gradient to ``p.grad``, as :func:`mtlfast.ops.combine_`."""

    def _weights(self, call: Call) -> Tensor:
        raise TypeError(
            f"gramian: {type(self).__name__} has no task weights and expected no call (use "
            f"aggregate() or MultiTaskOptimizer), found one for {call.num_tasks} tasks"
        )
