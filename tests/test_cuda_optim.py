"""Training steps on a device: the CPU's result, few launches, no waiting, no new memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import ROWS
from devices import Net, launched, no_synchronisation, skip_beyond
from fiber_gpu import paused
from models import assert_same_params

import mtlfast
from mtlfast import MultiTaskOptimizer, ops
from mtlfast.weighting import ColumnWise, Weighting, buffered

CPU = torch.device("cpu")
METHODS = ("pcgrad", "cagrad-0.5", "upgrad", "nash", "aligned-min", "gradnorm", "mgda", "moco")
BY_ID = {row.id: row for row in ROWS}
INNER: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
}


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffered, "_on_host", lambda flag: False)


def made(
    device: torch.device,
    method: Weighting,
    inner: str = "sgd",
    *,
    heads: bool = True,
    depth: int = 2,
) -> tuple[Net, MultiTaskOptimizer]:
    model = Net(3, device, heads=heads)
    return model, MultiTaskOptimizer(INNER[inner](list(model.parameters())), method)


def train(model: Net, optimizer: MultiTaskOptimizer, steps: int, *, batches: bool = True) -> None:
    for t in range(steps):
        if batches:
            model.next_batch(t)
        optimizer.zero_grad()
        losses = [model.losses() for _ in range(optimizer.weighting.num_batches)]
        optimizer.backward(*losses)
        optimizer.step()


def method_of(name: str) -> Weighting:
    torch.manual_seed(1)
    method = BY_ID[name].make(3)
    method.prepare(CPU)
    return method


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", METHODS)
def test_training_as_on_the_cpu(device: torch.device, name: str, inner: str) -> None:
    with paused():
        expected, optimizer = made(CPU, method_of(name), inner)
        train(expected, optimizer, 5)
    found, optimizer = made(device, method_of(name), inner)
    train(found, optimizer, 5)
    assert optimizer.last is not None
    assert optimizer.last.status == "ok"
    assert_same_params(found.to(CPU), expected, rtol=2e-4)


WAITING = ("scalarization", "uw-parameters")  # their users' functions and parameters do


@pytest.mark.parametrize("nonfinite", ["propagate", "drop"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.id not in WAITING], ids=str)
def test_steps_do_not_wait(device: torch.device, row: object, nonfinite: str) -> None:
    method = BY_ID[str(row)].make(3)
    skip_beyond(device, 3 * method.num_batches)
    model, inner = made(device, method)
    optimizer = MultiTaskOptimizer(inner.inner, method, nonfinite=nonfinite)
    train(model, optimizer, 2, batches=False)
    with no_synchronisation(device):
        train(model, optimizer, 2, batches=False)


@pytest.mark.parametrize("inner", INNER)
def test_fused_steps_do_not_wait(device: torch.device, inner: str) -> None:
    method = method_of("cagrad-0.5")
    model, plain = made(device, method, inner)
    optimizer = MultiTaskOptimizer(plain.inner, method, fused_step=True, max_grad_norm=0.5)
    train(model, optimizer, 2, batches=False)
    with no_synchronisation(device):
        train(model, optimizer, 2, batches=False)


def test_the_trap(device: torch.device) -> None:
    """A read of the device, and numbers from the host, are seen by the tests above."""
    x = torch.ones(3, device=device)
    with no_synchronisation(device), pytest.raises(RuntimeError, match="synchronizing"):
        x.sum().item()
    with no_synchronisation(device), pytest.raises(RuntimeError, match="synchronizing"):
        torch.tensor([1.0, 2.0], device=device)
    with no_synchronisation(device), pytest.raises(RuntimeError, match="synchronizing"):
        x[x > 0]


@pytest.mark.parametrize("name", METHODS[:-1])
def test_a_balance_is_three_launches(device: torch.device, name: str) -> None:
    """One for the Gramian, one for the solver, one for the combination."""
    model, optimizer = made(device, method_of(name), heads=False)
    train(model, optimizer, 1)
    kernels = launched(lambda: train(model, optimizer, 1))
    assert sum(kernels.values()) <= 3, kernels
    kinds = [kernel.split("_")[1] for kernel in kernels]
    assert sorted(kinds) == ["combine", "gramian", "solve"]


def test_own_gradients_cost_one_launch_more(device: torch.device) -> None:
    model, optimizer = made(device, method_of("cagrad-0.5"))
    train(model, optimizer, 1)
    kernels = launched(lambda: train(model, optimizer, 1))
    assert sum(kernels.values()) == 4, kernels


def test_a_large_table_is_uploaded_once(device: torch.device) -> None:
    """Parameters and gradients stay where they are; so does the table of pointers to ``grad``."""
    rows = [[torch.full((3,), 1.0 + k + t, device=device) for t in range(500)] for k in range(8)]
    out: list[torch.Tensor | None] = [torch.empty(3, device=device) for _ in range(500)]
    weights = torch.ones(8, dtype=torch.float64, device=device)

    def balance() -> None:
        ops.gramian(rows)
        ops.combine(rows, weights, out)

    assert launched(balance)["mtlfast_upload"] > 0
    with no_synchronisation(device):
        assert "mtlfast_upload" not in launched(balance)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["pcgrad", "cagrad-0.5", "nash", "gradnorm", "moco", "imtl"])
def test_no_new_memory(gpu: torch.device, name: str) -> None:
    """From the third step on the allocator asks the driver for nothing."""
    model, optimizer = made(gpu, method_of(name))
    train(model, optimizer, 3, batches=False)
    keys = ("segment.all.allocated", "num_alloc_retries", "num_device_alloc")
    before = torch.cuda.memory_stats(gpu)
    train(model, optimizer, 10, batches=False)
    after = torch.cuda.memory_stats(gpu)
    assert {key: after.get(key) for key in keys} == {key: before.get(key) for key in keys}


@pytest.mark.parametrize("name", ["pcgrad", "cagrad-0.5", "nash", "moco"])
def test_same_bits(device: torch.device, name: str) -> None:
    """Two trainings end in the same parameters, bit for bit."""
    found = []
    for _ in range(2):
        model, optimizer = made(device, method_of(name))
        train(model, optimizer, 4)
        found.append(model)
    assert_same_params(found[0], found[1])


@pytest.mark.cuda
def test_gradients_on_two_devices(gpu: torch.device) -> None:
    """Named, whichever comes first."""
    here, there = torch.ones(3), torch.ones(3, device=gpu)
    with pytest.raises(ValueError, match=r"^task_grads\[1\]\[0\]: expected a tensor on cuda"):
        ops.gramian([[there], [here]])
    with pytest.raises(ValueError, match=r"^task_grads\[1\]\[0\]: expected a tensor on cpu"):
        ops.gramian([[here], [there]])
    with pytest.raises(ValueError, match=r"^weights: expected a tensor on cuda"):
        ops.combine([[there], [there]], torch.ones(2, dtype=torch.float64))


def test_columns_in_training(device: torch.device) -> None:
    for method in (mtlfast.weighting.GradDrop(0.1, seed=1), mtlfast.weighting.TrimmedMean(1)):
        assert isinstance(method, ColumnWise)
        with paused():
            expected, optimizer = made(CPU, type(method)(*([0.1, 1] if method.draws else [1])))
            train(expected, optimizer, 3)
        found, optimizer = made(device, method)
        train(found, optimizer, 3)
        assert_same_params(found.to(CPU), expected, rtol=1e-5)
