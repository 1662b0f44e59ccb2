"""What arrives at a cut, read before hooks on the tensors there have seen it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from mtlfast.jacobian.graph import Graph


class Taps:
    """Gradients as the nodes above send them to some edges, while it is entered.

    What ``torch.autograd.grad`` returns for an edge has been through the hooks of the tensor there,
    and a backward that begins at the edge runs them again: they would count twice.

    Args:
        graph: the graph.
        edges: where to read.
    """

    def __init__(self, graph: Graph, edges: Sequence[GradientEdge]) -> None:
        self._senders = graph.senders(edges)
        self._sent: list[Tensor | None] = [None] * len(edges)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Taps:
        for node, sends in self._senders.items():
            self._handles.append(node.register_hook(self._reader(sends)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._sent = []

    def take(self) -> list[Tensor | None]:
        """What the last backward sent to each edge; None: nothing."""
        sent, self._sent = self._sent, [None] * len(self._sent)
        return sent

    def add(self, place: int, grad: Tensor) -> None:
        """Counts a gradient that enters at an edge from outside, such as a loss's own."""
        known = self._sent[place]
        self._sent[place] = grad if known is None else known + grad

    def _reader(self, sends: list[tuple[int, int]]) -> Callable[..., None]:
        def read(sent: tuple[Tensor | None, ...], _arrived: object) -> None:
            with torch.no_grad():
                for output, place in sends:
                    grad = sent[output]
                    if grad is not None:
                        self.add(place, grad)

        return read
