"""The suite of the solvers: its rows, and what its errors mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import mtlfast
from mtlfast.bench import methods
from mtlfast.bench.case import Case
from mtlfast.bench.peers import Peer, wanted
from mtlfast.bench.rows import Report, Row
from mtlfast.bench.runner import Silent, measure
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites import solvers
from mtlfast.bench.suites.solvers import call, error
from mtlfast.bench.suites.solvers.call import Call, mean_of
from mtlfast.bench.suites.solvers.error import SCALES, Error, distance, problems, truth

pytestmark = pytest.mark.filterwarnings("default")  # the peers' warnings are not ours

CPU = torch.device("cpu")
ONCE = Setting(passes=1, threads=1)


class Fake(Peer):
    """A peer whose call is any function; what differs is said of MGDA."""

    differs: ClassVar[Mapping[str, str]] = {"mgda": "nearly nothing"}

    def __init__(self, name: str, form: str, function: Callable[[Tensor], Any]) -> None:
        self.name = name  # type: ignore[misc]
        self.form, self.function = form, function

    def weights(self, method: str, num_tasks: int) -> tuple[str, Callable[[Tensor], Any]] | None:
        return None if method == "upgrad" else (self.form, self.function)

    def order(self, method: str, num_tasks: int) -> Tensor | None:
        return torch.arange(num_tasks).expand(num_tasks, -1) if method == "pcgrad" else None


class Absent(Peer):
    """A peer that is not installed."""

    name = "Absent"

    def weights(self, method: str, num_tasks: int) -> tuple[str, Callable[[Tensor], Any]] | None:
        raise ModuleNotFoundError("No module named 'absent'")


def exact(gramian: Tensor) -> Tensor:
    return mtlfast.MGDA()(gramian)


def run(case: Case, rounds: int = 16) -> dict[str, Row]:
    """Rows by their key."""
    case.rounds, case.warmup = rounds, 0
    found = measure([case], ONCE, Silent())
    rows = {row.key: row for row in found}
    assert len(rows) == len(found)
    return rows


# ---- the suite -----------------------------------------------------------------------------------


def test_cases_by_setting() -> None:
    names = [case.name for case in solvers.cases(Setting())]
    assert len(set(names)) == len(names)
    for method in methods.names():
        assert {f"{method}, K = {k}" for k in (2, 8, 40)} <= set(names)
    assert "cagrad, K = 3" in names
    assert "cagrad, K = 8, uneven" in names
    assert "upgrad, K = 8, random, G x 1e-12" in names
    assert not any(name.startswith(("krum, K = 8, ", "gradnorm, K = 8, ")) for name in names)
    three = [case.name for case in solvers.cases(Setting(tasks=(5,)))]
    assert three
    assert all("K = 5" in name for name in three)
    quick = solvers.cases(Setting(quick=True))
    assert 0 < len(quick) < len(names)


def test_peers_by_setting() -> None:
    for case in solvers.cases(Setting(peers=("LibMTL",))):
        assert isinstance(case, (Call, Error))
        assert {peer.name for peer in case.peers} <= {"LibMTL"}
    alone = solvers.cases(Setting(peers=()))
    assert not any(isinstance(case, Error) for case in alone)
    assert not any(case.peers for case in alone if isinstance(case, Call))


def test_all_rows_of_a_small_run() -> None:
    """Whatever peers are installed: all the others are named."""
    setting = Setting(tasks=(3,), passes=1, threads=1)
    kinds = ("", ", random", ", random, G x 1e-12")
    some = [f"{name}, K = 3{kind}" for name in ("pcgrad", "config", "cagrad") for kind in kinds]
    cases = [case for case in solvers.cases(setting) if case.name in some]
    for case in cases:
        case.rounds, case.warmup = 2, 0
    rows = measure(cases, setting, Silent())
    assert len({row.key for row in rows}) == len(rows)
    assert {row.figure for row in rows} == set(solvers.FIGURES) - absent_figures(rows)
    for row in rows:
        assert row.p50 is None or math.isfinite(row.p50), row
        assert row.p50 is not None or row.detail, row
        assert row.labels["K"] == 3
        assert row.versus in ("", *(peer.name for peer in wanted(setting)))
    ours = [r for r in rows if r.figure == "solvers/error" and r.target is not None]
    assert all(row.met is not False for row in ours), ours
    assert Report(rows=rows).table()


def absent_figures(rows: Sequence[Row]) -> set[str]:
    """What only a peer brings that takes gradients."""
    some = any(row.figure == "solvers/peers" and row.p50 is not None for row in rows)
    return set() if some else {"solvers/aggregate"}


# ---- times ---------------------------------------------------------------------------------------


def test_rows_of_a_call() -> None:
    peers = [
        Fake("weigher", "gramian", exact),
        Fake("vectors", "direction", lambda jacobian: jacobian.sum(0)),
        Absent(),
    ]
    case = Call("mgda", 8, peers)
    found = run(case, rounds=2)
    assert found["solvers/call/mgda, K = 8"].target == 60
    assert found["solvers/call/mgda, K = 8"].unit == "us"
    assert "solvers/aggregate/mgda, K = 8" in found
    for name in ("weigher", "vectors"):
        row = found[f"solvers/peers/mgda, K = 8, {name}"]
        assert row.versus == name
        assert row.target is None
        assert "nearly nothing" in row.detail
    gone = found["solvers/peers/mgda, K = 8, Absent"]
    assert gone.p50 is None
    assert "No module named 'absent'" in gone.detail
    assert "solvers/peer calls/mgda, K = 8, Absent" in found


@pytest.mark.parametrize(
    ("method", "targets"), [("pcgrad", (5, 20, 400)), ("mgda", (10, 60, 2000))]
)
def test_targets(method: str, targets: tuple[float, ...]) -> None:
    for num_tasks, target in zip((2, 8, 40), targets, strict=True):
        rows = Call(method, num_tasks).rows({"mtlfast": np.ones(3), "ops.solve": np.ones(3)})
        assert [row.target for row in rows] == len(rows) * [target]
        assert len(rows) == (2 if method == "pcgrad" else 1)


def test_ratios_are_theirs_over_ours() -> None:
    """Beside aggregate where a peer takes gradients, whose matrix it has to multiply."""
    peers = [Fake("TorchJD", "gramian", exact), Fake("vectors", "direction", torch.sum)]
    case = Call("mgda", 8, peers)
    run(case, rounds=1)
    samples = {
        "mtlfast": np.array([1.0, 2.0]),
        "mtlfast.aggregate": np.array([2.0, 4.0]),
        "TorchJD": np.array([20.0, 40.0]),
        "vectors": np.array([20.0, 40.0]),
    }
    rows = {row.key: row for row in case.rows(samples)}
    first = rows["solvers/peers/mgda, K = 8, TorchJD"]
    assert (first.p50, first.target, first.at_least) == (20.0, call.FASTER, True)
    assert rows["solvers/peers/mgda, K = 8, vectors"].p50 == 10.0
    assert rows["solvers/peer calls/mgda, K = 8, vectors"].p50 == 30e6


def test_a_sample_goes_on_where_the_last_one_ended() -> None:
    seen: list[float] = []
    variant = mean_of(
        lambda x: seen.append(float(x)), [torch.tensor(float(i)) for i in range(3)], 2, CPU
    )
    for _ in range(3):
        assert variant() > 0
    assert seen == [0, 1, 2, 0, 1, 2]


def test_peers_get_what_they_take() -> None:
    jacobian = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    forms = {form: call.given(form, [jacobian], CPU)[0] for form in error.CERTIFIED}
    assert forms["gramian"].tolist() == [[25.0]]
    assert torch.equal(forms["jacobian"], jacobian)
    assert forms["direction"].dtype == torch.float32


# ---- errors --------------------------------------------------------------------------------------


def test_distance() -> None:
    x, y = torch.eye(2, dtype=torch.float64)
    for scale in (1.0, 1e-300, 1e300):
        assert distance(scale * x, x) == 0.0
        assert distance(scale * x, y) == pytest.approx(math.sqrt(2))
        assert distance(-scale * x, x) == 2.0
    assert distance(x + 1e-9 * y, x) == pytest.approx(1e-9)
    assert distance(0 * x, x) is None
    assert distance(math.nan * x, x) is None
    assert distance(x / 0, x) is None


def test_problems() -> None:
    for kind in SCALES:
        jacobians = problems(kind, 4)
        assert len(jacobians) == 16
        assert all(
            j.dtype == torch.float64 and torch.equal(j, j.float().double()) for j in jacobians
        )
    lengths = torch.stack([j.norm(dim=1) for j in problems("uneven", 4)]).mean(0)
    assert float(lengths[-1] / lengths[0]) == pytest.approx(1e4, rel=0.5)


def test_truth_is_the_shortest_mixture() -> None:
    """Found without our solvers: no gradient shortens it."""
    for jacobian in problems("random", 6):
        found = truth("mgda", jacobian, None)
        assert float((jacobian @ found).min()) >= float(found @ found) * (1 - 1e-12)


def test_truth_is_the_projection_of_the_mean() -> None:
    """DualProj's conditions: no conflict, and what was added is at right angles to the answer."""
    for jacobian in problems("uneven", 6):
        found = truth("dualproj", jacobian, None)
        scale = float(jacobian.norm()) ** 2
        assert float((jacobian @ found).min()) >= -1e-13 * scale
        assert abs(float((found - jacobian.mean(0)) @ found)) <= 1e-13 * scale


