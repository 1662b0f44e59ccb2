"""How benchmarks are measured and reported: turns, warm-ups, passes, failures, budgets, rows."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtlfast.bench import allocator, bandwidth, runner
from mtlfast.bench.case import Case, Samples, Variant
from mtlfast.bench.rows import Report, Row, row
from mtlfast.bench.runner import Silent, measure, visit
from mtlfast.bench.setting import Setting


class Scripted(Case):
    """Contestants whose samples are given, and a log of what happens."""

    figure = "suite/figure"
    name = "case"
    rounds = 3
    warmup = 1

    def __init__(self, script: Mapping[str, Callable[[], float]]) -> None:
        super().__init__()
        self.script = script
        self.log: list[str] = []
        self.samples: Samples = {}

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        self.log.append("prepare")
        return {name: partial(self.take, name) for name in self.script}

    def take(self, name: str) -> float:
        self.log.append(name)
        return self.script[name]()

    def rows(self, samples: Samples) -> list[Row]:
        self.samples = samples
        return [
            self.row("A", samples, ("A",), lambda a: a, unit="s"),
            self.row("B over A", samples, ("B", "A"), lambda b, a: b / a, versus="B", target=5),
        ]


class Clock:
    """Stands still but for :meth:`advance`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    process_time = perf_counter = monotonic

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(runner, "time", found)
    monkeypatch.setattr(bandwidth, "time", found)
    return found


def script(**values: list[float]) -> dict[str, Callable[[], float]]:
    return {name: partial(next, iter(samples)) for name, samples in values.items()}


def run(case: Case, passes: int = 1, budget: float | None = None) -> list[Row]:
    return measure([case], Setting(passes=passes, threads=1, budget=budget), Silent())


def test_contestants_take_turns_after_a_warm_up() -> None:
    case = Scripted(script(A=[0, 1, 2, 3], B=[0, 4, 5, 6]))
    run(case)
    assert case.log == ["prepare", *4 * ["A", "B"]]
    assert {name: list(s) for name, s in case.samples.items()} == {"A": [1, 2, 3], "B": [4, 5, 6]}


def test_every_pass_prepares_anew_warms_up_and_makes_its_part_of_the_rounds() -> None:
    case = Scripted(script(A=list(range(10)), B=list(range(10))))
    run(case, passes=2)
    assert case.log == 2 * ["prepare", *3 * ["A", "B"]]
    assert list(case.samples["A"]) == [1, 2, 4, 5]


def test_a_case_may_ask_for_fewer_passes() -> None:
    case = Scripted(script(A=list(range(10)), B=list(range(10))))
    case.passes = 1
    run(case, passes=4)
    assert case.log.count("prepare") == 1
    assert list(case.samples["A"]) == [1, 2, 3]


def of_passes(*medians: float) -> dict[str, Callable[[], float]]:
    """B over A is so much in every round of a pass, of one warm-up and one round; then forever."""
    values = [m for m in medians for _ in range(2)]
    return {"A": lambda: 1.0, "B": partial(next, chain(values, repeat(medians[-1])))}


def test_cases_whose_ratios_differ_between_passes_are_visited_again(clock: Clock) -> None:
    sure, unsure = Scripted(of_passes(2.0, 2.0)), Scripted(of_passes(2.0, 3.0, 2.0, 2.0, 2.0))
    unsure.name = "unsure"
    for case in (sure, unsure):
        case.rounds = 2
    found = measure([sure, unsure], Setting(passes=2, threads=1), Silent())
    assert sure.log.count("prepare") == 2
    assert unsure.log.count("prepare") == 3  # the median deviation of 2, 3, 2 is 0
    assert [r.error for r in found] == [None, 0.0, None, 0.0]


@pytest.mark.parametrize(("budget", "visits"), [(None, 5), (21.0, 5), (19.0, 4), (11.0, 2)])
def test_for_a_part_of_the_time_or_what_is_left_of_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, budget: float | None, visits: int
) -> None:
    monkeypatch.setattr(runner, "MORE", 1.5)
    values = iter(range(1, 1000))
    case = Scripted({"A": lambda: 1.0, "B": lambda: clock.advance(2.0) * next(values)})
    case.rounds = 2
    measure([case], Setting(passes=2, threads=1, budget=budget), Silent())
    assert case.log.count("prepare") == visits


