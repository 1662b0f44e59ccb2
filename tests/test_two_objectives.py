"""The third job: the functions as published, their derivatives, the Pareto set."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mtlfast import jobs
from mtlfast.cli import main
from mtlfast.jobs import TwoObjectives, TwoObjectivesCAGrad
from mtlfast.jobs.two_objectives import FLOOR, TwoObjectivesTrial, objectives, pareto_set

POINTS = [*TwoObjectives.starts, *TwoObjectivesCAGrad.starts, (3.0, 2.0), (-6.0, 0.5), (2.0, -8.0)]


def trial_at(point: tuple[float, float], factor: float) -> TwoObjectivesTrial:
    trial = TwoObjectivesTrial(point, factor, pareto_set(11))
    trial.x.data = trial.x.data.double()
    return trial


def published(x1: float, x2: float) -> list[float]:
    """As CAGrad's paper has them, term by term."""
    up, down = max(math.tanh(0.5 * x2), 0.0), max(math.tanh(-0.5 * x2), 0.0)
    f1 = math.log(max(abs(0.5 * (-x1 - 7) - math.tanh(-x2)), FLOOR)) + 6
    f2 = math.log(max(abs(0.5 * (-x1 + 3) + math.tanh(-x2) + 2), FLOOR)) + 6
    g1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    g2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    return [f1 * up + g1 * down, f2 * up + g2 * down]


@pytest.mark.parametrize("point", POINTS)
def test_objectives_are_the_published_ones(point: tuple[float, float]) -> None:
    found = objectives(torch.tensor(point, dtype=torch.float64))
    assert found.tolist() == pytest.approx(published(*point), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("factor", [0.1, 1.0])
@pytest.mark.parametrize("point", [*POINTS, (-7.0 + 2 * math.tanh(1.0), 1.0)])
def test_losses_and_their_gradients_are_those_of_the_objectives(
    point: tuple[float, float], factor: float
) -> None:
    trial = trial_at(point, factor)
    x = trial.x.detach().clone().requires_grad_()
    expected = objectives(x) * x.new_tensor([factor, 1.0])
    for name, value in zip(TwoObjectives.tasks, expected, strict=True):
        loss = trial.losses(None)[name]
        torch.testing.assert_close(loss, value, rtol=1e-12, atol=1e-12)
        gradients = [
            torch.autograd.grad(of, by, retain_graph=True)[0]
            for of, by in ((loss, trial.x), (value, x))
        ]
        torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


def test_losses_can_be_added_before_they_go_backward() -> None:
    trial = trial_at((3.0, 2.0), 0.1)
    losses = trial.losses(None)
    parts = [torch.autograd.grad(loss, trial.x, retain_graph=True)[0] for loss in losses.values()]
    (2 * losses["first"] + 3 * losses["second"]).backward()  # type: ignore[no-untyped-call]
    assert trial.x.grad is not None
    torch.testing.assert_close(trial.x.grad, 2 * parts[0] + 3 * parts[1])


def test_some_mixture_of_the_gradients_is_zero_on_the_pareto_set() -> None:
    points = torch.from_numpy(pareto_set(21)).requires_grad_()
    values = objectives(points)
    first, second = (torch.autograd.grad(v.sum(), points, retain_graph=True)[0] for v in values.T)
    w = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None]
    mixed = w * first + (1 - w) * second
    torch.testing.assert_close(mixed, torch.zeros_like(mixed), rtol=0, atol=1e-12)
    # in the middle it is where CAGrad's code draws it
    assert points[10].tolist() == pytest.approx([0.0, -8.3552], abs=2e-4)
    assert points[0].tolist() == pytest.approx([-7.0, -8.4345], abs=2e-4)


def test_metrics() -> None:
    job = TwoObjectives()
    trial = job.start(0)
    for offset in (0.0, 0.5):
        trial.x.data = torch.tensor([0.0, -8.35511 + offset])
        found = trial.evaluate()
        assert found["distance"] == pytest.approx(offset, abs=1e-5)
        assert found["first"] == pytest.approx(0.1 * found["second"])
        assert [found["x1"], found["x2"]] == trial.x.tolist()
    trial.x.data = torch.tensor([10.0, -8.43446])  # beyond the end
    assert trial.evaluate()["distance"] == pytest.approx(3.0, abs=1e-5)
    trial.x.data = torch.tensor([1e30, 1e30])
    assert trial.evaluate()["distance"] > 1e30


@pytest.mark.parametrize(
    ("job", "steps", "factor", "starts"),
    [
        (
            TwoObjectives(), 35_000, 0.1,
            [(-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)],
        ),
        (TwoObjectivesCAGrad(), 100_000, 1.0, [(-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)]),
    ],
)  # fmt: skip
def test_setting_is_the_published_one(
    job: TwoObjectives, steps: int, factor: float, starts: list[tuple[float, float]]
) -> None:
    assert job.steps == steps
    count = len(starts)
    for seed in range(2 * count):
        trial = job.start(seed)
        assert tuple(trial.x.tolist()) == starts[seed % count]
        losses = trial.losses(None)
        point = torch.tensor(starts[seed % count])
        expected: Tensor = objectives(point) * torch.tensor([factor, 1.0])
        found = [float(loss.detach()) for loss in losses.values()]
        assert found == pytest.approx(expected.tolist(), rel=1e-5)
        (group,) = trial.optimizer.param_groups
        assert isinstance(trial.optimizer, torch.optim.Adam)
        assert (group["lr"], group["betas"]) == (1e-3, (0.9, 0.999))


def test_a_seed_is_also_that_of_the_random_numbers() -> None:
    drawn = []
    for seed in (0, 5, 0):
        TwoObjectives().start(seed)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[2] != drawn[1]


def test_the_origin_is_left_downwards() -> None:
    trial = TwoObjectives().start(1)
    loss = trial.losses(None)["second"]
    (gradient,) = torch.autograd.grad(loss, trial.x)
    assert gradient[1] > 1.0


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "two_objectives", "--seeds", "2", "--steps", "200"]
    assert main([*words, "--methods", "sum,nash_mtl", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    for method in ("sum", "nash_mtl"):
        for number, start in enumerate(TwoObjectives.starts[:2]):
            # Adam goes at most 0.001 a step, and a little more at first
            before = TwoObjectives().start(number).evaluate()["distance"]
            after = summary[method]["distance"][number]
            assert before - 0.5 < after < before, start
            assert np.isfinite(summary[method]["first"][number])
    assert jobs.get("two_objectives").remark in capsys.readouterr().out
    assert (tmp_path / "two_objectives.png").stat().st_size > 10_000
