"""CUDA graphs: a step or a balance captured once and replayed on changing data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import ROWS
from devices import Net
from models import assert_same_params, assert_same_state
from torch import Tensor, nn

from mtlfast import MultiTaskOptimizer, ops
from mtlfast.weighting import Weighting

pytestmark = pytest.mark.cuda
BY_ID = {row.id: row for row in ROWS}
METHODS = (
    *("sum", "constant", "pcgrad", "gradvac", "cagrad-0.5", "mgda", "upgrad", "nash", "imtlg"),
    *("aligned-min", "config", "gradnorm", "imtl", "moco", "dbmtl", "excess_mtl-slow", "sdmgrad"),
    *("uw", "famo", "rlw", "graddrop", "median", "crmogm-pcgrad", "crmogm-dbmtl", "pcd"),
)
INNER: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, capturable=True),
}


def captured(call: Callable[[], Any], warmups: int = 3) -> torch.cuda.CUDAGraph:
    """A graph of the call, which ran a few times before on a stream of its own, as torch asks."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmups):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


class Training:
    """A model whose step is a function without arguments."""

    def __init__(
        self, gpu: torch.device, method: Weighting, inner: str = "sgd", **options: Any
    ) -> None:
        self.model = Net(3, gpu)
        self.optimizer = MultiTaskOptimizer(
            INNER[inner](list(self.model.parameters())), method, **options
        )

    def step(self) -> None:
        self.optimizer.zero_grad()
        count = self.optimizer.weighting.num_batches
        self.optimizer.backward(*(self.model.losses() for _ in range(count)))
        self.optimizer.step()


def compared(
    gpu: torch.device,
    method: Weighting,
    inner: str,
    step: Callable[[Training], None],
    **options: Any,
) -> None:
    """Trains by a graph and without one on the same data: same parameters, same state."""
    eager = Training(gpu, copy.deepcopy(method), inner, **options)
    replayed = Training(gpu, copy.deepcopy(method), inner, **options)
    graph = captured(lambda: step(replayed))
    for _ in range(3):
        step(eager)
    for seed in range(1, 6):
        eager.model.next_batch(seed)
        step(eager)
        replayed.model.next_batch(seed)
        graph.replay()
    torch.cuda.synchronize()
    assert_same_params(replayed.model, eager.model, rtol=1e-5)
    state, expected = (training.optimizer.weighting.state_dict() for training in (replayed, eager))
    assert_same_state(state, expected, 1e-5)


def seeded(name: str) -> Weighting:
    torch.manual_seed(2)
    method = BY_ID[name].make(3)
    method.prepare(torch.device("cpu"))
    return method


@pytest.mark.parametrize("name", METHODS)
def test_whole_step(gpu: torch.device, name: str) -> None:
    """Forward, K backwards, balance and optimizer; state and random numbers move on."""
    compared(gpu, seeded(name), "sgd", Training.step)


@pytest.mark.parametrize("name", ["cagrad-0.5", "moco"])
def test_whole_step_with_adam(gpu: torch.device, name: str) -> None:
    compared(gpu, seeded(name), "adam", Training.step)


@pytest.mark.parametrize("inner", INNER)
def test_whole_fused_step(gpu: torch.device, inner: str) -> None:
    compared(gpu, seeded("cagrad-0.5"), inner, Training.step, fused_step=True, max_grad_norm=0.5)


@pytest.mark.parametrize("name", ["pcgrad", "gradnorm"])
def test_whole_step_that_drops_tasks(gpu: torch.device, name: str) -> None:
    compared(gpu, seeded(name), "sgd", Training.step, nonfinite="drop")


def two_backwards(training: Training) -> None:
    training.optimizer.zero_grad()
    for _ in range(2):
        training.optimizer.backward(training.model.losses())
    training.optimizer.step()


@pytest.mark.parametrize("name", ["pcgrad", "cagrad-0.5", "gradnorm", "nash"])
def test_micro_batches(gpu: torch.device, name: str) -> None:
    """The method's state moves on once a replay, and stays where the graph knows it."""
    compared(gpu, seeded(name), "sgd", two_backwards)


