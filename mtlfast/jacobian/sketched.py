"""The engine "sketched": every gradient is folded into a short sketch as it appears, and freed.

The K sketches of S numbers stand for the K gradients of what lies below the cut: their norms are
exact, their cosines have a standard error of about ``1/sqrt(S)``. Gradients of parameters above it
are there in any case, and exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mtlfast import ops, sketch_ops
from mtlfast.jacobian.gradients import Jacobian
from mtlfast.jacobian.graph import Graph
from mtlfast.jacobian.heads import Heads
from mtlfast.jacobian.request import Request


def sketched(request: Request) -> Jacobian:
    """K backwards that keep nothing but sketches, and later one of the weighted sum.

    The signs follow from the state of torch's CPU generator, which stays as it is, and from how
    often the parameters have been written: other ones in every step, and the same in every run.

    Returns:
        K rows of the gradients of what lies above the cut; the rest as ``Further``.

    Raises:
        ValueError: no loss reaches any parameter.
    """
    graph = Graph(request.tasks)
    heads = Heads.differentiate(request, graph, graph.cut())
    compared = set(request.split(heads.reach).compared)
    sketches = _Sketches(request)
    # With parameters chosen to compare, the others take part in the last backward alone.
    visited = [t for t in heads.below if request.compared is None or t in compared]
    params = [request.params[t] for t in visited]
    for k, cotangents in enumerate(heads.cotangents):
        with sketches.filled(k, visited, compared):
            heads.pull(heads.cut, cotangents, params)
    further = None
    if heads.below:
        squares = None if len(visited) < len(heads.below) else sketches.squares
        further = heads.further(heads.below, sketches.gramian(), squares)
    return Jacobian(request.params, heads.rows, heads.reach, "sketched", further=further)


class _Sketches:
    """K sketches on every device that has parameters.

    Attributes:
        squares: ``[K]`` float64, of the gradients that are not compared.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._count = len(request.tasks.losses)
        self._home = request.tasks.losses[0].device
        self._seed = _seed(request.params)
        self._sums: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._first = [0]
        for param in request.params:
            self._first.append(self._first[-1] + param.numel())
        self.squares = torch.zeros(self._count, dtype=torch.float64, device=self._home)

    @contextmanager
    def filled(self, k: int, columns: list[int], compared: set[int]) -> Iterator[None]:
        """While it is entered, task k's gradients of some columns are folded in and freed.

        Hooks of the user run before: what is folded is what a backward would have delivered.
        """
        handles = []
        for t in columns:
            fold = self._folder(k, t, t in compared)
            handle = self._request.params[t].register_hook(fold)  # type: ignore[no-untyped-call]
            handles.append(handle)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gramian(self) -> Tensor:
        """``[K, K]`` float64, of the gradients that are compared."""
        total = torch.zeros(self._count, self._count, dtype=torch.float64, device=self._home)
        for sketches, norms in self._sums.values():
            total += sketch_ops.sketched_gramian(sketches, norms).to(self._home)
        return total

    def _folder(self, k: int, t: int, is_compared: bool) -> Callable[[Tensor], Tensor]:
        def fold(grad: Tensor) -> Tensor:
            if is_compared:
                sketches, norms = self._on(grad.device)
                first = self._first[t]
                sketch_ops.sketch_(sketches[k], norms[k : k + 1], [grad], first, self._seed)
            else:
                self.squares[k] += ops.gramian([[grad]])[0, 0].to(self._home)
            return grad.new_zeros(()).expand(grad.shape)

        return fold

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._sums:
            size = self._request.sketch_size
            self._sums[device] = (
                torch.zeros(self._count, size, dtype=torch.float32, device=device),
                torch.zeros(self._count, dtype=torch.float64, device=device),
            )
        return self._sums[device]


def _seed(params: list[Tensor]) -> int:
    """62 bits, without a draw that the user's own would notice."""
    generator = torch.Generator().set_state(torch.get_rng_state())
    drawn = int(torch.randint(2**62, (), generator=generator))
    written = sum(param._version for param in params)
    return (drawn ^ written * 0x9E3779B97F4A7C15) % 2**62
