"""Balancing on a part of the gradients: of some parameters, or of a shared representation.

K backwards as far as that part, and one through everything else.
"""

from __future__ import annotations

from torch.autograd.graph import GradientEdge, get_gradient_edge

from mtlfast.jacobian.gradients import Jacobian
from mtlfast.jacobian.graph import Cut, Graph, places
from mtlfast.jacobian.heads import Heads
from mtlfast.jacobian.request import Request


def compared(request: Request) -> Jacobian:
    """K gradients of the parameters that are compared; the others take one further backward.

    Raises:
        ValueError: no loss reaches any parameter.
    """
    graph = Graph(request.tasks)
    heads = Heads.differentiate(request, graph, graph.cut())
    seen = set(request.split(heads.reach).compared)
    partly = [t for t in heads.below if t in seen]
    rest = [t for t in heads.below if t not in seen]
    if partly:
        params = [request.params[t] for t in partly]
        for k, (row, cotangents) in enumerate(zip(heads.rows, heads.cotangents, strict=True)):
            last = k == len(heads.rows) - 1 and not rest
            keep = request.retain_graph or not last
            found = heads.pull(heads.cut, cotangents, params, retain_graph=keep)
            for t, grad in zip(partly, found, strict=True):
                row[t] = grad
    return Jacobian(
        request.params,
        heads.rows,
        heads.reach,
        "partial",
        further=heads.further(rest) if rest else None,
    )


def at_features(request: Request) -> Jacobian:
    """K gradients of the features; what lies behind them takes one further backward.

    A parameter behind the features that some loss reaches around them as well has its K gradients
    made one by one.

    Raises:
        ValueError: no loss reaches any parameter, or the features, or one of them is computed from
            another.
    """
    graph = Graph(request.tasks)
    cut, around = _cut_at(graph, request)
    reached_around = {
        t
        for t, param in enumerate(request.params)
        if (place := graph.leaf_place(param)) is not None and around >> place & 1
    }
    heads = Heads.differentiate(request, graph, cut, reached_around)
    below = [t for t in heads.below if t not in reached_around]
    return Jacobian(
        request.params,
        heads.rows,
        heads.reach,
        "features",
        further=heads.further(below),
        seen=heads.gramian_at_cut(len(request.features)),
    )


def _cut_at(graph: Graph, request: Request) -> tuple[Cut, int]:
    """The cut at the features, and the nodes behind them that can also be reached around them."""
    edges: list[GradientEdge] = []
    starts: list[int] = []
    for i, feature in enumerate(request.features):
        edge = get_gradient_edge(feature) if feature.requires_grad else None
        place = None if edge is None else graph.place(edge.node)
        if edge is None or place is None:
            raise ValueError(_unreached(i))
        if edge in edges:
            raise ValueError(
                f"features[{i}]: expected different tensors, found the one of "
                f"features[{edges.index(edge)}]"
            )
        edges.append(edge)
        starts.append(place)
    for i, place in enumerate(starts):
        if graph.below([n for n in starts if n != place]) >> place & 1:
            raise ValueError(
                f"features[{i}]: expected tensors none of which is computed from another, found "
                f"one that another is computed from"
            )
    behind = graph.below(starts)
    front = graph.front(((1 << len(graph.nodes)) - 1) & ~behind)
    crossing = graph.edges(front)
    used = {(edge.node, edge.output_nr) for edge in crossing}
    for i, edge in enumerate(edges):
        if (edge.node, edge.output_nr) not in used:
            raise ValueError(_unreached(i))
    known = {(edge.node, edge.output_nr) for edge in edges}
    at = {edge.node for edge in edges}
    # Another output of a feature's node, such as the other half of a split, is passed on as well.
    edges += [e for e in crossing if e.node in at and (e.node, e.output_nr) not in known]
    around = graph.below([n for n in places(front.crossing) if graph.nodes[n] not in at])
    return Cut(edges, front.above), around & behind


def _unreached(place: int) -> str:
    return (
        f"features[{place}]: expected a tensor that the losses are computed from and that "
        f"requires a gradient, found one that no loss reaches"
    )
