"""The two parts of a backward: K times through what single tasks own, once through the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlfast import ops
from mtlfast.jacobian.compat import Explained
from mtlfast.jacobian.gradients import Further, TaskGradients, owned
from mtlfast.jacobian.graph import Cut, Graph
from mtlfast.jacobian.request import UNREACHED, Request
from mtlfast.jacobian.taps import Taps

Inputs = Sequence[Tensor | GradientEdge]
"""What to differentiate with respect to; torch takes a mixture, whatever its annotation says."""


@dataclass
class Heads:
    """The upper part of the graph, differentiated once for every task.

    Attributes:
        request: what was asked for.
        graph: the graph; what is below the cut has not been differentiated.
        cut: where the backwards stopped.
        cotangents: K rows of E gradients at the cut's edges; None where a task does not reach one.
        rows: K rows of T gradients, of the parameters above the cut; None elsewhere.
        reach: for each parameter the rows that reach it, one bit each.
        below: the places of the parameters under the cut.
    """

    request: Request
    graph: Graph
    cut: Cut
    cotangents: TaskGradients
    rows: TaskGradients
    reach: list[int]
    below: list[int]

    @classmethod
    def differentiate(
        cls, request: Request, graph: Graph, cut: Cut, around: Iterable[int] = ()
    ) -> Heads:
        """K backwards that stop at the cut.

        Args:
            request: what is asked for.
            graph: of the request's losses.
            cut: where to stop.
            around: places of parameters under the cut whose K gradients are wanted all the same.

        Raises:
            ValueError: no loss reaches any parameter.
        """
        reach = graph.reach(request.params)
        if not any(reach):
            raise ValueError(UNREACHED)
        wanted = set(around)
        above: list[int] = []
        below: list[int] = []
        for t, param in enumerate(request.params):
            place = graph.leaf_place(param)
            if place is not None:
                is_above = t in wanted or cut.above >> place & 1
                (above if is_above else below).append(t)
        rows: TaskGradients = [[None] * len(request.params) for _ in graph.roots]
        cotangents: TaskGradients = []
        seeds = request.tasks.seeds()
        alone = not wanted and graph.is_alone(cut.above)
        last = len(graph.roots) - 1
        at = {(edge.node, edge.output_nr): i for i, edge in enumerate(cut.edges)}
        with Taps(graph, cut.edges) as taps:
            for k, root in enumerate(graph.roots):
                mine = [t for t in above if reach[t] >> k & 1]
                inputs: Inputs = [*cut.edges, *(request.params[t] for t in mine)]
                # Nodes that a single task owns are done with after its backward.
                done = alone or (k == last and not wanted)
                if inputs:
                    keep = request.retain_graph or not done
                    found = _grad([root], inputs, [seeds[k]], keep)
                    for t, grad in zip(mine, found[len(cut.edges) :], strict=True):
                        rows[k][t] = grad
                if (root.node, root.output_nr) in at:
                    taps.add(at[root.node, root.output_nr], seeds[k])
                cotangents.append(taps.take())
        return cls(request, graph, cut, cotangents, rows, reach, below)

    def pull(
        self,
        cut: Cut,
        cotangents: Sequence[Tensor | None],
        inputs: Inputs,
        *,
        retain_graph: bool = True,
    ) -> list[Tensor | None]:
        """One backward from the edges of a cut, of this one or one below it.

        Args:
            cut: where it begins.
            cotangents: a gradient for each of its edges; None: none arrives there.
            inputs: what to differentiate with respect to.
            retain_graph: whether the graph below the cut is needed again.

        Returns:
            A gradient for each input; None where nothing arrives.
        """
        starts = [
            (edge, grad)
            for edge, grad in zip(cut.edges, cotangents, strict=True)
            if grad is not None
        ]
        if not starts or not inputs:
            return [None] * len(inputs)
        edges, grads = zip(*starts, strict=True)
        return _grad(edges, inputs, grads, retain_graph)

    def further(
        self,
        columns: Iterable[int],
        gramian: Tensor | None = None,
        squares: Tensor | None = None,
    ) -> Weighted:
        """The columns below the cut that are left to a backward of the weighted sum.

        Args:
            columns: which.
            gramian: ``[K, K]`` float64, of those that are compared; None: none is.
            squares: ``[K]`` float64, finite where a task's gradients of the others are; default:
                where its gradients at the cut are.
        """
        zero = torch.zeros((), dtype=torch.float64, device=self.request.tasks.losses[0].device)
        count = len(self.rows)
        if squares is None:
            squares = zero.expand(count)
            if self.cut.edges:
                squares = self.gramian_at_cut().diagonal()
        if gramian is None:
            gramian = zero.expand(count, count)
        return Weighted(frozenset(columns), gramian, squares, self, set(columns))

    def gramian_at_cut(self, first: int | None = None) -> Tensor:
        """``[K, K]`` float64: inner products of the tasks' gradients at the cut's first edges."""
        total: Tensor | None = None
        for column in islice(zip(*self.cotangents, strict=True), first):
            more = ops.gramian([[grad] for grad in column])
            total = more if total is None else total + more.to(total.device)
        assert total is not None
        return total.to(self.request.tasks.losses[0].device)


@dataclass
class Weighted(Further):
    """What a backward of the weighted sum of the losses makes; it begins at the cut."""

    columns: frozenset[int]
    gramian: Tensor
    squares: Tensor
    heads: Heads
    left: set[int] = field(default_factory=set)

    def combine(self, columns: Sequence[int], weights: Tensor) -> list[Tensor | None]:
        """One backward; the graph is freed with the last column."""
        if not columns:
            return []
        heads = self.heads
        self.left -= set(columns)
        mixed: list[Tensor | None] = []
        for column in zip(*heads.cotangents, strict=True):
            like = next((grad for grad in column if grad is not None), weights)
            mixed += ops.combine([[grad] for grad in column], weights.to(like.device))
        params = [heads.request.params[t] for t in columns]
        keep = heads.request.retain_graph or bool(self.left)
        with Explained():
            return owned(heads.pull(heads.cut, mixed, params, retain_graph=keep), params)


def _grad(
    starts: Sequence[GradientEdge], inputs: Inputs, grads: Sequence[Tensor], retain_graph: bool
) -> list[Tensor | None]:
    found = torch.autograd.grad(
        starts,
        list(inputs),  # type: ignore[arg-type]
        grads,
        retain_graph=retain_graph,
        allow_unused=True,
    )
    return list(found)
