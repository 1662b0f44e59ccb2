"""Linear layers in the backward graph, and which of them pay as products.

A layer ``y = x Wᵀ + b`` with inputs A ``[T, in]`` and a task's output gradient Δ ``[T, out]`` has
the weight gradient ``Δᵀ A``; T counts all rows that the layer saw, whatever shape they came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from mtlfast.jacobian.graph import Graph

SMALLEST = 1 << 14
"""Elements of a weight below which a few calls more cost what its gradients do."""
TRAFFIC = 64
"""Multiply-adds in the time that an element of a gradient takes to be written, read by the Gramian
and read by the combination; measured on CPUs to within a factor of two."""


MARGIN = 0.8
"""Of the dense cost, what products may cost: the estimate is no better than that."""


@dataclass(frozen=True)
class Layer:
    """One use of a weight that is used once.

    Attributes:
        column: the weight's place among the parameters.
        param: the weight.
        node: what made the layer's outputs; its only output has the output gradient.
        inputs: A, ``[T, in]``, without a graph.
        is_made: whether the inputs were computed in this graph, and are not the memory of a tensor
            that the user has, such as a batch that the next one is written over.
        is_flipped: the weight is ``[in, out]`` (``y = x W``) instead of ``[out, in]``.
        num_tasks: how many of the K (B K) losses reach it.
    """

    column: int
    param: Tensor
    node: Node
    inputs: Tensor
    is_made: bool
    is_flipped: bool
    num_tasks: int

    @property
    def out(self) -> int:
        """Outputs of the layer for each row of inputs."""
        return self.param.numel() // self.inputs.shape[1]

    @property
    def dense_cost(self) -> int:
        """K gradients made, read twice: in multiply-adds."""
        return self.num_tasks * self.param.numel() * (len(self.inputs) + TRAFFIC)

    @property
    def product_cost(self) -> int:
        """Input and output gradients multiplied to a Gramian and, once, to a gradient."""
        tokens, wide = self.inputs.shape
        return (
            tokens * tokens * (wide + self.num_tasks * self.out)
            + tokens * self.param.numel()
            + self.num_tasks * tokens * self.out * TRAFFIC
        )

    @property
    def pays(self) -> bool:
        """Whether its gradients cost less as products."""
        return (
            self.num_tasks > 1
            and self.param.numel() >= SMALLEST
            and self.product_cost < MARGIN * self.dense_cost
        )


def layers(graph: Graph, params: Sequence[Tensor]) -> list[Layer]:
    """The linear layers whose weight gradient is this one product, whatever they would cost.

    A weight with several uses, computed from others, with a hook, or of a kind of its own is none
    of them; neither is a layer whose inputs are computed again for the backward.
    """
    columns = {
        place: t
        for t, param in enumerate(params)
        if _is_plain(param) and (place := graph.leaf_place(param)) is not None
    }
    if not columns:
        return []
    uses = graph.uses()
    found = []
    for n, node in enumerate(graph.nodes):
        name = node.name()
        kind = _KINDS.get(name)
        if kind is None:
            continue
        weight, is_flipped = _weight(graph, uses, node, kind)
        if weight not in columns:
            continue
        column = columns[weight]
        inputs = _inputs(node, kind, params[column], is_flipped)
        if inputs is not None:
            is_made = _is_made(node.next_functions[kind.inputs][0])
            count = graph.tasks[n].bit_count()
            found.append(Layer(column, params[column], node, inputs, is_made, is_flipped, count))
    return found


@dataclass(frozen=True)
class _Kind:
    """Of a product's node: the name of what it saved, and the places of its edges."""

    saved: str
    inputs: int
    weight: int


_KINDS = {
    "AddmmBackward0": _Kind("mat1", 1, 2),
    "MmBackward0": _Kind("self", 0, 1),
}


def _is_plain(param: Tensor) -> bool:
    return (
        type(param) in (Tensor, torch.nn.Parameter)
        and param.dim() == 2
        and param.numel() >= SMALLEST
        and param.layout == torch.strided
        and param.is_floating_point()
        # A hook of the user's wants to see, or to change, each gradient.
        and not param._backward_hooks
    )


def _weight(graph: Graph, uses: list[int], node: Node, kind: _Kind) -> tuple[int, bool]:
    """The place of the parameter that a node multiplies by, -1: none; and whether it is [in, out].

    On the way there may be a transpose and, under autocast, a cast.
    """
    before = node.next_functions[kind.weight][0]
    place = None if before is None else graph.place(before)
    is_flipped = True
    while place is not None and uses[place] == 1:
        following = graph.following(place)
        if not following:
            return place, is_flipped
        name = graph.nodes[place].name()
        if name == "TBackward0" and is_flipped:
            is_flipped = False
        elif name != "ToCopyBackward0":
            break
        place = following[0][0]
    return -1, is_flipped


def _is_made(before: Node | None) -> bool:
    while before is not None and before.name() in _VIEWS:
        before = before.next_functions[0][0]
    return before is not None and bool(before.next_functions)


_VIEWS = frozenset(
    {
        "PermuteBackward0",
        "ReshapeAliasBackward0",
        "SliceBackward0",
        "SqueezeBackward0",
        "SqueezeBackward1",
        "TBackward0",
        "TransposeBackward0",
        "UnsafeViewBackward0",
        "UnsqueezeBackward0",
        "ViewBackward0",
    }
)


def _inputs(node: Node, kind: _Kind, param: Tensor, is_flipped: bool) -> Tensor | None:
    """What the layer saw, ``[T, in]``; None where that is not certain, or would be made again."""
    found: Any = node
    raw = getattr(found, f"_raw_saved_{kind.saved}", None)
    if raw is None or getattr(raw, "unpack_hook", raw) is not None:
        return None
    if getattr(found, "_saved_alpha", 1) != 1:
        return None
    inputs = getattr(found, f"_saved_{kind.saved}", None)
    wide = param.shape[0 if is_flipped else 1]
    if not (
        isinstance(inputs, Tensor)
        and type(inputs) in (Tensor, torch.nn.Parameter)
        and inputs.layout == torch.strided
        and inputs.shape[1:] == (wide,)
        and inputs.device == param.device
    ):
        return None
    return inputs.detach()