def test_micro_batches_with_buffers_are_refused(gpu: torch.device) -> None:
    training = Training(gpu, seeded("moco"))
    with pytest.raises(RuntimeError, match="expected one backward in a captured step of MoCo"):
        captured(lambda: two_backwards(training))


OPTIONS: dict[str, tuple[float, ...]] = {"cagrad": (0.5, 0.0, 0.0), "pcgrad": (0.0, 0.0)}


class Balance:
    """Gramian, solver and combination of static gradients."""

    def __init__(self, gpu: torch.device, num_tasks: int, num_tensors: int, name: str) -> None:
        sizes = [1 + 37 * t % 301 for t in range(num_tensors)]
        self.rows: list[list[Tensor | None]] = [
            [torch.empty(size, device=gpu) for size in sizes] for _ in range(num_tasks)
        ]
        self.out: list[Tensor | None] = [torch.empty(size, device=gpu) for size in sizes]
        self.name = name
        self.rng = torch.tensor([7, 0], device=gpu)
        self.gramian = self.weights = torch.empty(0)

    def fill(self, seed: int) -> None:
        generator = torch.Generator(device=self.rng.device).manual_seed(seed)
        for row in self.rows:
            for tensor in row:
                assert tensor is not None
                tensor.normal_(generator=generator)

    def __call__(self) -> None:
        self.gramian = ops.gramian(self.rows)
        rng = self.rng if self.name == "pcgrad" else None
        self.weights = ops.solve(self.name, self.gramian, options=OPTIONS[self.name], rng=rng)
        ops.combine(self.rows, self.weights, self.out)

    def answer(self) -> list[Tensor]:
        found = [self.gramian, self.weights, *(x for x in self.out if x is not None)]
        return [x.clone() for x in found]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("num_tasks", "num_tensors"), [(4, 20), (12, 200), (40, 20), (40, 200), (70, 9)]
)
def test_only_the_balance(gpu: torch.device, num_tasks: int, num_tensors: int, name: str) -> None:
    """Bit for bit what it is without a graph; tables in parameters and in the device's memory."""
    balance = Balance(gpu, num_tasks, num_tensors, name)
    balance.fill(0)
    graph = captured(balance)
    for seed in range(1, 4):
        balance.fill(seed)
        counter = balance.rng.clone()
        graph.replay()
        found = balance.answer()
        eager = Balance(gpu, num_tasks, num_tensors, name)
        eager.rng.copy_(counter)
        eager.fill(seed)
        eager()
        torch.testing.assert_close(found, eager.answer(), rtol=0, atol=0)
        torch.testing.assert_close(balance.rng, eager.rng, rtol=0, atol=0)


def test_tables_of_a_graph_are_its_own(gpu: torch.device) -> None:
    """Other balances between the replays upload other tables, and reuse the memory of old ones."""
    first = Balance(gpu, 12, 600, "cagrad")
    first.fill(1)
    graph = captured(first)
    graph.replay()
    expected = first.answer()
    for seed in range(3):
        other = Balance(gpu, 12, 600 + seed, "cagrad")
        other.fill(seed)
        other()
        for x in first.out:
            assert x is not None
            x.fill_(torch.nan)
        graph.replay()
        torch.testing.assert_close(first.answer(), expected, rtol=0, atol=0)


def test_two_graphs_at_once(gpu: torch.device) -> None:
    """Each counts its blocks by itself, whatever stream it is replayed on."""
    balances = [Balance(gpu, 4, 50, "cagrad") for _ in range(2)]
    graphs = []
    for seed, balance in enumerate(balances):
        balance.fill(seed)
        graphs.append(captured(balance))
    expected = []
    for graph, balance in zip(graphs, balances, strict=True):
        graph.replay()
        expected.append(balance.answer())
    streams = [torch.cuda.Stream() for _ in graphs]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    for _ in range(50):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for balance, answer in zip(balances, expected, strict=True):
        torch.testing.assert_close(balance.answer(), answer, rtol=0, atol=0)
