"""What an engine is asked for, and which parameters its gradients are balanced for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from mtlfast.jacobian.compat import has_reentrant
from mtlfast.jacobian.notes import Notes
from mtlfast.losses import TaskLosses

UNREACHED = (
    "losses: expected losses that depend on parameters of the optimizer that require a gradient, "
    "found that none reaches any of them"
)


@dataclass(frozen=True)
class Request:
    """One call of ``backward``.

    Attributes:
        tasks: K losses; B K where a method compares B batches, one batch's tasks after another's.
        num_tasks: K.
        params: the T parameters that are trained.
        shared: those to balance; None: those that two or more tasks reach.
        compared: those whose gradients the method compares; None: the shared ones.
        retain_graph: whether the graph is needed again afterwards.
        features: tensors whose gradients the method compares instead; empty: none.
        chunk_size: how many tasks are differentiated at once by the batched engine; None: all.
        sketch_size: S of the sketched engine.
        notes: what is known from earlier steps.
    """

    tasks: TaskLosses
    num_tasks: int
    params: list[Tensor]
    shared: tuple[Tensor, ...] | None = None
    compared: tuple[Tensor, ...] | None = None
    retain_graph: bool = False
    features: tuple[Tensor, ...] = ()
    chunk_size: int | None = None
    sketch_size: int = 65536
    notes: Notes = field(default_factory=Notes)

    @cached_property
    def is_reentrant(self) -> bool:
        """Whether there is a reentrant checkpoint, whose parameters the graph does not show."""
        return has_reentrant(self.tasks)

    def split(self, reach: Sequence[int]) -> Split:
        """The T parameters by what is done with their gradients.

        Args:
            reach: for each parameter the rows of ``tasks`` that reach it, one bit each.
        """
        known = {mask: self._count(mask) for mask in set(reach)}
        # A single task shares with nobody: all that it reaches is balanced, trivially.
        least = min(2, self.num_tasks)
        chosen = None if self.shared is None else {id(param) for param in self.shared}
        compared = None if self.compared is None else {id(param) for param in self.compared}
        shared: list[int] = []
        own: list[int] = []
        for t, (param, mask) in enumerate(zip(self.params, reach, strict=True)):
            if tasks := known[mask]:
                balanced = tasks >= least if chosen is None else id(param) in chosen
                (shared if balanced else own).append(t)
        if compared is None:
            return Split(shared, own, shared, own)
        seen = [t for t, param in enumerate(self.params) if id(param) in compared]
        rest = [t for t, param in enumerate(self.params) if id(param) not in compared]
        return Split(shared, own, seen, rest)

    def _count(self, mask: int) -> int:
        """How many tasks there are among some rows, one bit each."""
        if len(self.tasks.losses) == self.num_tasks:
            return mask.bit_count()
        return len({k % self.num_tasks for k in bits(mask)})


class Split(NamedTuple):
    """Columns of the Jacobian, by the places of their parameters.

    Attributes:
        shared: those that are balanced.
        own: the others that a loss reaches.
        compared: those that the method's Gramian is made of.
        others: all that are not compared.
    """

    shared: list[int]
    own: list[int]
    compared: list[int]
    others: list[int]


def bits(mask: int) -> list[int]:
    """The places of the bits that are set."""
    return [k for k in range(mask.bit_length()) if mask >> k & 1]
