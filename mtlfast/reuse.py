"""Weights that are used again: of the step's first micro-batch, or of an earlier step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Held:
    """Weights that may be used again.

    Attributes:
        weights: ``[K]`` (``[B K]``) float64.
        age: steps since they were computed; 0: the step is still under way.
    """

    weights: Tensor
    age: int = 0

    def older(self) -> Held:
        """After one more step."""
        return Held(self.weights, self.age + 1)

    def serves(self, num_rows: int, keeps: bool | None, update_every: int) -> bool:
        """Whether the next call of ``backward`` takes them.

        Args:
            num_rows: how many weights it needs.
            keeps: whether the step under way has kept its task gradients, so that those of another
                micro-batch can be added; None: the call begins a step.
            update_every: in how many steps they are computed once.
        """
        if num_rows != len(self.weights):
            return False
        if keeps is not None:
            return not keeps
        return 0 < self.age < update_every

    @property
    def origin(self) -> str:
        """Where they are from, in words."""
        if self.age == 0:
            return "the step's first micro-batch"
        return f"{self.age} step{'s' * (self.age > 1)} ago"