def test_three_times_the_passes_at_most(clock: Clock) -> None:
    values = iter(range(1, 1000))
    case = Scripted({"A": lambda: 1.0, "B": lambda: float(next(values))})
    measure([case], Setting(passes=2, threads=1), Silent())
    assert case.log.count("prepare") == 6
    case.passes = 1
    assert measure([case], Setting(passes=2, threads=1), Silent())[1].error is None
    assert case.log.count("prepare") == 7


def test_fast_contestants_run_several_times_in_a_turn() -> None:
    case = Scripted(script(A=[1, 2, 9], B=[4]))
    case.rounds, case.warmup, case.turn = 1, 0, 4.0
    run(case)
    assert case.log == ["prepare", "A", "A", "A", "B"]
    assert {name: list(s) for name, s in case.samples.items()} == {"A": [2], "B": [4]}
    fast = Scripted(script(A=[0.01] * 100, B=[1.0] * 100))
    fast.rounds, fast.warmup, fast.turn = 1, 0, 0.5
    run(fast)
    assert fast.log.count("A") == runner.CALLS


def test_freed_memory_is_kept_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    def mallopt(name: int, value: int) -> int:
        told.append((name, value))
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    Setting().prepare()
    assert not told
    Setting(malloc="keep").prepare()
    assert told == [(-4, 0), (-1, -1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not allocator.keep_freed_memory()


def test_cases_take_turns_within_a_pass() -> None:
    cases = [Scripted(script(A=[1.0] * 9, B=[1.0] * 9)) for _ in range(2)]
    shared: list[str] = []
    for number, case in enumerate(cases):
        case.name = str(number)
    progress = SimpleNamespace(expect=lambda count: None, step=shared.append)
    measure(cases, Setting(passes=2, threads=1), progress)
    assert shared == [f"suite/figure: {name}" for name in "0101"]


def test_ratios_are_formed_round_by_round() -> None:
    found = run(Scripted(script(A=[1, 1, 2, 4], B=[1, 12, 2, 8])))[1]
    assert found.p50 == 2.0  # of 12, 1 and 2; that of the medians is 4
    assert found.runs == 3
    assert found.met is True


def failing(after: int) -> Callable[[], float]:
    calls = iter(range(100))

    def variant() -> float:
        if next(calls) >= after:
            raise RuntimeError("out of\norder")
        return 1.0

    return variant


@pytest.mark.parametrize("after", [0, 2], ids=["at once", "later"])
def test_who_fails_is_named_and_the_others_go_on(after: int) -> None:
    case = Scripted({"A": lambda: 1.0, "B": failing(after)})
    ours, theirs = run(case)
    assert ours.runs == 3
    assert theirs.p50 is None
    assert theirs.met is None
    assert theirs.detail == "RuntimeError: out of order"
    assert (theirs.versus, theirs.target) == ("B", 5)
    assert case.log.count("B") == after + 1


def test_who_fails_in_a_later_pass_has_no_row_of_the_earlier_one() -> None:
    found = run(Scripted({"A": lambda: 1.0, "B": failing(4)}), passes=2)
    assert found[0].runs == 4
    assert found[1].detail == "RuntimeError: out of order"


def test_a_row_names_the_contestant_that_it_lacks() -> None:
    found = run(Scripted({"A": failing(0), "B": lambda: 1.0}))
    assert found[0].detail == "RuntimeError: out of order"
    case = Scripted({"B": lambda: 1.0})
    case.missing["C"] = "not installed"
    other = case.row("B", {"B": np.ones(1)}, ("B", "C"), lambda b, c: b / c)
    assert other.detail == "C: not installed"


def test_a_case_that_cannot_be_prepared_says_why() -> None:
    class Unprepared(Scripted):
        def prepare(self, setting: Setting) -> Mapping[str, Variant]:
            raise MemoryError("too large")

    found = run(Unprepared({}))
    assert [r.detail for r in found] == 2 * ["MemoryError: too large"]


def test_a_budget_limits_the_rounds(clock: Clock) -> None:
    case = Scripted({"A": lambda: clock.advance(0.75), "B": lambda: clock.advance(0.25)})
    case.rounds = 100
    run(case, budget=10.0)
    assert len(case.samples["A"]) == 9
    assert clock.now == 10.0


def test_a_budget_is_shared_by_cases_and_what_one_leaves_goes_to_the_next(clock: Clock) -> None:
    cases = [Scripted({"A": lambda: clock.advance(1.0)}) for _ in range(2)]
    cases[0].rounds, cases[1].rounds = 2, 100
    measure(cases, Setting(passes=1, threads=1, budget=20.0), Silent())
    assert [len(case.samples["A"]) for case in cases] == [2, 16]


def test_two_rounds_however_little_time_is_left(clock: Clock) -> None:
    case = Scripted({"A": lambda: clock.advance(1.0)})
    case.rounds = 100
    run(case, budget=0.5)
    assert len(case.samples["A"]) == 2


def test_a_pass_that_becomes_slower_ends_in_time(clock: Clock) -> None:
    seconds = iter([1.0, 1.0, 1.0, *[5.0] * 100])
    case = Scripted({"A": lambda: clock.advance(next(seconds))})
    case.rounds = 100
    run(case, budget=10.0)
    assert len(case.samples["A"]) == 4


def test_threads_and_garbage_collection_are_set_for_the_time_of_a_pass() -> None:
    seen: list[tuple[int, bool]] = []

    def look() -> float:
        seen.append((torch.get_num_threads(), gc.isenabled()))
        return 1.0

    case = Scripted({"A": look})
    case.threads = 2
    run(case)
    assert set(seen) == {(2, False)}
    assert (torch.get_num_threads(), gc.isenabled()) == (1, True)


def test_another_loop_may_call_the_rounds() -> None:
    case = Scripted(script(A=[0, 1, 2], B=[0, 3, 4]))
    asked: list[int] = []

    def repeat(once: Callable[[], None], rounds: int) -> None:
        asked.append(rounds)
        once()
        once()

    found = visit(case, Setting(threads=1), 7, repeat=repeat)
    assert asked == [7]
    assert found == {"A": [1, 2], "B": [3, 4]}


def test_a_report_can_be_read_again(tmp_path: Path) -> None:
    rows = [
        row("s/a", "one", "x", [1.0, 2.0, 3.0], versus="peer", target=2.0, labels={"K": 4}),
        Row("s/b", "two", "ms", detail="absent", others=0.5, at_least=True),
    ]
    report = Report({"cpu": "x"}, {"quick": True}, {"s/a": "Title"}, rows)
    path = tmp_path / "new" / "report.json"
    report.write(path)
    assert Report.read(path) == report
    assert report.find("s/a/one").p50 == 2.0
    assert report.of("s/a", K=4) == rows[:1]
    assert report.of("s/a", K=8) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"figure": "a"}]}', '{"rows": 1}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json: expected results of 'mtlfast bench'"):
        Report.read(path)


