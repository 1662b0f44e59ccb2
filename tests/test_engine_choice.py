"""What engine="auto" chooses, what it says about it, and what it falls back to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from engine_cases import CASES, METHODS, Case, Method, check_same
from models import Mlp, last, wrap
from torch import nn
from wide import Wide, assert_close_grads, kept, two_layers

from mtlfast import jacobian
from mtlfast.jacobian import choice, factored, memory
from mtlfast.jacobian.notes import LONGEST, Notes


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_what_stored_gives(case: Case, method: Method) -> None:
    check_same(case, method, "auto", ran=RUNS.get(case.id, "stored"))


RUNS = dict.fromkeys(("gramian_params", "lowest compared", "heads compared"), "partial")


def test_products_where_they_pay() -> None:
    model, twin = Wide(), Wide()
    optimizer, expected = wrap(model, "upgrad"), wrap(twin, "upgrad", engine="stored")
    for step in range(5):
        for net, own in ((model, optimizer), (twin, expected)):
            own.zero_grad()
            own.backward(net.losses(step))
        info = last(optimizer)
        assert info.engine == "factored"
        assert info.reason == "2 of 5 weights as products: 0.147 MB instead of 1.57 MB"
        assert_close_grads(model, twin, 1e-9)


def test_stored_where_they_do_not() -> None:
    for model in (Mlp(), Wide(shape=(2000,))):
        optimizer = wrap(model, "upgrad")
        optimizer.backward(model.losses())
        assert (last(optimizer).engine, last(optimizer).reason) == (
            "stored",
            "its K backwards cost least here",
        )
    optimizer = wrap(model, "graddrop")
    optimizer.backward(model.losses())
    assert last(optimizer).reason == "the method reads all task gradients"
    optimizer.zero_grad()
    single = wrap(model, "upgrad")
    single.backward(model.losses()[:1])
    assert (last(single).engine, last(single).reason) == ("stored", "there is one loss")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """How much memory there is, to be changed by the test; and how often it was asked for."""
    known: dict[str, int | None] = {"bytes": None, "calls": 0}

    def look(device: torch.device) -> int | None:
        known["calls"] = (known["calls"] or 0) + 1
        return known["bytes"]

    monkeypatch.setattr(memory, "free", look)
    return known


def bytes_of(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


def test_streaming_where_the_gradients_do_not_fit(free: dict[str, int | None]) -> None:
    model = Wide(shape=(2000,))
    twin = copy.deepcopy(model)
    free["bytes"] = 3 * bytes_of(model)
    optimizer, expected = wrap(model, "upgrad"), wrap(twin, "upgrad", engine="stored")
    optimizer.backward(model.losses())
    expected.backward(twin.losses())
    assert last(optimizer).engine == "streaming"
    assert last(optimizer).reason == "K P = 1.6 MB do not fit in 1.6 MB"
    assert_close_grads(model, twin, 1e-9)


def test_products_take_no_such_memory(free: dict[str, int | None]) -> None:
    """What stays dense has to fit, no more."""
    model = Wide()
    free["bytes"] = bytes_of(model)
    optimizer = wrap(model, "upgrad")
    optimizer.backward(model.losses())
    assert last(optimizer).engine == "factored"
    free["bytes"] = bytes_of(model.heads)
    optimizer = wrap(model, "upgrad")
    optimizer.backward(model.losses())
    assert last(optimizer).engine in ("streaming", "sketched")


def test_sketches_where_no_block_fits(free: dict[str, int | None]) -> None:
    """The one way left is approximate, and says why."""
    model = Wide(shape=(2000,))
    free["bytes"] = bytes_of(model) // 2
    optimizer = wrap(model, "upgrad", sketch_size=1024)
    optimizer.backward(model.losses())
    assert last(optimizer).engine == "sketched"
    assert last(optimizer).reason == (
        "K P = 1.6 MB do not fit in 0.267 MB, nor do 0.793 MB of the largest block"
    )


def test_a_step_keeps_the_form_of_its_gradients(free: dict[str, int | None]) -> None:
    """Memory that runs out between two micro-batches changes the next step, not this one."""
    model = Wide(shape=(2000,))
    twin = copy.deepcopy(model)
    optimizer, expected = wrap(model, "upgrad"), wrap(twin, "upgrad", engine="stored")
    found = []
    for step in range(2):
        for batch in range(3):
            for net, own in ((model, optimizer), (twin, expected)):
                own.backward(net.losses(3 * step + batch))
            found.append(last(optimizer).engine)
            free["bytes"] = 2 * bytes_of(model)
        if step == 0:
            assert_close_grads(model, twin, 1e-9)
        for own in (optimizer, expected):
            own.zero_grad()
    assert found[:3] == ["stored"] * 3
    assert found[3:] in (["stored"] * 3, ["streaming"] + ["joint"] * 2)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.backward(model.losses())
    assert last(optimizer).engine == "streaming"


def test_deciding_is_rare(free: dict[str, int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice is looked at again after 1, 2, 4, ... steps."""
    walks = 0
    original = factored.paying

    def counted(*args: Any) -> Any:
        nonlocal walks
        walks += 1
        return original(*args)

    monkeypatch.setattr(choice, "paying", counted)
    model = Wide(shape=(500,))
    optimizer = wrap(model, "upgrad")
    for step in range(15):
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        assert last(optimizer).engine == "stored"
    assert walks == 4
    assert free["calls"] == 4


