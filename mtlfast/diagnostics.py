"""What the last step saw, kept on the device and copied to the host when it is read."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast.weighting.base import STATUSES


class StepInfo:
    """One balanced step. Every property is a host value, copied when it is first read.

    Attributes:
        task_names: names of the tasks; "0", "1", ... where none were given.
        engine: the engine that made the task gradients: one of those that ``MultiTaskOptimizer``
            names, "partial" (``gramian_params`` under "auto"), "features", or "joint" where no
            task gradients were needed.
        reason: why this engine.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        engine: str,
        reason: str,
        losses: Tensor,
        gramian: Tensor | None,
        kept: Tensor | None,
        weights: Tensor | None,
        status: str | Tensor,
    ) -> None:
        self.task_names = tuple(task_names)
        self.engine = engine
        self.reason = reason
        self._losses = losses
        self._weights = weights
        self._gramian = gramian
        self._kept = kept
        self._status = status

    @functools.cached_property
    def losses(self) -> Tensor:
        """``[K]`` float64: the losses of the last ``backward``."""
        return self._losses.cpu()

    @functools.cached_property
    def weights(self) -> Tensor | None:
        """``[K]`` float64: the weights of the task gradients; None where columns were combined.

        ``[B K]`` for a method that compares B batches, one batch's tasks after another's.
        """
        return None if self._weights is None else self._weights.cpu()

    @functools.cached_property
    def gramian(self) -> Tensor | None:
        """``[K, K]`` float64: inner products of the task gradients; None where none was needed.

        Of the buffers for a method with buffers; ``[B K, B K]`` for one that compares B batches.
        """
        return None if self._gramian is None else self._gramian.cpu()

    @functools.cached_property
    def cosines(self) -> Tensor | None:
        """``[K, K]`` float64: cosines of the task gradients; NaN where one is zero."""
        if self.gramian is None:
            return None
        norms = self.gramian.diagonal().sqrt()
        return self.gramian / norms[:, None] / norms

    @functools.cached_property
    def conflict_share(self) -> float | None:
        """Share of the task pairs whose gradients have a negative inner product, in [0, 1]."""
        if self.gramian is None:
            return None
        num_tasks = len(self.gramian)
        pairs = torch.ones(num_tasks, num_tasks, dtype=torch.bool).triu(1)
        return float((self.gramian[pairs] < 0).double().mean()) if num_tasks > 1 else 0.0

    @property
    def objective(self) -> Tensor:
        """Scalar ``Σ_k w_k L_k`` on the device: with the weights held, ``grad`` is its gradient.

        The mean loss where columns were combined; no such function where buffers were.
        """
        if self._weights is None:
            return self._losses.mean()
        return (self._weights.view(-1, len(self._losses)) * self._losses).sum()

    @functools.cached_property
    def skipped(self) -> list[bool]:
        """Whether each task was dropped because its loss or gradient was not finite."""
        if self._kept is None:
            return [False] * len(self._losses)
        return [not kept for kept in self._kept.tolist()]

    @functools.cached_property
    def status(self) -> str:
        """How the method's solver ended: "ok", "degenerate", "not converged" or "non-finite"."""
        if isinstance(self._status, str):
            return self._status
        return STATUSES[int(self._status)]

    def __repr__(self) -> str:
        """Weights by task, conflict share and status."""
        parts = []
        if self.weights is not None:
            batches = self.weights.view(-1, len(self._losses)).T.tolist()  # [K, B]
            shown = (
                f"{name}: {', '.join(f'{weight:.3g}' for weight in row)}"
                for name, row in zip(self.task_names, batches, strict=True)
            )
            parts.append(f"weights={{{', '.join(shown)}}}")
        if self.conflict_share is not None:
            parts.append(f"conflict_share={self.conflict_share:.2g}")
        parts += [f"status={self.status!r}", f"engine={self.engine!r} ({self.reason})"]
        return f"StepInfo({', '.join(parts)})"
