"""What is done about NaN and Inf in one task's loss or gradient, and how often it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast import capture

POLICIES = ("propagate", "drop", "raise")


class Policy:
    """One of :data:`POLICIES`, with what it remembers of the steps so far.

    Attributes:
        name: which.
        counts: ``[K]`` int64, how often each task was dropped; None: none was looked at.
        known: ``[K]`` float64, the last finite losses; None: none were looked at.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Tensor | None = None
        self.known: Tensor | None = None

    @property
    def looks(self) -> bool:
        """Whether it needs to know what is finite."""
        return self.name != "propagate"

    def kept(self, names: Sequence[str], squares: Tensor, losses: Tensor) -> Tensor | None:
        """``[K]``: which tasks stay; None where all do.

        Args:
            names: of the tasks.
            squares: ``[K]`` (``[B K]``), not finite where a task's gradients are not.
            losses: ``[K]``.

        Raises:
            FloatingPointError: one does not, and the policy is "raise".
        """
        finite = squares.isfinite().view(-1, len(losses)).all(0)  # in every batch
        kept = finite & losses.to(squares.device).isfinite()
        if self.name == "drop":
            return kept
        bad = [name for name, keep in zip(names, kept.tolist(), strict=True) if not keep]
        if bad:
            raise FloatingPointError(
                f"losses: expected finite losses and gradients, found NaN or Inf in task "
                f"{', '.join(bad)}"
            )
        return None

    def losses(self, losses: Tensor, kept: Tensor) -> Tensor:
        """The losses, with a dropped task's last finite one, or the others' mean if it had none."""
        known = self.known
        if known is None or known.shape != losses.shape:
            known = torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)
        return torch.where(kept, losses, known)

    def note(self, before: Tensor | None, kept: Tensor, losses: Tensor) -> None:
        """Takes note of a step.

        Args:
            before: the counts before it.
            kept: ``[K]``, the answer of :meth:`kept`.
            losses: ``[K]``, the answer of :meth:`losses`.
        """
        now = (~kept).long()
        if before is not None and before.shape == now.shape:
            now = before + now
        self.counts = capture.carried(self.counts, now)
        self.known = capture.carried(self.known, losses)
