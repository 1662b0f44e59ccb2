"""The CUDA kernel of the fused step and its launches, on fibers, against torch's own optimizers."""

from __future__ import annotations

from typing import Any

import fiber_gpu
import pytest
import torch
from fused import OPTIONS, Pair, make
from kernel_cases import DTYPES, Rows, float64, random_rows
from models import assert_same_params
from test_fused_kernels import Twins

from mtlfast import MultiTaskOptimizer, fused_ops

SIZES = (1, 31, 0, 256, 1023, 2050)
MANY = (5, 300, 40, 1030, 2049, 9, 64, 4100, *range(1, 40))  # more than there are blocks


def stepped(
    name: str, rows: Rows, order: str = "forward", *, capturable: bool = False, seed: int = 0
) -> Twins:
    num_tasks = len(rows)
    more = {"capturable": True} if capturable else {}
    twins = Twins(name, rows, started=True, **more)
    with fiber_gpu.fibers(order, seed):
        twins.step(torch.linspace(-1, 2, num_tasks, dtype=torch.float64) + 0.1)
        assert any(key.startswith("mtlfast_step_") for key in fiber_gpu.launches())
    return twins


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_is_torchs(name: str, dtype: torch.dtype) -> None:
    for num_tasks in (1, 5):
        rows = random_rows(num_tasks, SIZES, dtype, missing=0.2 if num_tasks > 1 else 0.0)
        stepped(name, rows).check(in_float32=True)


@pytest.mark.parametrize("order", fiber_gpu.ORDERS)
@pytest.mark.parametrize("capturable", [False, True])
def test_any_order(order: str, capturable: bool) -> None:
    """Tensors with different counts of steps, which are on the host or on the device."""
    rows = random_rows(3, MANY, torch.float64)
    stepped("adamw-amsgrad", rows, order, capturable=capturable).check()


def test_a_removed_barrier_is_caught() -> None:
    rows = random_rows(2, MANY, torch.float64)
    fiber_gpu.barriers()
    stepped("adam", rows, capturable=True).check()
    sites = [site for site in fiber_gpu.barriers() if site[0].endswith("fused_step.h")]
    assert len(sites) == 2
    for file, line, _ in sites:
        caught = 0
        for order in fiber_gpu.ORDERS:
            with fiber_gpu.without_barrier(file, line):
                twins = stepped("adam", rows, order, capturable=True)
            try:
                twins.check()
            except AssertionError:
                caught += 1
        assert caught, line


def test_launches() -> None:
    """One for each type and count of steps on the host; one where the counts are on the device."""
    wide = random_rows(2, (8,), torch.float64)
    rows = [a + b for a, b in zip(random_rows(2, (9,) * 7), wide, strict=True)]
    for capturable, expected in ((False, 5 + 1), (True, 2)):
        twins = Twins("adam", rows, started=True, **({"capturable": True} if capturable else {}))
        with fiber_gpu.fibers():
            before = sum(fiber_gpu.launches().values())
            twins.step(float64(1, 2))
            found = sum(fiber_gpu.launches().values()) - before
        twins.check(in_float32=True)
        assert found == expected


@pytest.mark.parametrize(("num_tasks", "num_tensors"), [(5, 60), (16, 300), (130, 2)])
def test_tables_of_any_size(num_tasks: int, num_tensors: int) -> None:
    """In the parameters, in the device's memory, and more weights than are kept near."""
    sizes = [1 + t % 40 for t in range(num_tensors)]
    stepped("momentum", random_rows(num_tasks, sizes, torch.float64)).check()


def test_misaligned() -> None:
    rows: Rows = [[torch.randn(1030, dtype=torch.float64)[1:], torch.randn(50).double()]] * 2
    stepped("amsgrad", rows).check()


def test_float64_counts_of_steps() -> None:
    twins = Twins("adam", random_rows(2, (9, 40), torch.float64), started=True, capturable=True)
    for param in twins.params:
        twins.inner.state[param]["step"] = twins.inner.state[param]["step"].double()
    with fiber_gpu.fibers():
        twins.step(float64(1, 1))
    for param, twin in zip(twins.params, twins.copies, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-12, atol=1e-14)


def test_counts_of_different_types() -> None:
    ones = [torch.ones(3), torch.ones(3)]
    steps = [torch.tensor(1.0), torch.tensor(1.0).double()]
    state: Any = ([torch.ones(3)] * 2, [torch.ones(3)] * 2, None, steps)
    with fiber_gpu.fibers(), pytest.raises(ValueError, match=r"steps\[1\]: expected Float"):
        fused_ops.adam_(
            ones, [ones], float64(1), *state, lr=1, beta1=0, beta2=0, eps=1, capturable=True
        )


@pytest.mark.parametrize("options", ["nesterov", "adamw"])
def test_training(options: str) -> None:
    """The whole way, with a largest norm and the learning rate in a tensor."""
    lr = torch.tensor(0.02, dtype=torch.float64)
    pair = Pair(lambda model: make(options, model.parameters()), max_grad_norm=0.4)
    cls, more = OPTIONS[options]
    if options == "adamw":
        more = {**more, "capturable": True}
    inner = cls(pair.model.parameters(), **{**more, "lr": lr})
    pair.found = MultiTaskOptimizer(inner, "upgrad", fused_step=True, max_grad_norm=0.4)
    for index in range(3):
        lr.fill_(0.02 / (index + 1))
        pair.expected.param_groups[0]["lr"] = 0.02 / (index + 1)
        for model, optimizer in pair.sides:
            optimizer.zero_grad()
            optimizer.backward(model.losses(index))
        pair.clip()
        pair.expected.step()
        with fiber_gpu.fibers():
            pair.found.step()
    assert_same_params(pair.model, pair.twin, 1e-9)
