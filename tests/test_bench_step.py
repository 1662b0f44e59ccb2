"""The suites of training steps and of memory, on models so small that only structure shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mtlfast.bench import allocations, peers, steps
from mtlfast.bench.contestants import Make
from mtlfast.bench.models import EngineModel, convolutional, mlp, transformer
from mtlfast.bench.peers import Peer
from mtlfast.bench.peers.plain import PEER as PLAIN
from mtlfast.bench.rows import Report, Row
from mtlfast.bench.runner import Silent, measure, visit
from mtlfast.bench.setting import Setting
from mtlfast.bench.steps import Step
from mtlfast.bench.suites import memory, step
from mtlfast.bench.suites.step import breakdown, cost, exact, methods, training
from mtlfast.weighting import REGISTRY

SMALL: dict[str, Make] = {
    "MLP": lambda num_tasks: mlp(num_tasks, widths=(8, 16, 8), batch=4),
    "CNN": lambda num_tasks: convolutional(num_tasks, widths=(4, 4), batch=2, size=8),
    "transformer": lambda num_tasks: transformer(
        num_tasks, width=8, hidden=16, depth=1, batch=2, tokens=3
    ),
    "small MLP": lambda num_tasks: mlp(num_tasks, widths=(4, 6, 4), batch=2),
    "tiny MLP": lambda num_tasks: mlp(num_tasks, widths=(4, 4, 4), batch=2),
}
SETTING = Setting(threads=1, passes=1)
QUICK = replace(SETTING, quick=True)


class Absent(Peer):
    """A peer that has two methods and is not installed."""

    name = "Absent"
    package = "absent"

    def steps(self, method: str, model: EngineModel) -> Mapping[str, Callable[[], Step]]:
        del model
        if method in ("cagrad", "pcgrad"):
            raise ModuleNotFoundError("No module named 'absent'")
        return {}


class Packaged(Peer):
    """A peer with a right mode and one that is not balanced at all."""

    name = "Packaged"
    package = "packaged"

    def steps(self, method: str, model: EngineModel) -> Mapping[str, Callable[[], Step]]:
        if method != "cagrad":
            return {}
        return {"right": partial(steps.ours, model, "cagrad"), "wrong": partial(steps.joint, model)}


@pytest.fixture(autouse=True)
def few_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [PLAIN, Absent(), Packaged()]
    monkeypatch.setattr(peers, "wanted", lambda setting: list(there))


def check_rows(rows: list[Row], figures: Mapping[str, str]) -> None:
    """Keys are unique, all figures are there, and only the absent peers were not measured."""
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row.figure for row in rows} == set(figures)
    for row in rows:
        needs_absent = "Absent" in row.case or "TorchJD" in row.case
        assert (row.p50 is None) == needs_absent, row
        if needs_absent:
            assert "No module named 'absent'" in row.detail or "not measured" in row.detail, row
            assert row.runs == 0
        assert "K" in row.labels, row
        assert "P" in row.labels, row


def test_suite_of_steps() -> None:
    cases = step.cases(QUICK, SMALL)
    for case in cases:
        case.rounds, case.warmup = 1, 0
    rows = measure(cases, QUICK, Silent())
    check_rows(rows, step.FIGURES)
    report = Report(rows=rows)
    missing = [row.case for row in rows if row.p50 is None and row.figure == "step/peers"]
    assert "MLP, K = 4, best mode of Absent / auto" in missing
    best = report.find("step/peers/MLP, K = 4, best mode of torch / auto")
    mode = report.find("step/peers/MLP, K = 4, torch, stack + matmul / auto")
    assert best.versus == mode.versus == "torch"
    assert best.p50 == mode.p50
    assert best.labels["mode"] == "best"
    auto = report.find("step/time/MLP, K = 4, auto")
    assert "stored: its K backwards cost least here" in auto.detail
    assert auto.labels["engine"] == "auto"
    assert report.find("step/ms/MLP, K = 4, auto").unit == "ms"


def test_full_suite_lists_all_models() -> None:
    names = {(case.figure, case.name) for case in step.cases(SETTING, SMALL)}
    for name in ("MLP", "CNN", "transformer"):
        for num_tasks in (2, 4, 8):
            assert ("step/time", f"{name}, K = {num_tasks}") in names
            assert ("step/exact", f"{name}, K = {num_tasks}") in names
        assert ("step/breakdown", f"{name}, K = 4") in names
    assert ("step/time", "tiny MLP, K = 2") in names
    assert ("step/methods", "small MLP, K = 4, cagrad") in names
    chosen = step.cases(replace(SETTING, tasks=(3,)), SMALL)
    assert {"K = 3"} == {case.name.split(", ")[1] for case in chosen}


def test_gradients_are_those_of_the_stored_engine() -> None:
    found = measure([exact.Exact("MLP", 4, SMALL["MLP"])], SETTING, Silent())
    worst = {row.labels.get("engine") or row.labels["contestant"]: row for row in found}
    for engine in steps.EXACT:
        assert worst[engine].met, worst[engine]
    assert worst["torch"].p50 is not None
    assert worst["torch"].p50 < 1e-6
    assert worst["sketched"].figure == "step/sketched"


def test_a_contestant_that_computes_something_else_is_seen() -> None:
    field = steps.Field(mlp(3, widths=(8, 16, 8), batch=4), wanted={"stored", "batched"})
    comparison = exact.Comparison(field.steps, 3)
    for _ in range(2):
        assert comparison.stored() == 0.0
        assert comparison.difference("batched") < 1e-6
        assert comparison.difference("joint") > 1e-3


def test_methods_of_peers() -> None:
    assert methods.of_peers(SETTING, 4) == ["cagrad", "pcgrad"]
    [*found] = measure([methods.Method("cagrad", "MLP", 4, SMALL["MLP"])], SETTING, Silent())
    report = Report(rows=found)
    right = report.find("step/methods/MLP, K = 4, cagrad, Packaged, right / auto")
    wrong = report.find("step/methods/MLP, K = 4, cagrad, Packaged, wrong / auto")
    assert "gradients differ by 0e+00" in right.detail
    assert "gradients differ by 0e+00" not in wrong.detail
    assert {row.versus for row in report.of("step/methods")} == {"torch", "Absent", "Packaged"}
    assert report.find("step/methods-ms/MLP, K = 4, cagrad, stored").p50 is not None


def test_the_best_mode_is_the_fastest() -> None:
    case = training.Training("MLP", 8, SMALL["MLP"])
    case.contestants = ["A, slow", "A, fast", "auto"]
    case.modes = {"A, slow": "A", "A, fast": "A"}
    samples = {
        "joint": np.array([1.0, 2.0, 1.0]),
        "auto": np.array([2.0, 4.0, 2.0]),
        "A, slow": np.array([4.0, 8.0, 4.0]),
        "A, fast": np.array([1.0, 2.0, 9.0]),
    }
    report = Report(rows=case.rows(samples))
    best = report.find("step/peers/MLP, K = 8, best mode of A / auto")
    assert best.p50 == 0.5
    assert best.detail.startswith("fast; 2000 ms against 2000")
    assert [row.case for row in report.wins()] == [
        "MLP, K = 8, A, fast / auto",
        "MLP, K = 8, best mode of A / auto",
    ]
    factored = report.find("step/beside/MLP, K = 8, factored / stored")
    assert factored.p50 is None
    assert factored.target == 1.05


@pytest.mark.parametrize("engine", ["stored", "factored"])
def test_parts_make_the_step_that_is_measured(engine: str) -> None:
    """The calls between which a clock is read are all of a step, and its gradients are the same."""
    model = mlp(3, widths=(64, 256, 256, 8), batch=2)
    whole = steps.ours(model, "cagrad", engine=engine)
    whole()
    assert whole.last().engine == engine
    expected = [param.grad for param in model.parameters()]
    parts = breakdown.Parts(model, engine, "cagrad")
    seconds = parts()
    assert set(parts.clock.seconds) == set(breakdown.PARTS)
    assert seconds == pytest.approx(sum(parts.clock.seconds.values()))
    assert all(part > 0 for part in parts.clock.seconds.values())
    found = [param.grad for param in model.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_joint_parts() -> None:
    model = SMALL["MLP"](3)
    steps.joint(model)()
    expected = [param.grad for param in model.parameters()]
    breakdown.Joint(model)()
    torch.testing.assert_close([param.grad for param in model.parameters()], expected)


def test_parts_and_rest_are_the_whole() -> None:
    case = breakdown.Breakdown("MLP", 4, SMALL["MLP"])
    samples = {name: np.array(s) for name, s in visit(case, SETTING, rounds=3).items()}
    report = Report(rows=case.rows(samples))
    assert {row.labels["engine"] for row in report.rows if "engine" in row.labels} == {"stored"}
    parts = sum(samples[f"stored, {part}"] for part in breakdown.PARTS)
    np.testing.assert_allclose(parts, samples["stored, parts"], rtol=1e-9)
    rest = report.find("step/breakdown/MLP, K = 4, stored, rest")
    expected = np.median(samples["stored, whole"] - parts) * 1e3
    assert rest.p50 == pytest.approx(expected)
    assert rest.labels["part"] == "rest"


def test_every_method_has_its_cost() -> None:
    case = cost.Cost("tiny MLP", 4, SMALL["tiny MLP"])
    samples = visit(case, SETTING, rounds=1)
    assert case.missing == {}
    assert set(samples) == {"joint", *REGISTRY}
    rows = case.rows({name: np.array(s) for name, s in samples.items()})
    labels = {row.labels["method"]: row.labels["family"] for row in rows if row.unit == "x"}
    assert labels == {name: method.family for name, method in REGISTRY.items()}


def test_suite_of_memory() -> None:
    cases = [*memory.cases(QUICK, SMALL)][:1]
    rows = measure([*cases, memory.Beyond(3, width=32, depth=2)], QUICK, Silent())
    check_rows(rows, memory.FIGURES)
    report = Report(rows=rows)
    peak = {row.labels.get("engine"): row.p50 for row in report.of("memory/peak")}
    assert peak["stored"] is not None
    gradients = 4 * sum(p.numel() for p in SMALL["MLP"](4).shared_params()) * 4 / 1e6
    assert peak["stored"] > gradients
    over = report.find("memory/over/MLP, K = 4, stored").p50
    joint = report.find("memory/peak/MLP, K = 4, joint").p50
    assert over == pytest.approx(peak["stored"] / (joint or 0.0))


def test_peak_counts_what_is_held_at_once() -> None:
    def call() -> None:
        for _ in range(3):
            torch.empty(1000, dtype=torch.uint8)
        kept = [torch.empty(5000, dtype=torch.uint8) for _ in range(2)]
        del kept

    found = allocations.peak(call, torch.device("cpu"))
    assert 10_000 <= found < 11_000
