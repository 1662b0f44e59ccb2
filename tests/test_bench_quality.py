"""The suite ``quality``: the same numbers again, what is left out, rows, paths, a picture."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from mtlfast.bench import plots
from mtlfast.bench.paths import path_labels, paths_of, thinned
from mtlfast.bench.rows import Report, Row
from mtlfast.bench.runner import Silent
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites import quality
from mtlfast.bench.suites.quality import Outcome, Plan, Run
from mtlfast.weighting import REGISTRY

RUNS = [
    *(Run("two_objectives", name, seed, 60) for seed in (0, 1) for name in ("rlw", "graddrop")),
    Run("two_objectives", "scalarization", 0, 60),
    Run("burgers", "pcgrad", 0, 2),
]


def test_the_same_numbers_in_any_number_of_processes() -> None:
    found = quality.outcomes(RUNS, Setting(threads=2), Silent())
    assert list(found) == RUNS
    assert str(found.pop(RUNS[4])).startswith("TypeError: ")
    alone = {one: quality.run_one(one) for one in found}
    assert found == alone  # to the last bit
    values = {outcome.metrics.get("distance") for outcome in alone.values()}
    assert len(values) == len(alone)  # the methods that draw lots do


def test_a_budget_that_is_spent_is_named() -> None:
    found = quality.outcomes(RUNS[:2], Setting(threads=1, budget=1e-9), Silent())
    assert set(found.values()) == {"no time was left in the budget"}
    (row, *_) = quality.rows([Plan("two_objectives", 60, {"rlw": 1})], found)
    assert row.p50 is None
    assert row.detail.endswith("not seeds 0: no time was left in the budget")


def test_every_method_runs_or_is_named() -> None:
    for plan in quality.plans(Setting()):
        named = {*plan.seeds, *plan.missing}
        if plan.job != "two_objectives_cagrad":
            assert named | set(quality.ALIASES) == set(REGISTRY)
        assert all(count >= 1 for count in plan.seeds.values())
        assert all(plan.missing.values())
    full, quick = (
        sum(one.steps for one in quality.work(quality.plans(Setting(quick=fast))))
        for fast in (False, True)
    )
    assert quick < full / 20


def test_runs_go_seed_by_seed() -> None:
    todo = [Plan("multidigits", 3, {"sum": 1, "mean": 2}), Plan("burgers", 3, {"sum": 2})]
    found = [(one.job, one.method, one.seed) for one in quality.work(todo)]
    assert found == [
        ("multidigits", "sum", 0),
        ("multidigits", "mean", 0),
        ("burgers", "sum", 0),
        ("multidigits", "mean", 1),
        ("burgers", "sum", 1),
    ]


def outcome(distance: float, *path: tuple[float, float]) -> Outcome:
    metrics = {"distance": distance, "first": -1.0, "second": -2.0}
    return Outcome(metrics, {"first": -1.0, "second": distance}, list(path))


def rows(*results: Outcome | str, job: str = "two_objectives") -> dict[str, Row]:
    plan = Plan(job, 60, {"cagrad": len(results)}, {"krum": "it needs three tasks"})
    runs = quality.work([plan])
    report = Report(rows=quality.rows([plan], dict(zip(runs, results, strict=True))))
    report.write(Path("/dev/null"))  # what is not finite would not go
    return {row.key.removeprefix(f"quality/{job}"): row for row in report.rows}


def test_rows_of_a_method() -> None:
    path = [(-8.5, 7.5), (0.25, -8.0)]
    found = rows(outcome(0.1, *path), outcome(3.0), outcome(2.0), outcome(0.04), outcome(9.0))
    row = found["/CAGrad"]
    assert (row.p50, row.runs) == (2.0, 5)
    assert row.detail == "60 steps; seeds 0 to 4"
    assert row.labels["mean"] == pytest.approx(2.828)
    assert row.labels["std"] == pytest.approx(3.67504, rel=1e-5)
    assert found["_losses/CAGrad, second"].p50 == 2.0
    assert found["_losses/CAGrad, first"].labels["std"] == 0.0
    reached = found["_reached/CAGrad"]
    assert (reached.p50, reached.unit) == (2.0, "starts")
    assert reached.detail == "of 5; 60 steps; not from (0, 0), (9, 9), (9, -1)"
    assert {name: way.tolist() for name, way in paths_of(row).items()} == {
        0: [list(point) for point in path]
    }
    krum = found["/Krum"]
    assert (krum.p50, krum.detail) == (None, "it needs three tasks")


def test_runs_that_diverge_or_fail_are_counted_and_named() -> None:
    found = rows(outcome(math.nan), outcome(1.0), "ValueError: no", outcome(2.0))
    row = found["/CAGrad"]
    assert (row.p50, row.runs) == (1.5, 2)
    assert row.detail == "60 steps; seeds 0, 1, 3; not seeds 2: ValueError: no; 1 of 3 diverged"
    assert found["_reached/CAGrad"].p50 == 0.0
    lost = rows(outcome(math.inf))["/CAGrad"]
    assert lost.p50 is None
    assert lost.detail.endswith("1 of 1 diverged")
    assert "_reached/CAGrad" not in rows("RuntimeError: no")


def test_figures_of_all_jobs_have_titles() -> None:
    jobs = {plan.job: plan for plan in quality.plans(Setting())}
    results = {
        "multidigits": Outcome(
            {"worst_accuracy": 0.5, "mean_accuracy": 0.6}, {"left": 1.0, "right": 2.0}
        ),
        "burgers": Outcome(
            {"relative_error": 0.1}, {"residual": 1.0, "initial": 2.0, "boundary": 3.0}
        ),
        "two_objectives": outcome(1.0),
        "two_objectives_cagrad": outcome(1.0),
    }
    assert set(jobs) == set(results)
    found = {
        row.figure for job, result in results.items() for row in rows(result, job=job).values()
    }
    assert found == set(quality.FIGURES)


def test_thinned_paths_keep_their_ends() -> None:
    path = [(math.cos(t / 50), math.sin(t / 50)) for t in range(1000)]
    found = thinned([*path, (math.nan, 0.0)])
    assert 40 < len(found) <= 48
    assert found[0] == (1.0, 0.0)
    assert found[-1] == tuple(round(x, 2) for x in path[-1])
    assert thinned([]) == thinned([(math.inf, 0.0)]) == []
    assert thinned([(1.0, 2.0)] * 3)[-1] == (1.0, 2.0)
    row = Row("a", "b", "", labels={"path": 1, **path_labels({3: [(0.5, -1.25)], 4: []})})
    assert {k: v.tolist() for k, v in paths_of(row).items() if len(v)} == {3: [[0.5, -1.25]]}


def test_picture_of_the_paths(tmp_path: Path) -> None:
    near, far = [(0.0, 0.0), (0.0, -8.36)], [(9.0, 9.0), (5.0, 2.0)]
    found = list(rows(outcome(0.0, *near), outcome(10.0, *far)).values())
    other = [replace(r, labels={**r.labels, "method": "stch"}) for r in found]
    assert len(plots.draw(Report(rows=found), tmp_path)) == 1
    names = [path.name for path in plots.draw(Report(rows=found + other), tmp_path)]
    assert names == ["two_objectives.png", "two_objectives_all.png"]
    assert all((tmp_path / name).stat().st_size > 20_000 for name in names)
    assert plots.draw(Report(rows=[r for r in found if "path 0" not in r.labels]), tmp_path) == []