@pytest.mark.parametrize("kind", list(SCALES))
@pytest.mark.parametrize("method", ["mgda", "cagrad", "pcgrad", "nash_mtl"])
def test_our_errors_are_certified(method: str, kind: str) -> None:
    peers = [Fake("a", "gramian", exact), Fake("b", "direction", lambda jacobian: jacobian.sum(0))]
    found = run(Error(method, 4, kind, peers))
    for name in ("mtlfast", "mtlfast, float32"):
        row = found[f"solvers/error/{method}, K = 4, {kind}, {name}"]
        assert row.met, row
        assert row.runs == 16


def test_an_equal_peer_is_no_win() -> None:
    found = run(Error("mgda", 6, "random", [Fake("same", "gramian", exact)]))
    row = found["solvers/accuracy/mgda, K = 6, random, same"]
    assert (row.p20, row.p50, row.p80, row.versus) == (1.0, 1.0, 1.0, "same")
    assert row.detail == "nearly nothing"


def test_a_peers_error_is_its_distance() -> None:
    """The mean of the gradients in place of MGDA's answer."""
    peer = Fake("mean", "gramian", lambda gramian: torch.full((6,), 1 / 6))
    found = run(Error("mgda", 6, "uneven", [peer]))
    expected = []
    for jacobian in problems("uneven", 6):
        best, mean = mtlfast.aggregate(jacobian, "mgda"), jacobian.mean(0)
        expected.append(float((best / best.norm() - mean / mean.norm()).norm()))
    row = found["solvers/error/mgda, K = 6, uneven, mean"]
    assert row.p50 == pytest.approx(np.median(expected), rel=1e-6)
    ratio = found["solvers/accuracy/mgda, K = 6, uneven, mean"]
    assert ratio.p50 == pytest.approx(np.median(expected) / 1e-9, rel=1e-6)


