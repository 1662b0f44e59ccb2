"""Every row of the table of methods on a device: the CPU's results, and the certified answers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    ROWS,
    Row,
    call,
    oracle,
    random_jacobian,
    random_losses,
    random_orders,
    step,
)
from devices import MOST_ROWS, no_synchronisation
from fiber_gpu import paused
from models import assert_same_state
from test_oracle import NEAR_SINGULAR, direction_error
from torch import Tensor

from mtlfast import ops
from mtlfast.weighting import Weighting, buffered

STEPS = 3
CONDITIONS = ("random", "conflict", "zerorow", "tiny", "huge", "imbal")


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fibers' tensors lie in the host's memory; nobody is to make use of it."""
    monkeypatch.setattr(buffered, "_on_host", lambda flag: False)


def data(num_tasks: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        random_jacobian(num_tasks, seed),
        random_losses(num_tasks, seed),
        random_orders(num_tasks, seed),
    )


def seeded(row: Row, num_tasks: int) -> Weighting:
    torch.manual_seed(5)  # a method that draws its seed draws the same here and there
    weighting = row.make(num_tasks)
    weighting.prepare(torch.device("cpu"))
    return weighting


def numbers(state: Any) -> Any:
    """A state_dict on the CPU."""
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: numbers(value) for key, value in state.items()}
    return [numbers(value) for value in state] if isinstance(state, list) else state


@pytest.mark.parametrize(
    ("row", "given"),
    [(row, True) for row in ROWS] + [(row, False) for row in ROWS if row.drawn],
    ids=lambda value: str(value) if isinstance(value, Row) else "order" if value else "drawn",
)
def test_steps_as_on_the_cpu(device: torch.device, row: Row, given: bool) -> None:
    """Weights or columns, status and state, step by step, and the same random numbers."""
    for num_tasks in (3, 6):
        if device.type == "cpu" and num_tasks * row.make(num_tasks).num_batches > MOST_ROWS:
            continue
        there = seeded(row, num_tasks)
        here = copy.deepcopy(there)
        for t in range(STEPS):
            jacobian, losses, order = data(num_tasks, t)
            moved = [x.to(device) for x in (jacobian, losses, order)]
            found = step(row, there, moved[0], moved[1], moved[2] if given else None)
            status, state = there.status, numbers(there.state_dict())
            with paused():
                expected = step(row, here, jacobian, losses, order if given else None)
            assert found.device == device
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-7, atol=1e-9)
            assert status == here.status
            assert_same_state(state, here.state_dict(), 1e-6)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("row", [row for row in ROWS if row.answer], ids=str)
def test_certified(device: torch.device, row: Row, condition: str) -> None:
    answers = oracle()
    answer = answers["answers"].tolist().index(row.answer)
    keys = [key for key in answers["keys"].tolist() if f"_{condition}_" in key]
    errors = {}
    for key in keys:
        jacobian = torch.from_numpy(answers[f"{key}/J"]).double()
        expected = torch.from_numpy(answers[f"{key}/answers"][answer])
        num_tasks = len(jacobian)
        degenerate = bool(answers[f"{key}/degenerate"][answer])
        if degenerate or expected.isnan().any() or not row.least <= num_tasks <= MOST_ROWS:
            continue
        order = torch.from_numpy(answers[f"{key}/perms"]).long().to(device)
        gramian = ops.gramian([[gradient] for gradient in jacobian.to(device)])
        weighting = row.make(num_tasks)
        for _ in range(row.steps):
            weights = call(weighting, gramian, None, order) / row.factor(num_tasks)
        errors[key] = direction_error(jacobian, weights.cpu(), expected, row.floor)
    assert errors or condition == "zerorow"
    allowed = 1e-6 if condition in NEAR_SINGULAR else 1e-9
    assert {key: error for key, error in errors.items() if not error <= allowed} == {}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_step_does_not_wait(device: torch.device, row: Row) -> None:
    """After the first one, which makes what stays: no synchronisation, nothing from the host."""
    if row.id == "scalarization":
        pytest.skip("its function, Python's max(), reads the losses")
    num_tasks = 3 if row.make(3).num_batches < 3 else 2
    weighting = row.make(num_tasks)
    jacobian, losses, _ = (x.to(device) for x in data(num_tasks, 0))
    step(row, weighting, jacobian, losses, None)
    if getattr(weighting, "lr", 0.0) is None:
        pytest.skip("its parameters lie where their owner has put them")
    with no_synchronisation(device):
        step(replace(row, after=lambda weighting: None), weighting, jacobian, losses, None)
