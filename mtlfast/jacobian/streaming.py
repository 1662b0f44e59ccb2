"""The engine "streaming": the exact Gramian block by block, then one backward of the weighted sum.

A block lies between two places where the graph can be cut; a residual block is one, and so is a
U-Net, for nothing can be cut off below its widest skip connection. While a block is differentiated
for one task after another, K gradients of its own parameters and K gradients at its ends are all
that is held. Of a linear layer with few rows of inputs, output gradients take the place of its
weight's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlfast import ops
from mtlfast.jacobian.gradients import Jacobian, TaskGradients
from mtlfast.jacobian.graph import Cut, Graph
from mtlfast.jacobian.heads import Heads, Inputs
from mtlfast.jacobian.linear import Layer, layers
from mtlfast.jacobian.product import LinearProduct
from mtlfast.jacobian.request import Request
from mtlfast.jacobian.taps import Taps
from mtlfast.jacobian.together import arriving


def streaming(request: Request) -> Jacobian:
    """K backwards, block by block, and later one of the weighted sum.

    Returns:
        K rows of the gradients of what lies above the first cut; the rest as ``Further``.

    Raises:
        ValueError: no loss reaches any parameter.
    """
    graph = Graph(request.tasks)
    heads = Heads.differentiate(request, graph, graph.cut())
    split = request.split(heads.reach)
    sums = _Sums.start(request)
    seen = set(split.compared)
    factors = {
        layer.column: layer
        for layer in layers(graph, request.params)
        if layer.column in seen and layer.pays and _held(layer) <= layer.param.nbytes
    }
    cotangents = [list(row) for row in heads.cotangents]
    upper, left = heads.cut, len(heads.below)
    for lower, block in _blocks(heads, [t for t in heads.below if t in seen], factors):
        inside = lower.above & ~upper.above
        chosen = [
            layer
            for t in block
            if (layer := factors.get(t)) is not None
            and (place := graph.place(layer.node)) is not None
            and inside >> place & 1
        ]
        taken = {layer.column for layer in chosen}
        dense = [t for t in block if t not in taken]
        rows, deltas = _differentiate(heads, upper, lower, dense, chosen, cotangents)
        sums.gramian += sums.of(rows, [i for i, t in enumerate(dense) if t in seen])
        sums.squares += sums.of(rows, [i for i, t in enumerate(dense) if t not in seen]).diagonal()
        del rows
        for layer, column in zip(chosen, zip(*deltas, strict=True), strict=True):
            sums.gramian += LinearProduct.of(layer, column).gramian().to(sums.gramian.device)
        del deltas
        upper, left = lower, left - len(block)
    if left:
        # Parameters further down: finite where the gradients that arrive there are.
        for i in range(len(upper.edges)):
            sums.squares += sums.of(cotangents, [i]).diagonal()
    further = heads.further(heads.below, sums.gramian, sums.squares) if heads.below else None
    return Jacobian(request.params, heads.rows, heads.reach, "streaming", further=further)


class _Sums:
    """What is added up over the blocks."""

    def __init__(self, gramian: Tensor, squares: Tensor) -> None:
        self.gramian = gramian
        self.squares = squares

    @classmethod
    def start(cls, request: Request) -> _Sums:
        count = len(request.tasks.losses)
        like = request.tasks.losses[0]
        zeros = torch.zeros(count, count, dtype=torch.float64, device=like.device)
        return cls(zeros, torch.zeros(count, dtype=torch.float64, device=like.device))

    def of(self, rows: TaskGradients, columns: list[int]) -> Tensor:
        """The Gramian of some columns, ``[K, K]`` float64."""
        groups: dict[torch.device, list[int]] = {}
        for i in columns:
            like = next((row[i] for row in rows if row[i] is not None), None)
            if like is not None:
                groups.setdefault(like.device, []).append(i)
        total = torch.zeros_like(self.gramian)
        for group in groups.values():
            total += ops.gramian([[row[i] for i in group] for row in rows]).to(total.device)
        return total


def _blocks(
    heads: Heads, wanted: list[int], factors: dict[int, Layer]
) -> list[tuple[Cut, list[int]]]:
    """Where each block ends, and its parameters, down to the last one that is wanted.

    Neighbours are one block as long as they hold no more than the largest one's parameters.
    """
    if not wanted:
        return []
    params, graph = heads.request.params, heads.graph
    found: list[tuple[Cut, list[int]]] = []
    above = heads.cut.above
    left = set(wanted)
    for cut in graph.cuts(heads.cut):
        inside = cut.above & ~above
        block = [
            t
            for t in heads.below
            if (place := graph.leaf_place(params[t])) is not None and inside >> place & 1
        ]
        found.append((cut, block))
        above = cut.above
        left -= set(block)
        if not left:
            break
    largest = max(sum(params[t].nbytes for t in block) for _, block in found)
    room = 0
    joined: list[tuple[Cut, list[int]]] = []
    for cut, block in found:
        size = sum(_held(factors[t]) if t in factors else params[t].nbytes for t in block)
        if joined and size <= room:
            joined[-1] = (cut, joined[-1][1] + block)
        else:
            joined.append((cut, block))
            room = largest
        room -= size
    return joined


def _held(layer: Layer) -> int:
    """Bytes of one task's output gradient, and of what its inner products take beside it."""
    return 3 * len(layer.inputs) * layer.out * layer.param.element_size()


def _differentiate(
    heads: Heads,
    upper: Cut,
    lower: Cut,
    dense: list[int],
    chosen: list[Layer],
    cotangents: TaskGradients,
) -> tuple[TaskGradients, TaskGradients]:
    """K rows of gradients and of the chosen layers' output gradients, of one block.

    ``cotangents`` move on to its end.
    """
    place = {(edge.node, edge.output_nr): i for i, edge in enumerate(upper.edges)}
    same = [place.get((edge.node, edge.output_nr)) for edge in lower.edges]
    ends = [edge for edge, i in zip(lower.edges, same, strict=True) if i is None]
    starts = [i for i in range(len(upper.edges)) if i not in same]
    top = Cut([upper.edges[i] for i in starts], upper.above)
    nodes = [layer.node for layer in chosen]
    inputs: Inputs = [
        *ends,
        *(GradientEdge(node, 0) for node in nodes),
        *(heads.request.params[t] for t in dense),
    ]
    rows: TaskGradients = []
    deltas: TaskGradients = []
    with Taps(heads.graph, ends) as taps, arriving(nodes) as seen:
        for k, arrived in enumerate(cotangents):
            cotangents[k] = []
            found = heads.pull(top, [arrived[i] for i in starts], inputs)[len(ends) :]
            rows.append(found[len(nodes) :])
            deltas.append(
                [
                    seen[node][0] if node in seen else grad
                    for node, grad in zip(nodes, found, strict=False)
                ]
            )
            del found
            seen.clear()
            sent = iter(taps.take())
            cotangents[k] = [next(sent) if i is None else arrived[i] for i in same]
    return rows, deltas
