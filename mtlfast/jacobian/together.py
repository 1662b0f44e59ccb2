"""Output gradients of linear layers for all tasks by one batched backward, where that is fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from mtlfast.jacobian.batched import separate, stacked
from mtlfast.jacobian.gradients import TaskGradients
from mtlfast.jacobian.graph import Graph
from mtlfast.jacobian.heads import Heads, Inputs
from mtlfast.jacobian.linear import Layer
from mtlfast.jacobian.request import Request

DENSE_SHARE = 0.1
"""Elements of other parameters, as a share of the layers' own, up to which one batched backward
costs less than K."""

_BATCHED = frozenset(
    {
        "AddBackward0",
        "AddmmBackward0",
        "CatBackward0",
        "CloneBackward0",
        "DivBackward0",
        "EluBackward0",
        "ExpandBackward0",
        "GeluBackward0",
        "HardtanhBackward0",
        "LeakyReluBackward0",
        "MeanBackward0",
        "MeanBackward1",
        "MmBackward0",
        "MulBackward0",
        "NativeLayerNormBackward0",
        "NegBackward0",
        "PermuteBackward0",
        "ReluBackward0",
        "ReshapeAliasBackward0",
        "SigmoidBackward0",
        "SiluBackward0",
        "SelectBackward0",
        "SliceBackward0",
        "SoftplusBackward0",
        "SplitBackward0",
        "SqueezeBackward0",
        "SqueezeBackward1",
        "SubBackward0",
        "SumBackward0",
        "SumBackward1",
        "TBackward0",
        "TanhBackward0",
        "ThresholdBackward0",
        "ToCopyBackward0",
        "TransposeBackward0",
        "UnsafeViewBackward0",
        "UnsqueezeBackward0",
        "ViewBackward0",
        "torch::autograd::AccumulateGrad",
    }
)
"""Nodes whose batched backward is one call for all tasks."""


def pays(request: Request, graph: Graph, chosen: Sequence[Layer], dense: Sequence[int]) -> bool:
    """Whether one batched backward is faster than K.

    Args:
        request: what is asked for.
        graph: of its losses.
        chosen: the layers whose output gradients are wanted.
        dense: places of the parameters whose gradients are.
    """
    own = sum(layer.param.numel() for layer in chosen)
    others = 0
    for t in dense:
        place = graph.leaf_place(request.params[t])
        if place is not None and _is_common(graph.tasks[place]):
            others += request.params[t].numel()
    return others <= DENSE_SHARE * own and all(
        node.name() in _BATCHED
        for node, mask in zip(graph.nodes, graph.tasks, strict=True)
        if _is_common(mask)
    )


def _is_common(mask: int) -> bool:
    return mask & (mask - 1) != 0


def differentiate(
    request: Request, graph: Graph, chosen: Sequence[Layer], dense: Sequence[int]
) -> tuple[TaskGradients, TaskGradients] | None:
    """K backwards through what single tasks own, one batched backward through the rest.

    The first time it is tried out, with a graph that is still there if it fails.

    Args:
        request: what is asked for.
        graph: of its losses.
        chosen: the layers whose output gradients are wanted.
        dense: places of the parameters whose gradients are.

    Returns:
        K rows of T gradients and K rows of output gradients; None: it failed, or the layers are
        not below the cut.
    """
    cut, notes = graph.cut(), request.notes
    places = [graph.place(layer.node) for layer in chosen]
    if not cut.edges or any(n is None or cut.above >> n & 1 for n in places):
        return None
    asked = request if notes.batches else dataclasses.replace(request, retain_graph=True)
    heads = Heads.differentiate(asked, graph, cut)
    below = [t for t in heads.below if t in set(dense)]
    inputs: Inputs = [
        *(GradientEdge(layer.node, 0) for layer in chosen),
        *(request.params[t] for t in below),
    ]
    try:
        found = _pull(heads, [layer.node for layer in chosen], inputs)
    except RuntimeError as error:
        if notes.batches or isinstance(error, torch.OutOfMemoryError):
            raise
        notes.batches = False
        return None
    notes.batches = True
    masks = [*(graph.tasks[n] for n in places if n is not None), *(heads.reach[t] for t in below)]
    columns = [
        [None] * len(heads.rows)
        if grads is None
        else [grad if mask >> k & 1 else None for k, grad in enumerate(separate(grads))]
        for grads, mask in zip(found, masks, strict=True)
    ]
    for t, column in zip(below, columns[len(chosen) :], strict=True):
        for row, grad in zip(heads.rows, column, strict=True):
            row[t] = grad
    deltas = [list(row) for row in zip(*columns[: len(chosen)], strict=True)]
    return heads.rows, deltas


def _pull(heads: Heads, nodes: Sequence[Node], inputs: Inputs) -> list[Tensor | None]:
    """``[K, ...]`` for each input, outputs of the nodes first."""
    stacks = [stacked(column) for column in zip(*heads.cotangents, strict=True)]
    found: list[Tensor | None] = [None] * len(inputs)
    arrived: list[int] = []
    if all(stack is None for stack in stacks):
        return found

    def pull(*given: Tensor | None) -> list[Tensor]:
        with arriving(nodes) as seen:
            keep = heads.request.retain_graph
            grads = heads.pull(heads.cut, given, inputs, retain_graph=keep)
            there = {i: grad for i, grad in enumerate(grads) if grad is not None}
            there |= {i: seen[node][0] for i, node in enumerate(nodes) if node in seen}
        arrived[:] = there
        return list(there.values())

    dims = tuple(None if stack is None else 0 for stack in stacks)
    made = torch.vmap(pull, in_dims=dims, randomness="same")(*stacks)
    for i, grads in zip(arrived, made, strict=True):
        found[i] = grads
    return found


@contextmanager
def arriving(nodes: Sequence[Node]) -> Iterator[dict[Node, tuple[Tensor, ...]]]:
    """Collects the gradients that arrive at some nodes, after hooks on the nodes' outputs.

    Autograd hands out the gradient at an edge before the hooks, unless it goes no further.

    Yields:
        The gradients of a node's outputs, if it was passed; to be cleared by the reader.
    """
    seen: dict[Node, tuple[Tensor, ...]] = {}

    def keep(node: Node) -> Callable[[tuple[Tensor, ...]], None]:
        def hook(grads: tuple[Tensor, ...]) -> None:
            seen[node] = grads

        return hook

    handles = [node.register_prehook(keep(node)) for node in nodes]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        seen.clear()
