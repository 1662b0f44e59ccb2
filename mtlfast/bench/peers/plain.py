"""What a careful user writes in torch: our solvers, and nothing else of this package."""

from __future__ import annotations

import torch

from mtlfast.bench import methods
from mtlfast.bench.peers.base import Into, Modes, Peer

__all__ = ["PEER", "Plain"]


class Plain(Peer):
    """A matrix of all gradients and two products."""

    name = "torch"

    def balances(self, method: str, into: Into) -> Modes:
        """Stack and two matrix products."""
        weighting = methods.make(method)

        def stacked() -> None:
            jacobian = torch.stack(
                [torch.cat([g.flatten() for g in row]) for row in into.task_grads]
            )
            combined = weighting(jacobian @ jacobian.T).to(jacobian.dtype) @ jacobian
            parts = torch.split(combined, [param.numel() for param in into.params])
            for param, part in zip(into.params, parts, strict=True):
                param.grad = part.view_as(param)

        return {"stack + matmul": (into.clear, stacked)}


PEER = Plain()
