"""gramian, combine, aggregate and the methods inside functions that torch.compile compiles."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import (
    BACKENDS,
    ROWS,
    Row,
    backend,
    batches,
    random_jacobian,
    random_losses,
    random_orders,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import mtlfast
from mtlfast import ops
from mtlfast.operators import tracing
from mtlfast.weighting import Weighting

# Methods that a graph cannot hold: a derivative is taken inside, or there is no operator.
BROKEN = ("scalarization", "excess_mtl")
COMPILED = [row for row in ROWS if not row.id.startswith(BROKEN)]

TaskGrads = list[list["Tensor | None"]]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A function compiled to one graph, and how many graphs were made."""

    def __init__(
        self, function: Callable[..., Any], name: str = "aot_eager", **options: Any
    ) -> None:
        self._counter = CompileCounterWithBackend(name)
        self._compiled = torch.compile(function, fullgraph=True, backend=self._counter, **options)

    def __call__(self, *args: Any) -> Any:
        return self._compiled(*args)

    @property
    def count(self) -> int:
        return int(self._counter.frame_count)


def task_grads(num_tasks: int = 3, dtype: torch.dtype = torch.float32, width: int = 3) -> TaskGrads:
    generator = torch.Generator().manual_seed(num_tasks)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return [
        [draw(4, width), draw(5) if k % 2 == 0 else None, None, draw(2, 3).T]
        for k in range(num_tasks)
    ]


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert [x is None for x in found] == [x is None for x in expected]
        found, expected = ([x for x in xs if x is not None] for xs in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, check_stride=True)