def test_waits_are_bounded() -> None:
    notes = Notes()
    waits = [notes.choose((3, 4), "stored", "").wait for _ in range(10)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, LONGEST, LONGEST, LONGEST]


@pytest.mark.parametrize("engine", ["factored", "sketched"])
def test_falls_back_to_stored(
    engine: str, free: dict[str, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under "auto" an engine that cannot differentiate a graph is named with its reason."""

    def fails(request: jacobian.Request) -> jacobian.Jacobian:
        raise RuntimeError("aten::no_such_rule has no batching rule\nand more")

    monkeypatch.setitem(choice._ENGINES, engine, fails)
    free["bytes"] = None if engine == "factored" else 2000
    model, twin = Wide(), Wide()
    optimizer, expected = wrap(model, "upgrad"), wrap(twin, "upgrad", engine="stored")
    for step in range(3):
        for net, own in ((model, optimizer), (twin, expected)):
            own.zero_grad()
            own.backward(net.losses(step))
        info = last(optimizer)
        assert info.engine == "stored"
        assert info.reason == f"{engine} failed: aten::no_such_rule has no batching rule"
        assert_close_grads(model, twin, 1e-9)
    asked = wrap(model, "upgrad", engine=engine)
    with pytest.raises(RuntimeError, match="no_such_rule"):
        asked.backward(model.losses())


def test_the_error_of_a_graph_that_is_gone() -> None:
    """No engine could do better: the first error is the one that is shown."""
    model = Wide()
    optimizer = wrap(model, "upgrad")
    optimizer.backward(model.losses())
    optimizer.zero_grad()
    losses = model.losses()
    optimizer.backward(losses)
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.backward(losses)
    assert all(p.grad is None for p in model.parameters())
    optimizer.backward(model.losses())
    assert len(kept(optimizer).products) == 2


def test_out_of_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(request: jacobian.Request) -> jacobian.Jacobian:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setitem(choice._ENGINES, "factored", fails)
    model = Wide()
    optimizer = wrap(model, "upgrad")
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.backward(model.losses())


def test_free_memory_of_this_machine() -> None:
    there = memory.free(torch.device("cpu"))
    assert there is None or 1 << 20 < there < 1 << 50
    assert memory.free(torch.device("meta")) is None
    sizes = memory.by_device([torch.zeros(3), torch.zeros(5, dtype=torch.float64)])
    assert sizes == {torch.device("cpu"): 52}


def test_without_meminfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free(torch.device("cpu")) is None
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable: 7 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    assert memory.free(torch.device("cpu")) == 7 * 1024
    assert memory.lacking({torch.device("cpu"): 5000}) is None
    assert memory.lacking({torch.device("cpu"): 6000}) == (6000, 7 * 1024)


def test_limit_of_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 7 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    for limit, expected in (("max", 7168), ("5000", 2100), ("100", 0), ("90000", 7168)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("3000\n")
        (tmp_path / "memory.stat").write_text("anon 2900\ninactive_file 100\nslab 5\n")
        assert memory.free(torch.device("cpu")) == expected


@pytest.mark.parametrize("count", [2, 5])
def test_copies_begin_without_notes(count: int) -> None:
    model = Wide(two_layers(), num_tasks=count)
    optimizer = wrap(model, "upgrad")
    optimizer.backward(model.losses())
    assert optimizer._notes.plans
    assert not copy.deepcopy(optimizer)._notes.plans


def test_other_numbers_of_losses_are_other_choices() -> None:
    model = Wide(num_tasks=4)
    optimizer = wrap(model, "upgrad")
    for count in (4, 2, 1):
        optimizer.zero_grad()
        optimizer.weighting.reset()
        optimizer.backward(model.losses()[:count])
    assert [plan.engine for plan in optimizer._notes.plans.values()] == ["factored"] * 2
