"""The engine "factored": gradients of linear layers stay products of inputs and output gradients.

Of a layer that pays, a backward makes only the output gradients; the product with the inputs, the
other half of the layer's work, is made once, for the weighted sum of the tasks. Exact. All other
parameters have K gradients in the same backwards.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlfast.jacobian import memory, together
from mtlfast.jacobian.gradients import Jacobian, Product, TaskGradients
from mtlfast.jacobian.graph import Graph
from mtlfast.jacobian.heads import Inputs
from mtlfast.jacobian.linear import Layer, layers
from mtlfast.jacobian.product import LinearProduct
from mtlfast.jacobian.request import UNREACHED, Request
from mtlfast.jacobian.stored import backwards, stored


def factored(request: Request) -> Jacobian:
    """K gradients, as products where that is cheaper.

    Returns:
        K rows of T gradients, and products. Without a layer that pays, what "stored" returns.

    Raises:
        ValueError: no loss reaches any parameter.
    """
    graph = Graph(request.tasks)
    chosen = paying(graph, request)
    if chosen:
        return products(request, graph, chosen)
    del graph
    found = stored(request)
    found.reason = "no linear layer costs less as a product"
    return found


def paying(graph: Graph, request: Request) -> list[Layer]:
    """The layers whose gradients are to be products."""
    return [layer for layer in layers(graph, request.params) if layer.pays]


def products(request: Request, graph: Graph, chosen: Sequence[Layer]) -> Jacobian:
    """K gradients, those of the chosen layers as products.

    Args:
        request: what is asked for.
        graph: of its losses.
        chosen: layers of it.
    """
    reached = graph.reach(request.params)
    if not any(reached):
        raise ValueError(UNREACHED)
    taken = {layer.column for layer in chosen}
    dense = [t for t, mask in enumerate(reached) if mask and t not in taken]
    found = None
    if request.notes.batches is not False and together.pays(request, graph, chosen, dense):
        found = together.differentiate(request, graph, chosen, dense)
    rows, deltas = found or _one_by_one(request, chosen, dense)
    reach = [_mask(column) for column in zip(*rows, strict=True)]
    made: dict[int, Product] = {}
    for layer, column in zip(chosen, zip(*deltas, strict=True), strict=True):
        reach[layer.column] = _mask(column)
        made[layer.column] = LinearProduct.of(layer, column)
    if not any(reach):
        raise ValueError(UNREACHED)
    return Jacobian(request.params, rows, reach, "factored", _reason(request, chosen), made)


def _mask(column: Sequence[Tensor | None]) -> int:
    return sum(1 << k for k, grad in enumerate(column) if grad is not None)


def _one_by_one(
    request: Request, chosen: Sequence[Layer], dense: Sequence[int]
) -> tuple[TaskGradients, TaskGradients]:
    """K backwards: K rows of T gradients, and K rows of output gradients."""
    rows: TaskGradients = []
    deltas: TaskGradients = []
    inputs: Inputs = [
        *(GradientEdge(layer.node, 0) for layer in chosen),
        *(request.params[t] for t in dense),
    ]
    with together.arriving([layer.node for layer in chosen]) as seen:
        for found in backwards(request, inputs):
            deltas.append(
                [
                    seen[layer.node][0] if layer.node in seen else grad
                    for layer, grad in zip(chosen, found, strict=False)
                ]
            )
            seen.clear()
            row: list[Tensor | None] = [None] * len(request.params)
            for t, grad in zip(dense, found[len(chosen) :], strict=True):
                row[t] = grad
            rows.append(row)
    return rows, deltas


def _reason(request: Request, chosen: Sequence[Layer]) -> str:
    whole = sum(layer.num_tasks * layer.param.nbytes for layer in chosen)
    kept = sum(
        layer.inputs.nbytes * (1 + layer.num_tasks * layer.out / layer.inputs.shape[1])
        for layer in chosen
    )
    weights = sum(param.dim() > 1 for param in request.params)
    sizes = f"{memory.in_words(kept)} instead of {memory.in_words(whole)}"
    return f"{len(chosen)} of {weights} weights as products: {sizes}"
