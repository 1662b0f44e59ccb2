"""The suite of the kernels at tiny sizes: its rows, and that everyone in it computes the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mtlfast
from mtlfast import ops, reference
from mtlfast.bench import methods, runner, workloads
from mtlfast.bench.case import Case
from mtlfast.bench.peers import Into, Modes, Peer, given, plain, torchjd
from mtlfast.bench.rows import Row
from mtlfast.bench.runner import Silent, measure
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites import kernels
from mtlfast.bench.suites.kernels import columns, contest, floor, growth, peers, sketch
from mtlfast.bench.suites.kernels.balance import Balance, floor_around
from mtlfast.bench.suites.kernels.contest import Contest

K, P = 3, 600
LABELS = {"K", "P", "dtype", "threads", "contestant"}
MORE_LABELS = {
    "parts": {"part"},
    "peers": {"method", "mode"},
    "peers-time": {"method", "mode"},
    "tensors": {"tensors"},
    "small": {"method"},
    "small-parts": {"method", "part"},
    "methods": {"method"},
    "methods-time": {"method"},
    "columns": {"method"},
    "columns-time": {"method"},
    "columns-peers": {"method", "mode"},
    "columns-peers-time": {"method", "mode"},
    "fused": {"optimizer", "mode"},
    "fused-time": {"optimizer", "mode"},
    "sketch": {"S"},
    "sketch-time": {"S"},
}


class Memory:
    """A floor of a gigabyte a second."""

    def best(self) -> float:
        return 1e9

    read = best


def setting_of(**options: Any) -> Setting:
    found = Setting(**{"tasks": (K,), "params": (P,), "passes": 1, "threads": 1, **options})
    found.__dict__["memory"] = Memory()
    return found


def rows_of(cases: list[Case], setting: Setting) -> list[Row]:
    for case in cases:
        case.rounds, case.warmup, case.passes = 2, 0, 1
    return measure(cases, setting, Silent())


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes most of the time of a tiny case."""
    kept = SimpleNamespace(collect=lambda: 0, disable=gc.disable, enable=gc.enable)
    monkeypatch.setattr(runner, "gc", kept)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``torch.compile`` returns what it is given."""
    given.compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    yield
    given.compiled.cache_clear()


@pytest.mark.usefixtures("eager")
def test_every_case_has_rows_with_keys_of_their_own_and_all_labels() -> None:
    setting = setting_of(peers=("torch",))
    found = rows_of(list(kernels.cases(setting)), setting)
    assert len({r.key for r in found}) == len(found)
    assert {r.figure for r in found} == set(kernels.FIGURES) - {"kernels/columns-peers"}
    for r in found:
        assert r.p50 is not None, f"{r.key}: {r.detail}"
        assert r.runs == 2
        assert set(r.labels) == LABELS | MORE_LABELS.get(r.figure.partition("/")[2], set()), r.key
        assert r.labels["P"] == P
        assert r.target is None  # none was set for such sizes
        compares = r.figure in ("kernels/peers", "kernels/fused")
        assert r.versus == ("torch" if compares else ""), r.key


def test_column_kernels_and_sketches_also_run_on_one_thread() -> None:
    found = [
        case
        for module in (columns, sketch)
        for case in module.cases(setting_of(threads=2))
        if isinstance(case, (columns.Columns, sketch.Sketch))
    ]
    assert [case.threads for case in found] == 3 * [1, None]
    assert [case.labels["threads"] for case in found] == 3 * [1, 2]
    assert [("1 thread" in case.name) for case in found] == 3 * [True, False]


def test_a_quick_run_has_a_part_of_the_cases() -> None:
    def names(quick: bool) -> set[str]:
        found = kernels.cases(Setting(quick=quick, threads=2))
        return {f"{case.figure}: {case.name}" for case in found}

    assert names(quick=True) < names(quick=False) | {
        f"kernels/columns-peers: {method}, K = 4, P = 1e+06" for method in columns.METHODS
    }


def test_targets_are_of_the_sizes_that_they_were_set_for() -> None:
    def targets(setting: Setting) -> dict[str, float]:
        found = [row for case in kernels.cases(setting) for row in case.rows({})]
        return {r.key: r.target for r in found if r.target is not None}

    usual = targets(Setting(threads=2))
    assert usual["kernels/floor/K = 8, P = 1e+07"] == 1.25
    assert usual["kernels/small/K = 4, P = 1e+05, pcgrad"] == 80
    assert usual["kernels/methods/K = 8, P = 1e+07, upgrad"] == 1.05
    assert usual["kernels/columns/K = 4, P = 1e+07, 1 thread, trimmed_mean"] == 1.5
    assert "kernels/floor/K = 40, P = 2e+06" not in usual
    other = targets(Setting(threads=2, dtype=torch.bfloat16))
    assert {key.split("/")[1] for key in other} == {"small"}
    loser = Contest(Setting(), 8, workloads.LARGE, "cagrad", targets={"TorchJD": 3.0})
    loser.contestants = {"TorchJD, default": contest.Contestant("TorchJD", "default")}
    targeted = [r for r in loser.rows({}) if r.target is not None]
    assert [(r.target, r.at_least, r.figure) for r in targeted] == [(3.0, True, "kernels/peers")]


@pytest.mark.parametrize(
    ("make", "passes"),
    [
        (floor.Floor, 2 * K + 1),
        (columns.Columns, K + 1),
        (partial(sketch.Sketch, dtype=torch.bfloat16), 0.5),
    ],
    ids=["floor", "columns", "sketch"],
)
def test_a_ratio_to_the_floor_counts_each_element_once(
    make: Callable[[Setting, int, int], Case], passes: float
) -> None:
    case = make(setting_of(), K, P)
    keys = case.prepare(setting_of())
    samples = {key: np.array([2e9]) for key in keys if key.startswith("before")}
    samples |= {key: np.array([4e9]) for key in keys if key.startswith("after")}
    seconds = 5 * passes * P * 4 / 3e9  # at the mean rate of both sides
    samples |= {key: np.array([seconds]) for key in keys if key not in samples}
    found = [r.p50 for r in case.rows(samples) if r.unit == "x"]
    assert found
    assert found == pytest.approx(len(found) * [5.0])


def test_the_floor_of_the_growth_is_time_for_all_elements() -> None:
    case = growth.Params(setting_of(), K, P)
    samples = {"ours": np.ones(1), "before ours": np.full(1, 1e6), "after ours": np.full(1, 3e6)}
    ours, least = case.rows(samples)
    assert (ours.p50, ours.labels["contestant"]) == (1e3, "mtlfast")
    assert least.p50 == pytest.approx((2 * K + 1) * P * 4 / 2e6 * 1e3)
    assert least.labels["contestant"] == "floor"


def test_the_rate_is_taken_between_all_kernels() -> None:
    rates = count(1.0)
    turns = floor_around(lambda: next(rates), {"a": lambda: 0.0, "b": lambda: 0.0})
    assert list(turns) == ["before a", "a", "after a", "before b", "b", "after b"]
    assert [turn() for turn in turns.values()] == [1, 0, 2, 2, 0, 3]
    assert [turn() for turn in turns.values()] == [4, 0, 5, 5, 0, 6]


@pytest.mark.parametrize("calls", [1, 3])
def test_a_balance_is_the_sum_of_its_parts_and_balances(calls: int) -> None:
    task_grads = workloads.task_gradients(K, P)
    ours = Balance(task_grads, mtlfast.CAGrad(), calls)
    parts = ours.variants()
    assert ours() == pytest.approx(sum(part() for part in parts.values()))
    expected = ops.combine(task_grads, mtlfast.CAGrad()(reference.gramian(task_grads)))
    torch.testing.assert_close(ours.out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_in_every_dtype_and_have_memory_of_their_own(
    dtype: torch.dtype,
) -> None:
    rows = workloads.task_gradients(K, P, num_tensors=7, dtype=dtype)
    expected = workloads.task_gradients(K, P, num_tensors=7)
    assert [len(row) for row in rows] == K * [7]
    assert sum(g.numel() for g in rows[0]) == P
    torch.testing.assert_close(rows, [[g.to(dtype) for g in row] for row in expected])
    grads = [g for row in rows for g in row if g.numel()]
    assert len({g.untyped_storage().data_ptr() for g in grads}) == len(grads)
    assert all(g.untyped_storage().nbytes() == g.nbytes for g in grads)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("method", list(peers.METHODS))
@pytest.mark.parametrize("mode", list(given.WAYS))
def test_plain_torch_computes_what_we_do(method: str, mode: str) -> None:
    into = Into(workloads.task_gradients(4, P))
    before, call = plain.PEER.balances(method, into)[mode]
    before()
    torch.manual_seed(1)
    call()
    found = [param.grad for param in into.params]
    into.clear()
    torch.manual_seed(1)
    contest.balance(methods.make(method), into)()
    torch.testing.assert_close(found, [param.grad for param in into.params], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_plain_torch_compiles() -> None:
    into = Into(workloads.task_gradients(2, P, num_tensors=3))
    found = {}
    for mode, (before, call) in plain.PEER.balances("cagrad", into).items():
        before()
        call()
        found[mode] = [param.grad for param in into.params]
    torch.testing.assert_close(found["compiled"], found["stack + matmul"])


class Fake(Peer):
    """Computes PCGrad in some order and to some scale, and tells an order."""

    name = "fake"

    def __init__(self, scale: float = 1.0, meets: bool = True) -> None:
        self.scale = scale
        self.meets = meets

    def order(self, method: str, num_tasks: int) -> Tensor:
        return torch.arange(num_tasks).expand(num_tasks, -1)

    def balances(self, method: str, into: Into) -> Modes:
        order = self.order(method, len(into.task_grads))
        weighting = mtlfast.PCGrad(include_self=True)

        def call(order: Tensor) -> None:
            weights = weighting(ops.gramian(into.task_grads), order=order) * self.scale
            ops.combine_(into.params, into.task_grads, weights)

        told = order if self.meets else order.flip(1)
        return {"mode": (into.clear, partial(call, told)), "empty": (into.clear, lambda: None)}


class Absent(Peer):
    name = "absent"

    def balances(self, method: str, into: Into) -> Modes:
        raise ModuleNotFoundError("No module named 'absent'")


def contested(monkeypatch: pytest.MonkeyPatch, *entering: Peer, **options: Any) -> dict[str, Row]:
    monkeypatch.setattr(contest, "wanted", lambda _: entering)
    setting = setting_of(**options)
    found = rows_of([Contest(setting, 4, P, "pcgrad")], setting)
    first = f"pcgrad, K = 4, P = {P}, "
    return {r.key.replace(first, ""): r for r in found}


def test_who_computes_the_same_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = contested(monkeypatch, Fake())
    ratio = rows["kernels/peers/fake, mode"]
    assert ratio.p50 is not None
    assert (ratio.versus, ratio.labels["contestant"]) == ("fake", "fake")
    times = [rows[f"kernels/peers-time/{name}"].p50 for name in ("fake, mode", "mtlfast")]
    assert None not in times


def test_a_comparison_is_their_time_over_ours_round_by_round() -> None:
    case = Contest(setting_of(), 4, P, "pcgrad")
    case.contestants = {"fake, mode": contest.Contestant("fake", "mode", 1e-7)}
    samples = {"mtlfast": np.array([1.0, 2.0, 4.0]), "fake, mode": np.array([12.0, 2.0, 8.0])}
    ratio, ours, theirs = case.rows(samples)
    assert (ratio.p50, ratio.unit) == (2.0, "x")
    assert ratio.detail == "8e+03 ms against 2e+03; results differ by 1.0e-07"
    assert (ours.p50, theirs.p50, theirs.unit) == (2e3, 8e3, "ms")


@pytest.mark.parametrize(
    "peer", [Fake(scale=1.01), Fake(meets=False)], ids=["another length", "another order"]
)
def test_who_computes_something_else_is_named_and_not_timed(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = contested(monkeypatch, peer)
    for figure in ("peers", "peers-time"):
        row = rows[f"kernels/{figure}/fake, mode"]
        assert row.p50 is None
        assert row.detail.startswith("computes something else: ")
    assert rows["kernels/peers-time/mtlfast"].p50 is not None


def test_who_fills_nothing_or_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = contested(monkeypatch, Fake(), Absent())
    empty = rows["kernels/peers/fake, empty"]
    assert empty.detail == "ValueError: expected every .grad to be filled, found None"
    absent = rows["kernels/peers/absent"]
    assert (absent.p50, absent.versus) == (None, "absent")
    assert absent.detail == "ModuleNotFoundError: No module named 'absent'"


@pytest.mark.usefixtures("eager")
def test_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = contested(monkeypatch, plain.PEER, dtype=torch.bfloat16)
    assert all(r.p50 is not None for r in rows.values()), rows
    setting = setting_of(dtype=torch.bfloat16)
    (found,) = [r for r in rows_of(list(floor.cases(setting)), setting) if r.unit == "x"]
    assert found.case == f"K = {K}, P = {P}, bfloat16"
    assert found.labels["dtype"] == "bfloat16"
    assert found.p50 is not None


@pytest.mark.parametrize("method", ["cagrad", "pcgrad", *columns.METHODS])
def test_torchjd_agrees_in_all_modes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchjd")
    monkeypatch.setattr(contest, "wanted", lambda _: [torchjd.PEER])
    case = Contest(setting_of(), 4, P, method)
    variants = case.prepare(setting_of())
    assert case.missing == {}
    assert len(variants) == 3
    assert all(entry.difference < 1e-3 for entry in case.contestants.values())