def balanced(rows: TaskGrads) -> list[Tensor | None]:
    return mtlfast.combine(rows, mtlfast.CAGrad()(mtlfast.gramian(rows)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BACKENDS)
def test_one_graph(name: str, dtype: torch.dtype) -> None:
    """Gramian, solve and combine, with None entries, and no second graph for the same shapes."""
    graphs = Graphs(balanced)
    with backend(name):
        for num_tasks in (2, 3):
            rows = task_grads(num_tasks, dtype)
            for _ in range(2):
                assert_equal(graphs(rows), balanced(rows))
    assert graphs.count == 2


def test_out() -> None:
    """``out`` is written to, and returned."""

    def function(rows: TaskGrads, weights: Tensor, out: list[Tensor | None]) -> Any:
        return mtlfast.combine(rows, weights, out), [None if x is None else x + 1 for x in out]

    rows, weights = task_grads(), random_losses(3, 1)
    expected = mtlfast.combine(rows, weights)
    out = [None if x is None else torch.zeros_like(x) for x in expected]
    written, after = Graphs(function)(rows, weights, out)
    assert all(x is y for x, y in zip(written, out, strict=True))
    assert_equal(out, expected)
    assert_equal(after, [None if x is None else x + 1 for x in expected])


def test_needs_no_grad() -> None:
    """As in eager, nothing is differentiable: results require no grad."""

    def function(jacobian: Tensor) -> tuple[Tensor, Tensor, Any]:
        rows = [[row * 2.0] for row in jacobian]
        gramian = mtlfast.gramian(rows)
        return gramian, mtlfast.MGDA()(gramian), ops.combine(rows, gramian[0])[0]

    jacobian = random_jacobian(3, 1).requires_grad_()
    for found, expected in zip(Graphs(function)(jacobian), function(jacobian), strict=True):
        assert not found.requires_grad
        assert not expected.requires_grad
        assert_equal(found, expected)


@pytest.mark.parametrize("row", COMPILED, ids=str)
def test_methods(row: Row) -> None:
    """Three steps by one instance: one graph, or two where the first call makes the state."""

    def function(weighting: Weighting, jacobian: Tensor, losses: Tensor) -> Any:
        return mtlfast.aggregate(jacobian, weighting, losses)

    num_tasks = max(row.least, 3)
    graphs = Graphs(function)
    inside, outside = row.make(num_tasks), row.make(num_tasks)
    for i in range(3):
        jacobian = batches(inside, random_jacobian(num_tasks, i))
        losses = random_losses(num_tasks, i)
        torch.manual_seed(1)  # what is drawn, is drawn from torch's generator
        found = graphs(inside, jacobian, losses)
        torch.manual_seed(1)
        assert_equal(found, function(outside, jacobian, losses))
        assert inside.status == outside.status
    keeps = row.stateful or inside.state_layout or inside.family == "buffer"
    assert graphs.count == (2 if keeps else 1)
    _assert_same_state(inside.state_dict(), outside.state_dict())


def _assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            _assert_same_state(found[key], value)
        elif isinstance(value, str):
            assert found[key] == value
        else:
            torch.testing.assert_close(found[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["upgrad", "pcgrad", "nash_mtl", "graddrop"])
def test_by_name(name: str) -> None:
    """Each run has an instance of its own, so that one graph is enough with a state as well."""

    def function(jacobian: Tensor) -> Any:
        return mtlfast.aggregate(jacobian, name)

    graphs = Graphs(function)
    for seed in range(3):
        jacobian = random_jacobian(4, seed).float()
        torch.manual_seed(seed)
        found = graphs(jacobian)
        torch.manual_seed(seed)
        assert_equal(found, function(jacobian))
    assert graphs.count == 1


@pytest.mark.parametrize("row", [r for r in COMPILED if r.make(3).inputs], ids=str)
def test_inputs(row: Row) -> None:
    """What a call draws can be given, in a graph too."""
    weighting = row.make(4)
    given = {
        "order": random_orders(4, 1),
        "uniform": torch.rand(11, dtype=torch.float64),
        "normal": torch.randn(4, dtype=torch.float64),
    }
    inputs = {key: given[key] for key in weighting.inputs}

    def function(weighting: Weighting, jacobian: Tensor, inputs: dict[str, Tensor]) -> Any:
        return mtlfast.aggregate(jacobian, weighting, random_losses_of_ones, **inputs)

    random_losses_of_ones = torch.ones(4)
    jacobian = random_jacobian(4, 1)
    found = Graphs(function)(row.make(4), jacobian, inputs)
    assert_equal(found, function(weighting, jacobian, inputs))


def test_dynamic_shapes() -> None:
    """One graph for any number of columns."""
    graphs = Graphs(balanced, dynamic=True)
    for width in (6, 7, 100):
        rows = task_grads(width=width)
        assert_equal(graphs(rows), balanced(rows))
    assert graphs.count == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own, at its first import
def test_inductor() -> None:
    """The default backend, which compiles C++ around the operators."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("inductor needs a C++ compiler")

    def function(jacobian: Tensor, weighting: Weighting) -> Any:
        return mtlfast.aggregate(jacobian * 2.0, weighting) + 1.0

    jacobian = random_jacobian(4, 1)
    inside, outside = mtlfast.GradVac(seed=3), mtlfast.GradVac(seed=3)
    graphs = Graphs(function, "inductor")
    for _ in range(2):
        torch.testing.assert_close(graphs(jacobian, inside), function(jacobian, outside))
    _assert_same_state(inside.state_dict(), outside.state_dict())


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    class Balance(torch.nn.Module):
        def forward(self, jacobian: Tensor) -> Any:
            return mtlfast.aggregate(jacobian, "upgrad")

    columns = torch.export.Dim("columns", min=2)
    example = (random_jacobian(3, 1),)
    program = torch.export.export(Balance(), example, dynamic_shapes=({1: columns},), strict=strict)
    other = torch.randn(3, 50, dtype=torch.float64)
    assert_equal(program.module()(other), Balance()(other))


def test_wrong_shapes() -> None:
    """Errors of the graph's making have the messages of eager, and leave the method as it was."""
    weighting = mtlfast.NashMTL()
    with pytest.raises(Exception, match=r"task_grads\[1\]\[0\]: expected shape \[3\]"):
        Graphs(mtlfast.gramian)([[torch.ones(3)], [torch.ones(4)]])
    with pytest.raises(Exception, match=r"weights: expected \[2\]"):
        Graphs(mtlfast.combine)([[torch.ones(3)]] * 2, torch.ones(3))
    with pytest.raises(Exception, match=r"J: expected shape \[K, P\]"):
        Graphs(mtlfast.aggregate)(torch.ones(3), weighting)
    assert weighting.state_dict() == {"method": "nash_mtl"}


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_graph_breaks() -> None:
    """Methods without an operator run outside of the graph."""
    jacobian, losses = random_jacobian(3, 1), random_losses(3, 1)
    for row in ROWS:
        if row in COMPILED:
            continue
        compiled = torch.compile(mtlfast.aggregate, backend="eager")
        expected = mtlfast.aggregate(jacobian, row.make(3), losses)
        assert_equal(compiled(jacobian, row.make(3), losses), expected)


@pytest.mark.parametrize("method", ["upgrad", "pcgrad", "gradnorm", "moco", "graddrop", "uw"])
def test_optimizer(method: str) -> None:
    """A step of the optimizer's around a compiled model, and a compiled step, train as eager."""

    def trained(compiled: str) -> list[Tensor]:
        torch.manual_seed(0)
        net: Any = torch.nn.Sequential(
            torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
        )
        sgd = torch.optim.SGD(net.parameters(), 0.1)
        optimizer = mtlfast.MultiTaskOptimizer(sgd, method)
        params = list(net.parameters())
        if compiled == "model":
            net = torch.compile(net, backend="eager")

        def step(inputs: Tensor) -> None:
            optimizer.zero_grad()
            optimizer.backward((net(inputs) - inputs[:, :3]).square().mean(0))
            optimizer.step()

        for i in range(2):
            step(torch.randn(8, 4, generator=torch.Generator().manual_seed(i)))
        return [param.detach() for param in params]

    for found, expected in zip(trained("model"), trained(""), strict=True):
        torch.testing.assert_close(found, expected)


def test_eager_meets_no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eager call passes no dispatcher, not even while another thread exports."""

    def refuse(*args: Any) -> None:
        raise AssertionError("an operator was called")

    monkeypatch.setattr(tracing, "gramian", refuse)
    rows = task_grads()
    expected = mtlfast.gramian(rows)
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()
    assert_equal(mtlfast.gramian(rows), expected)
