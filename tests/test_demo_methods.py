"""The demo with every method: what it tells them, methods that diverge, and a crowded figure."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from line_job import LineTrial
from torch import Tensor

import mtlfast
from mtlfast import jobs
from mtlfast.cli import main
from mtlfast.demo import report
from mtlfast.demo.figure import draw, highlighted
from mtlfast.demo.train import History
from mtlfast.jobs import Job, Metric
from mtlfast.weighting import REGISTRY


@pytest.fixture
def registry() -> Iterator[None]:
    """Forgets the methods that a test adds."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def run(job: type[Job], out: Path, *words: str) -> dict[str, Any]:
    assert main(["demo", job.name, "--seeds", "1", "--out", str(out), *words]) == 0
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("job", ["burgers", "multidigits", "two_objectives"])
def test_all_methods(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(jobs.REGISTRY[job], tmp_path, "--methods", "all", "--steps", "3")
    out, err = capsys.readouterr()
    left_out = dict(re.findall(r"Leaving out (\w+): (.+)", err))
    assert {*summary, *left_out} == set(REGISTRY)
    assert not set(summary) & set(left_out)
    for method in summary:
        assert jobs.get(job).labels.get(method, REGISTRY[method].__name__) in out


def test_several_batches_a_step(
    line_job: type[Job], registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = set()

    class Two(mtlfast.Mean):
        name = "two"
        needs_gramian = True
        num_batches = 2

        def __call__(
            self, gramian: Tensor | None, losses: Tensor | None = None, **inputs: Tensor | None
        ) -> Tensor:
            assert gramian is not None
            shapes.add(tuple(gramian.shape))
            return torch.full((len(gramian),), 1 / len(gramian), dtype=torch.float64)

    drawn = []
    draw_batch = LineTrial.draw_batch

    def counted(trial: LineTrial) -> Tensor:
        drawn.append(1)
        return draw_batch(trial)

    monkeypatch.setattr(LineTrial, "draw_batch", counted)
    run(line_job, tmp_path, "--methods", "two", "--steps", "5")
    assert shapes == {(6, 6)}
    assert len(drawn) == 10


def test_ends_of_epochs(
    line_job: type[Job], registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Epochs(mtlfast.Sum):
        name = "epochs"

        def __call__(self, *args: Any, **inputs: Tensor | None) -> Tensor:
            calls.append("step")
            return super().__call__(*args, **inputs)

        def end_epoch(self) -> None:
            calls.append("end")

    monkeypatch.setattr(line_job, "epoch_steps", 3)
    run(line_job, tmp_path, "--methods", "epochs")
    assert "".join(word[0] for word in calls) == "sssessses"


def test_key_performance_indicators(
    line_job: type[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    observe = mtlfast.DTP.observe

    def counted(weighting: mtlfast.DTP, kpi: Tensor) -> None:
        seen.append(kpi)
        observe(weighting, kpi)

    monkeypatch.setattr(mtlfast.DTP, "observe", counted)
    run(line_job, tmp_path / "none", "--methods", "dtp")
    assert not seen
    for value in (0.5, math.nan):
        kpis = torch.tensor([value, 0.25, 1.0])
        monkeypatch.setattr(LineTrial, "kpis", lambda trial, batch, kpis=kpis: kpis)
        run(line_job, tmp_path / str(value), "--methods", "dtp", "--steps", "3")
    assert torch.equal(torch.stack(seen), torch.tensor([[0.5, 0.25, 1.0]] * 3))


def test_accuracies_of_a_batch_are_its_indicators() -> None:
    trial = jobs.MultiDigits().start(0)
    batch = trial.draw_batch()
    kpis = trial.kpis(batch)
    assert kpis is not None
    features = trial.trunk(batch.canvas)
    for kpi, head, digits in zip(
        kpis.tolist(), (trial.left_head, trial.right_head), (batch.left, batch.right), strict=True
    ):
        assert kpi == float((head(features).argmax(1) == digits).double().mean()) > 0
    assert jobs.get("burgers").start(0).kpis(None) is None


def test_an_option_that_is_a_method_is_new_in_every_run(
    line_job: type[Job], registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[mtlfast.PCGrad] = []

    class Wrapped(mtlfast.Sum):
        name = "wrapped"

        def __init__(self, weighting: mtlfast.PCGrad) -> None:
            self.weighting = weighting
            seen.append(weighting)

    inner = mtlfast.PCGrad()
    monkeypatch.setattr(line_job, "options", {"wrapped": {"weighting": inner}})
    run(line_job, tmp_path, "--methods", "wrapped", "--seeds", "2")
    assert len({id(weighting) for weighting in (inner, *seen)}) >= 3


def test_a_method_that_diverges(
    line_job: type[Job], registry: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Diverges(mtlfast.Sum):
        name = "diverges"

        def _weights(self, call: Any) -> Tensor:
            return super()._weights(call) * math.nan

    summary = run(line_job, tmp_path, "--methods", "diverges,sum,cagrad")
    assert list(summary) == ["diverges", "sum", "cagrad"]
    assert summary["diverges"]["error"] == [None]
    assert summary["sum"]["error"][0] is not None
    row = "Diverges         diverged"
    assert row in capsys.readouterr().out
    assert "\n| Diverges | diverged |" in (tmp_path / "line.md").read_text("utf-8")


@pytest.mark.parametrize("job", ["burgers", "multidigits", "two_objectives"])
def test_a_network_of_nan_has_no_metrics(job: str) -> None:
    trial = jobs.get(job).start(0)
    for group in trial.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data.fill_(math.nan)
    assert all(math.isnan(value) for value in trial.evaluate().values())


def summary_of(**errors: list[float]) -> dict[str, dict[str, Any]]:
    return {method: {"error": values, "ms_per_step": 1.0} for method, values in errors.items()}


@pytest.mark.parametrize("lower", [True, False])
def test_order_of_the_table(
    line_job: type[Job], monkeypatch: pytest.MonkeyPatch, lower: bool
) -> None:
    metric = Metric("error", "distance", lower_is_better=lower)
    monkeypatch.setattr(line_job, "metrics", (metric,))
    nan, inf = math.nan, math.inf
    summary = summary_of(
        sum=[2.0, 4.0], pcgrad=[nan, nan], mean=[1.0, 2.0], cagrad=[0.1, inf], gradnorm=[5.0, 5.0]
    )
    finite = ["mean", "sum", "gradnorm"]
    expected = [*(finite if lower else finite[::-1]), "cagrad", "pcgrad"]
    assert report.ranked(line_job(), summary) == expected
    table = report.result_table(line_job(), summary)
    assert ("lower is better" in table) is lower
    assert "0.100 (1 of 2 diverged)" in table
    assert "3.000 +- 1.414" in table


def history(*errors: float) -> History:
    return History([0, 5], [{"error": e} for e in errors], [1, 6], [0.5, -0.5], [1e-3])


def test_crowded_figure(line_job: type[Job], registry: None, tmp_path: Path) -> None:
    for i in range(30):
        type(f"Method{i}", (mtlfast.Sum,), {"name": f"m{i}", "__qualname__": f"Method{i}"})
    results = {f"m{i}": [history(3.0, 0.01 * (i + 1)), history(3.0, 0.02)] for i in range(28)}
    results["m28"] = [history(3.0, math.nan), history(3.0, 1.0)]
    results["m29"] = [history(3.0, math.nan), history(3.0, math.inf)]
    results["sum"] = [history(3.0, 0.1), history(3.0, 0.1)]
    job = line_job()
    ranking = report.ranked(job, report.summarise(job, results))
    chosen = highlighted(job, results, ranking)
    # the baseline, the best four, and the worst two of those that did not diverge
    assert chosen == ["sum", "m0", "m1", "m2", "m3", "m26", "m27"]
    few = {method: results[method] for method in list(results)[:7]}
    assert highlighted(job, few, ranking) == list(few)
    assert ranking[-2:] == ["m28", "m29"]
    draw(job, results, ranking, tmp_path / "crowd.png")
    lost = {"m29": results["m29"]}
    draw(job, lost, list(lost), tmp_path / "lost.png")
    assert (tmp_path / "crowd.png").stat().st_size > (tmp_path / "lost.png").stat().st_size > 10_000