def test_scaled_problems_reach_the_peer_scaled() -> None:
    """And the answer that they are compared with is not."""
    seen: list[float] = []

    def weigh(gramian: Tensor) -> Tensor:
        seen.append(float(gramian.diagonal().mean()))
        return exact(gramian)

    sizes = []
    for kind in ("random", "random, G x 1e-12", "random, G x 1e12"):
        seen.clear()
        run(Error("mgda", 6, kind, [Fake("peer", "gramian", weigh)]))
        sizes.append(np.median(seen))
    assert sizes[1] / sizes[0] == pytest.approx(2.0**-40)
    assert sizes[2] / sizes[0] == pytest.approx(2.0**40)


def test_who_finds_no_direction() -> None:
    """It counts as an error of 1, and is counted; who fails at once is no contestant."""
    calls = iter(range(100))

    def sometimes(gramian: Tensor) -> Tensor:
        turn = next(calls)
        if turn == 3:
            raise ArithmeticError("lost")
        return exact(gramian) * (0.0 if turn > 9 else 1.0)

    def never(gramian: Tensor) -> Tensor:
        raise ArithmeticError("never")

    peers = [Fake("some", "gramian", sometimes), Fake("none", "gramian", never), Absent()]
    found = run(Error("mgda", 6, "random", peers))
    row = found["solvers/error/mgda, K = 6, random, some"]
    assert row.p80 == 1.0
    assert row.p20 is not None
    assert row.p20 < 1e-9
    assert row.detail.startswith("no direction in 7 of 16: ArithmeticError: lost")
    for name, said in (("none", "never"), ("Absent", "absent")):
        for figure in ("error", "accuracy"):
            gone = found[f"solvers/{figure}/mgda, K = 6, random, {name}"]
            assert gone.p50 is None
            assert said in gone.detail
    assert not any("upgrad" in key for key in found)


def test_a_method_that_nobody_has() -> None:
    found = run(Error("upgrad", 6, "random", [Fake("a", "gramian", exact)]))
    assert found == {}
