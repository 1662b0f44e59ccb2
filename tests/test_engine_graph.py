"""Where the graph of K losses is cut: random graphs, and the places that are expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from engine_cases import Hooked, PartialReach, Residual, Skips, Towers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Mlp, Tied
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from mtlfast.jacobian.graph import Cut, Graph, places
from mtlfast.jacobian.heads import Heads
from mtlfast.jacobian.request import Request
from mtlfast.jacobian.streaming import streaming
from mtlfast.losses import TaskLosses

Plan = list[tuple[int, int, int]]
"""Operations: what is computed, and from which two of all that is there."""


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters, and losses of a random graph over them."""
    count = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    params = [
        torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(count)
    ]
    known: list[Tensor] = [*params]
    number = st.integers(0, 30)
    plan: Plan = draw(st.lists(st.tuples(st.integers(0, 5), number, number), max_size=14))
    for kind, i, j in plan:
        # Recent tensors more often than old ones: the graph is deep, with paths around.
        a, b = known[-1 - min(i, i % len(known))], known[-1 - j % len(known)]
        if kind == 0:
            known.append(torch.tanh(a))
        elif kind == 1:
            known.append(a * b)
        elif kind == 2:
            known.append(a + b.sin())
        elif kind == 3:
            known.append(torch.cat(tuple(reversed(torch.split(a, 2)))))
        elif kind == 4:
            known.extend(torch.stack([a, b]).unbind())
        else:
            known.append(a.detach() * b)
    losses = []
    for _ in range(draw(st.integers(1, 4))):
        chosen = draw(st.lists(number, min_size=1, max_size=3))
        losses.append(
            sum((known[-1 - i % len(known)].cos().sum() for i in chosen), torch.zeros(()))
        )
    if draw(st.booleans()):
        losses.append(losses[0] * losses[-1])
    if draw(st.booleans()):
        losses.append(losses[0])
    return params, losses


def check_cut(graph: Graph, cut: Cut) -> None:
    """The cut is one: nothing leads up, and no edge below another one."""
    enters = {graph.place(edge.node) for edge in cut.edges}
    found = [n for n in enters if n is not None]
    assert len(found) == len(enters)
    for n in found:
        others = [m for m in found if m != n]
        assert not cut.above >> n & 1
        assert not graph.below(others) >> n & 1
    crossing = set()
    for n in range(len(graph.nodes)):
        for child, number in graph.following(n):
            if cut.above >> n & 1 and not cut.above >> child & 1:
                crossing.add((child, number))
            assert cut.above >> n & 1 or not cut.above >> child & 1
    for root in graph.roots:
        place = graph.place(root.node)
        assert place is not None
        if not cut.above >> place & 1:
            crossing.add((place, root.output_nr))
    assert crossing == {(graph.place(edge.node), edge.output_nr) for edge in cut.edges}
    assert len(crossing) == len(cut.edges)


def task_gradients(params: Sequence[Tensor], losses: Sequence[Tensor]) -> list[list[Tensor]]:
    return [
        list(torch.autograd.grad(x, params, retain_graph=True, materialize_grads=True))
        for x in losses
    ]


@settings(deadline=None, max_examples=150)
@given(graphs())
def test_cut_splits_any_graph(made: tuple[list[Tensor], list[Tensor]]) -> None:
    params, losses = made
    request = Request(TaskLosses.read(losses, None), len(losses), params, retain_graph=True)
    graph = Graph(request.tasks)
    cut = graph.cut()
    check_cut(graph, cut)
    for n, tasks in enumerate(graph.tasks):
        if tasks & (tasks - 1) == 0:
            assert cut.above >> n & 1, "a single task's node is above"
    expected = task_gradients(params, losses)
    reach = graph.reach(params)
    for t, mask in enumerate(reach):
        for k in range(len(losses)):
            assert mask >> k & 1 or not expected[k][t].any()
    if not any(reach):
        return
    heads = Heads.differentiate(request, graph, cut)
    below = [params[t] for t in heads.below]
    for k, row in enumerate(heads.rows):
        pulled = heads.pull(cut, heads.cotangents[k], below)
        for t, grad in zip(heads.below, pulled, strict=True):
            assert row[t] is None
            row[t] = grad
        for grad, right in zip(row, expected[k], strict=True):
            torch.testing.assert_close(torch.zeros(4).double() if grad is None else grad, right)


