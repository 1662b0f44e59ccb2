"""State stays where a captured CUDA graph reads and writes it; the capture itself is pretended."""

from __future__ import annotations

import pytest
import torch
from cases import ROWS
from devices import Net
from models import assert_same_params, assert_same_state

from mtlfast import MultiTaskOptimizer, capture
from mtlfast.weighting import Weighting, buffered

BY_ID = {row.id: row for row in ROWS}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffered, "_on_host", lambda flag: False)


def made(name: str, **options: str) -> tuple[Net, MultiTaskOptimizer, Weighting]:
    method = BY_ID[name].make(3)
    model = Net(3, CPU)
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    return model, MultiTaskOptimizer(inner, method, **options), method  # type: ignore[arg-type]


def step(model: Net, optimizer: MultiTaskOptimizer, backwards: int = 1) -> None:
    optimizer.zero_grad()
    for _ in range(backwards):
        optimizer.backward(model.losses())
    optimizer.step()


@pytest.mark.parametrize("name", ["moco", "dbmtl", "excess_mtl-slow"])
def test_buffers_stay_in_their_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as without a graph, in the tensors of the step before."""
    expected, eager, eager_method = made(name)
    model, optimizer, method = made(name)
    for _ in range(2):
        step(expected, eager)
        step(model, optimizer)
    assert isinstance(method, buffered.Buffered)
    before = [x for row in method._buffer or [] for x in row]
    assert before
    monkeypatch.setattr(capture, "under_way", lambda tensor: True)
    step(model, optimizer)
    after = [x for row in method._buffer or [] for x in row]
    assert all(x is y for x, y in zip(before, after, strict=True))
    monkeypatch.undo()
    monkeypatch.setattr(buffered, "_on_host", lambda flag: False)
    step(expected, eager)
    assert_same_state(method.state_dict(), eager_method.state_dict())
    assert_same_params(model, expected)


@pytest.mark.parametrize("name", ["gradnorm", "nash", "pcgrad", "imtl"])
def test_state_stays_in_its_place(name: str) -> None:
    """Also where a second micro-batch takes the method back to before the step."""
    model, optimizer, method = made(name)
    step(model, optimizer)
    before = {key: vars(method).get(key) for key in ("_state", "_rng", "_status")}
    step(model, optimizer, 2)
    assert all(vars(method).get(key) is value for key, value in before.items())


def test_second_backward_with_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, _ = made("moco")
    step(model, optimizer)
    monkeypatch.setattr(capture, "under_way", lambda tensor: True)
    with pytest.raises(RuntimeError, match=r"^losses: expected one backward .* of MoCo"):
        step(model, optimizer, 2)


def test_dropped_tasks_are_counted_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, _ = made("cagrad-0.5", nonfinite="drop")
    model.y[1] = torch.nan
    step(model, optimizer)
    before = optimizer._policy.counts, optimizer._policy.known
    monkeypatch.setattr(capture, "under_way", lambda tensor: True)
    for count in (2, 3):
        step(model, optimizer, count)  # micro-batches of one step count once
        assert optimizer.skip_counts == [0, count, 0]
    after = optimizer._policy.counts, optimizer._policy.known
    assert all(x is y for x, y in zip(before, after, strict=True))
