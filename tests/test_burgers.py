"""The demo's second job: the exact solution, the network's derivatives, the published setting."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import mtlfast
from mtlfast.cli import main
from mtlfast.jobs import Burgers
from mtlfast.jobs.burgers import VISCOSITY, BurgersTrial, exact_solution


@pytest.fixture(scope="module")
def burgers() -> Burgers:
    return Burgers()


@pytest.fixture
def trial(burgers: Burgers) -> BurgersTrial:
    return burgers.start(0)


def test_exact_solution_solves_the_equation() -> None:
    grid = np.meshgrid(np.linspace(-0.95, 0.95, 20), np.linspace(0.02, 0.98, 9))
    x, t = (axis.ravel() for axis in grid)
    h = 1e-3

    def u(i: int, j: int) -> NDArray[np.float64]:
        return exact_solution(x + i * h, t + j * h)

    # central differences of the fourth order
    u_x = (u(-2, 0) - 8 * u(-1, 0) + 8 * u(1, 0) - u(2, 0)) / (12 * h)
    u_t = (u(0, -2) - 8 * u(0, -1) + 8 * u(0, 1) - u(0, 2)) / (12 * h)
    u_xx = (-u(-2, 0) + 16 * u(-1, 0) - 30 * u(0, 0) + 16 * u(1, 0) - u(2, 0)) / (12 * h * h)
    np.testing.assert_allclose(u_t + u(0, 0) * u_x, VISCOSITY * u_xx, rtol=0, atol=2e-7)


def test_exact_solution_has_the_initial_and_boundary_values() -> None:
    x = np.linspace(-1, 1, 41)
    np.testing.assert_allclose(exact_solution(x, 0 * x), -np.sin(math.pi * x), rtol=0, atol=1e-14)
    t = np.linspace(0, 1, 11)
    for end in (-1.0, 1.0):
        np.testing.assert_allclose(exact_solution(0 * t + end, t), 0, rtol=0, atol=1e-14)


def test_residual_is_that_of_nested_backward_passes(trial: BurgersTrial) -> None:
    for layer in trial.layers:
        layer.double()
    points = trial.draw_batch().residual.double().requires_grad_()
    u = trial.solution(points)
    first = torch.autograd.grad(u.sum(), points, create_graph=True)[0]
    u_xx = torch.autograd.grad(first[:, 0].sum(), points, create_graph=True)[0][:, 0]
    expected = first[:, 1] + u * first[:, 0] - VISCOSITY * u_xx
    found = trial.residual(points)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    # the last bias counts, since u itself stands in the equation
    for grads in zip(
        *(
            torch.autograd.grad(r.square().mean(), trial.shared_parameters)
            for r in (found, expected)
        ),
        strict=True,
    ):
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


def test_trial_is_the_published_one(burgers: Burgers, trial: BurgersTrial) -> None:
    shapes = [tuple(p.shape) for group in trial.optimizer.param_groups for p in group["params"]]
    assert [s for s in shapes if len(s) == 2] == [(40, 2), *[(40, 40)] * 3, (1, 40)]
    assert [s for s in shapes if len(s) == 1] == [(40,)] * 4 + [(1,)]
    assert isinstance(trial.optimizer, torch.optim.Adam)
    optimizer = mtlfast.MultiTaskOptimizer(trial.optimizer, "sum")
    schedule = trial.scheduler(optimizer)
    assert schedule is not None
    optimizer.step()
    for _ in range(1000):
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([1e-3 * 0.81])

    batch = trial.draw_batch()
    assert [len(points) for points in batch] == [512, 128, 128]
    for points, low, high in zip(
        batch, ((-1, 0), (-1, 0), (-1, 0)), ((1, 1), (1, 0), (1, 1)), strict=True
    ):
        assert torch.all(points >= torch.tensor(low))
        assert torch.all(points <= torch.tensor(high))
    assert batch.residual[:, 0].std() == pytest.approx(2 / math.sqrt(12), rel=0.1)
    assert set(batch.boundary[:, 0].tolist()) == {-1.0, 1.0}
    assert not torch.equal(batch.residual, trial.draw_batch().residual)
    assert not torch.equal(batch.residual, burgers.start(1).draw_batch().residual)


def test_losses(burgers: Burgers, trial: BurgersTrial) -> None:
    batch = trial.draw_batch()
    losses = trial.losses(batch)
    assert tuple(losses) == burgers.tasks
    x = batch.initial[:, 0]
    errors = {
        "residual": 10 * trial.residual(batch.residual),
        "initial": trial.solution(batch.initial) + torch.sin(math.pi * x),
        "boundary": trial.solution(batch.boundary),
    }
    for task, error in errors.items():
        torch.testing.assert_close(losses[task], error.square().mean())


def test_error_is_relative_to_the_exact_solution(burgers: Burgers, trial: BurgersTrial) -> None:
    def output(value: float) -> dict[str, float]:
        for parameter in trial.shared_parameters:
            parameter.data.zero_()
        trial.shared_parameters[-1].data.fill_(value)
        return trial.evaluate()

    assert output(0.0) == {"relative_error": 1.0}
    truth: Tensor = burgers.truth
    assert truth.shape == (len(burgers.grid),)
    expected = float((0.5 - truth).norm() / truth.norm())
    assert output(0.5)["relative_error"] == pytest.approx(expected)
    assert math.isnan(output(math.nan)["relative_error"])


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "burgers", "--seeds", "2", "--steps", "120", "--methods", "sum,cagrad"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    for method in ("sum", "cagrad"):
        assert all(0.3 < error < 0.97 for error in summary[method]["relative_error"])
    printed = capsys.readouterr().out
    assert "relative L2 error (lower is better)" in printed
    best = min(summary, key=lambda method: sum(summary[method]["relative_error"]))
    rows = (tmp_path / "burgers.md").read_text("utf-8").splitlines()
    assert rows[0].split(" | ")[2] == "expected after 3000 steps"
    assert rows[2].startswith("| equal weighting |" if best == "sum" else "| CAGrad |")
    assert "| 0.041 ± 0.021 |" in rows[2 + (best == "sum")]
    assert rows[-1] == Burgers.remark
    assert (tmp_path / "burgers.png").stat().st_size > 10_000