def test_wins_are_the_rows_in_which_a_peer_is_ahead() -> None:
    rows = [
        Row("s/a", "close", "x", 0.9, 0.8, 1.1, 9, versus="P"),
        Row("s/a", "behind", "x", 1.1, 1.0, 1.2, 9, versus="P"),
        Row("s/a", "ahead", "x", 0.5, 0.4, 0.6, 9, versus="P"),
        Row("s/a", "no peer", "x", 0.1, 0.1, 0.1, 9),
        Row("s/a", "absent", "x", versus="P", detail="not installed"),
    ]
    report = Report(rows=rows)
    assert [r.case for r in report.wins()] == ["ahead", "close"]
    lines = report.table()
    assert lines[-3:] == [
        "Where a peer is ahead (its figure over ours):",
        "  s/a: ahead: 0.5 [0.4, 0.6]",
        "  s/a: close: 0.9 [0.8, 1.1], within the noise",
    ]
    assert any(line.endswith("not measured: not installed") for line in lines)
    assert Report(rows=rows[1:2]).table()[-1] == "No peer is ahead in any case."


def test_bandwidth_of_a_device_is_that_of_a_copy(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = bandwidth.CopyBandwidth(torch.device("cpu"), count=1000)
    copy = torch.Tensor.copy_

    def slow(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        clock.advance(2.0)
        return copy(a, b)

    monkeypatch.setattr(torch.Tensor, "copy_", slow)
    assert memory.best() == memory.read() == 4000.0  # 4000 bytes read and as many written
