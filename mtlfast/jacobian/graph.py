"""The backward graph of K losses: who reaches what, and where it can be cut in two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from mtlfast.losses import TaskLosses

Bits = int
"""A set of nodes, one bit each, by their place in topological order."""


@dataclass(frozen=True)
class Cut:
    """The graph in two parts: every path from a loss to a node below passes exactly one edge.

    Attributes:
        edges: E edges that lead from the part above to the part below. No node that one of them
            enters can be reached from another, so that the part below may be differentiated
            from all of them at once.
        above: the nodes above.
    """

    edges: list[GradientEdge]
    above: Bits


@dataclass
class Front:
    """A set of nodes with all that leads to them, and the nodes that its edges lead to."""

    above: Bits
    crossing: Bits


class Graph:
    """What autograd has recorded, from K losses down to the parameters.

    It keeps the nodes alive, and with them what they have saved, until it is dropped.
    """

    def __init__(self, tasks: TaskLosses) -> None:
        self.roots = tuple(tasks.edges())
        self.nodes: list[Node] = _in_order(self.roots)
        self._place = {node: n for n, node in enumerate(self.nodes)}
        self._next: list[list[tuple[int, int]]] = [
            [(self._place[fn], number) for fn, number in node.next_functions if fn is not None]
            for node in self.nodes
        ]
        self.tasks = [0] * len(self.nodes)  # which losses reach a node, one bit each
        for k, root in enumerate(self.roots):
            self.tasks[self._place[root.node]] |= 1 << k
        for n, following in enumerate(self._next):
            for child, _ in following:
                self.tasks[child] |= self.tasks[n]
        self._children: list[Bits] = [0] * len(self.nodes)
        self._below: list[Bits] = [0] * len(self.nodes)  # all that can be reached from a node
        for n in reversed(range(len(self.nodes))):
            for child, _ in self._next[n]:
                self._children[n] |= 1 << child
                self._below[n] |= self._below[child]
            self._below[n] |= self._children[n]
        self._leaf = {
            id(variable): n
            for n, node in enumerate(self.nodes)
            if (variable := leaf(node)) is not None
        }
        self._leaves: Bits = sum(1 << n for n in self._leaf.values())

    def place(self, node: Node) -> int | None:
        """A node's place in topological order, losses first; None: no loss reaches it."""
        return self._place.get(node)

    def is_alone(self, above: Bits) -> bool:
        """Whether every node of the set is reached by a single loss."""
        return all(self.tasks[n] & (self.tasks[n] - 1) == 0 for n in places(above))

    def following(self, place: int) -> list[tuple[int, int]]:
        """Where a node's gradients go: places, with the number of the input that they enter."""
        return self._next[place]

    def uses(self) -> list[int]:
        """For every node, how many edges lead to it; a loss counts as one."""
        found = [0] * len(self.nodes)
        for root in self.roots:
            found[self._place[root.node]] += 1
        for following in self._next:
            for child, _ in following:
                found[child] += 1
        return found

    def below(self, chosen: Sequence[int]) -> Bits:
        """The nodes that can be reached from these, and these."""
        found = 0
        for n in chosen:
            found |= self._below[n] | 1 << n
        return found

    def leaf_place(self, param: Tensor) -> int | None:
        """The place of the node that accumulates a parameter's gradient."""
        return self._leaf.get(id(param))

    def reach(self, params: Sequence[Tensor]) -> list[int]:
        """For every parameter the losses that reach it, one bit each."""
        places = (self._leaf.get(id(param)) for param in params)
        return [0 if n is None else self.tasks[n] for n in places]

    def cut(self) -> Cut:
        """Right under what belongs to single tasks, such as their heads.

        Where a path leads from one crossing into another one, the upper part takes in more, until
        none does; in the worst case everything.
        """
        alone = 0
        for n, mask in enumerate(self.tasks):
            if mask & (mask - 1) == 0:
                alone |= 1 << n
        front = self.front(alone)
        self._settle(front)
        return self._cut(front)

    def cuts(self, first: Cut) -> Iterator[Cut]:
        """Further cuts, one below another, each with more parameters above it.

        The last one has no edges. As fine as the graph allows: a block with a path around it is not
        cut through.
        """
        front = self.front(first.above)
        while front.crossing:
            before = front.above & self._leaves
            while front.crossing and front.above & self._leaves == before:
                # What leads to the fewest parameters first: its gradients are soon done with.
                ready = places(front.crossing & ~self.nested(front))
                self._move(front, 1 << min(ready, key=self._size))
                self._settle(front)
            yield self._cut(front)

    def _size(self, place: int) -> tuple[int, int]:
        """How many parameters, and how many nodes, can be reached from a node."""
        below = self._below[place]
        return (below & self._leaves).bit_count(), below.bit_count()

    def _is_of_parameter(self, place: int) -> bool:
        """Whether a node's only input is as large as the only parameter below it."""
        inputs: Any = getattr(self.nodes[place], "_input_metadata", ())
        leaves = self._below[place] & self._leaves
        if leaves.bit_count() != 1 or len(inputs) != 1:
            return False
        param = leaf(self.nodes[leaves.bit_length() - 1])
        return param is not None and prod(inputs[0].shape) == param.numel()

    def front(self, above: Bits) -> Front:
        """What the edges that leave a set of nodes lead to; losses outside of it count as well."""
        crossing = 0
        for root in self.roots:
            crossing |= 1 << self._place[root.node]
        for n in places(above):
            crossing |= self._children[n]
        return Front(above, crossing & ~above)

    def nested(self, front: Front) -> Bits:
        """Those of the crossing nodes that can be reached from another one of them."""
        found = 0
        for n in places(front.crossing):
            found |= self._below[n]
        return found & front.crossing

    def edges(self, front: Front) -> list[GradientEdge]:
        """The edges that lead to the crossing nodes, one for every input of a node."""
        found = {
            edge
            for n in places(front.above)
            if self._children[n] & front.crossing
            for edge in self._next[n]
            if front.crossing >> edge[0] & 1
        }
        found |= {
            (n, root.output_nr)
            for root in self.roots
            if front.crossing >> (n := self._place[root.node]) & 1
        }
        return [GradientEdge(self.nodes[n], number) for n, number in sorted(found)]

    def senders(self, edges: Sequence[GradientEdge]) -> dict[Node, list[tuple[int, int]]]:
        """The nodes that send gradients to these edges: the outputs, each with its edge's place."""
        at = {(edge.node, edge.output_nr): i for i, edge in enumerate(edges)}
        ends = 0
        for edge in edges:
            ends |= 1 << self._place[edge.node]
        found: dict[Node, list[tuple[int, int]]] = {}
        for node, children in zip(self.nodes, self._children, strict=True):
            if children & ends:
                sends = [
                    (output, at[fn, number])
                    for output, (fn, number) in enumerate(node.next_functions)
                    if fn is not None and (fn, number) in at
                ]
                if sends:
                    found[node] = sends
        return found

    def _cut(self, front: Front) -> Cut:
        return Cut(self.edges(front), front.above)

    def _move(self, front: Front, moved: Bits) -> None:
        """Takes crossing nodes that are not nested to the upper part."""
        front.above |= moved
        for n in places(moved):
            front.crossing |= self._children[n]
        front.crossing &= ~front.above

    def _settle(self, front: Front) -> None:
        """Lets the upper part take in more nodes until no crossing node reaches another one."""
        while True:
            ready = front.crossing & ~self.nested(front)
            moved = 0
            for n in places(ready):
                # Done with are a parameter's own node, which leads nowhere, and what passes on
                # its gradient, such as its transpose or a cast.
                ends = not self._next[n] or self._is_of_parameter(n)
                if ends or self._below[n] & front.crossing:
                    moved |= 1 << n
            if not moved:
                return
            self._move(front, moved)


def leaf(node: Node) -> Tensor | None:
    """The tensor whose gradient a node accumulates; None for all other nodes."""
    found: Any = getattr(node, "variable", None) if not node.next_functions else None
    return found if isinstance(found, Tensor) else None


def _in_order(roots: Sequence[GradientEdge]) -> list[Node]:
    """All nodes, each before those that it leads to."""
    done: set[Node] = set()
    order: list[Node] = []
    for root in roots:
        stack: list[tuple[Node, bool]] = [(root.node, False)]
        while stack:
            node, left = stack.pop()
            if left:
                order.append(node)
            elif node not in done:
                done.add(node)
                stack.append((node, True))
                stack.extend((fn, False) for fn, _ in node.next_functions if fn is not None)
    order.reverse()
    return order


def places(bits: Bits) -> Iterator[int]:
    """The places of the nodes in a set, in order."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