@settings(deadline=None, max_examples=150)
@given(graphs())
def test_further_cuts_reach_every_parameter_once(made: tuple[list[Tensor], list[Tensor]]) -> None:
    params, losses = made
    request = Request(TaskLosses.read(losses, None), len(losses), params, retain_graph=True)
    graph = Graph(request.tasks)
    first = graph.cut()
    leaves = sum(1 << n for p in params if (n := graph.leaf_place(p)) is not None)
    above = first.above
    for cut in graph.cuts(first):
        check_cut(graph, cut)
        assert above & ~cut.above == 0
        assert above & leaves != cut.above & leaves, "a block without a parameter"
        above = cut.above
    assert above & leaves == leaves
    if not leaves:
        return
    found = streaming(request)
    rows = task_gradients(params, losses)
    every = torch.stack([torch.cat(row) for row in rows])
    like = losses[0]
    gramian = found.gramian(range(len(params)), like)
    torch.testing.assert_close(gramian, every @ every.T)
    weights = torch.arange(1, 1 + len(losses), dtype=torch.float64)
    combined = found.combine(range(len(params)), weights)
    for t, grad in enumerate(combined):
        right = (weights[:, None] * torch.stack([row[t] for row in rows])).sum(0)
        torch.testing.assert_close(torch.zeros(4).double() if grad is None else grad, right)


def names(cut: Cut) -> list[str]:
    return [edge.node.name() for edge in cut.edges]


def blocks(model: nn.Module, losses: list[Tensor]) -> list[set[str]]:
    """The parameters above the first cut, and between each two further ones."""
    graph = Graph(TaskLosses.read(losses, None))
    known = {graph.leaf_place(p): name for name, p in model.named_parameters()}
    above, found = 0, []
    first = graph.cut()
    for cut in (first, *graph.cuts(first)):
        inside = places(cut.above & ~above)
        found.append({known[n] for n in inside if n in known})
        above = cut.above
    return found


def layer(*numbers: int) -> set[str]:
    return {f"layers.{n}.{name}" for n in numbers for name in ("weight", "bias")}


def test_single_chain_is_cut_between_layers() -> None:
    model = Mlp()
    found = blocks(model, model.losses())
    assert found[1:] == [{"last.weight", "last.bias"}, {"first.weight", "first.bias"}]
    assert found[0] == {name for name, _ in model.named_parameters() if "heads" in name}


def test_path_around_a_block_keeps_it_whole() -> None:
    model = Residual()
    assert blocks(model, model.losses())[1:] == [layer(n) for n in (3, 2, 1, 0)]


def test_skip_connections_move_the_cut_down() -> None:
    model = Skips()
    found = blocks(model, model.losses())
    assert layer(1, 2, 3) <= found[0]
    assert found[1:] == [layer(0)]


def test_what_one_task_owns_is_above() -> None:
    model = PartialReach()
    found = blocks(model, model.losses())
    assert layer(2, 3) <= found[0]
    assert found[1:] == [layer(1), layer(0)]


def test_towers_one_after_another() -> None:
    model = Towers()
    found = blocks(model, model.losses())
    assert sorted(map(sorted, found[1:])) == sorted(sorted(layer(n)) for n in range(4))
    assert {frozenset(found[1] | found[2]), frozenset(found[3] | found[4])} == {
        frozenset(layer(0, 1)),
        frozenset(layer(2, 3)),
    }


def test_weight_used_above_moves_the_cut_below_it() -> None:
    model = Tied()
    found = blocks(model, model.losses())
    assert model.heads[0].weight is model.trunk.weight
    assert found == [{name for name, _ in model.named_parameters() if name != "unreached"}]


def test_cut_is_at_the_features() -> None:
    model = Mlp()
    graph = Graph(TaskLosses.read(model.losses(), None))
    assert names(graph.cut()) == ["TanhBackward0"]


def test_unreached_and_frozen_parameters_are_nowhere() -> None:
    model = Mlp()
    graph = Graph(TaskLosses.read(model.losses(), None))
    assert graph.reach([model.unreached, model.frozen]) == [0, 0]
    assert graph.leaf_place(model.unreached) is None


def test_hook_at_the_cut_counts_once() -> None:
    model = Hooked()
    losses = model.losses()
    expected = task_gradients([*model.parameters()], losses)
    request = Request(TaskLosses.read(losses, None), 3, [*model.parameters()], retain_graph=True)
    graph = Graph(request.tasks)
    heads = Heads.differentiate(request, graph, graph.cut())
    below = [request.params[t] for t in heads.below]
    for k in range(3):
        found = heads.pull(heads.cut, heads.cotangents[k], below)
        for t, grad in zip(heads.below, found, strict=True):
            torch.testing.assert_close(grad, expected[k][t])


def test_graph_of_one_parameter() -> None:
    param = torch.ones((), requires_grad=True)
    graph = Graph(TaskLosses.read([param, param], None))
    assert graph.reach([param]) == [3]
    cut = graph.cut()
    check_cut(graph, cut)
    assert get_gradient_edge(param).node in graph.nodes


@pytest.mark.parametrize("make", [Mlp, Residual, Skips, Towers, PartialReach])
def test_cuts_of_models(make: Callable[[], Mlp | Residual]) -> None:
    graph = Graph(TaskLosses.read(make().losses(), None))
    first = graph.cut()
    check_cut(graph, first)
    for cut in graph.cuts(first):
        check_cut(graph, cut)
