"""The methods that are told how a step went: FAMO and DTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, oracle, random_losses
from torch import nn
from vectors import assert_near, assert_same, vector

from mtlfast.weighting import DTP, FAMO


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


# FAMO


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_famo_certified_logits(num_tasks: int, observed: bool) -> None:
    data = oracle()
    losses = torch.from_numpy(data[f"K{num_tasks}/losses"])
    expected = torch.from_numpy(data[f"K{num_tasks}/famo_logits"])
    weighting = FAMO()
    for step in range(12):
        weighting(None, losses[step])
        if observed:
            weighting.observe(losses[step + 1])
            found = weighting.state_dict()["logits"]
            torch.testing.assert_close(found, expected[step], rtol=0, atol=1e-12)
        elif step:
            found = weighting.state_dict()["logits"]
            torch.testing.assert_close(found, expected[step - 1], rtol=0, atol=1e-12)


def test_famo_by_autograd_and_torchs_adam() -> None:
    lowest = vector(0.05, -1.0, 0.0)
    weighting = FAMO(lr=0.1, weight_decay=0.01, min_losses=lowest)
    logits = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam = torch.optim.Adam([logits], lr=0.1, weight_decay=0.01)
    for step in range(6):
        before = random_losses(3, step).requires_grad_()
        after = random_losses(3, 100 + step)
        shares = logits.detach().softmax(0)
        height = before - lowest + 1e-8
        (slope,) = torch.autograd.grad((shares * height.log()).sum(), before)
        assert_near(weighting(None, before), slope / slope.sum(), 1e-12)
        drop = height.detach().log() - (after - lowest + 1e-8).log()
        logits.grad = torch.autograd.grad(logits.softmax(0) @ drop, logits)[0]
        adam.step()
        weighting.observe(after)
        assert_near(weighting.state_dict()["logits"], logits.detach(), 1e-12)


@pytest.mark.parametrize(
    "after",
    [
        [0.5, torch.tensor(2.0, requires_grad=True)],
        (torch.tensor([0.5]), 2),
        {"a": 0.5, "b": 2.0},
        torch.tensor([0.5, 2.0], requires_grad=True),
    ],
)
def test_famo_observes_in_any_form(after: Any) -> None:
    one, two = FAMO(), FAMO()
    for weighting in (one, two):
        weighting(None, vector(1.0, 1.0))
    one.observe(after)
    logits = one.state_dict()["logits"]
    assert_near(logits, vector(-0.025, 0.025), 1e-6)
    one.observe([9.0, 1.0])  # the step has been observed
    assert_same(one.state_dict()["logits"], logits)
    two(None, vector(0.5, 2.0))  # the next call's losses serve
    assert_same(two.state_dict()["logits"], logits)
    one(None, vector(3.0, 3.0))
    assert_same(one.state_dict()["logits"], logits)


def test_famo_wrong_observations() -> None:
    weighting = FAMO()
    with pytest.raises(RuntimeError, match=r"^losses: expected a step before .*, found none$"):
        weighting.observe([1.0, 1.0])
    weighting(None, vector(1.0, 2.0))
    before = weighting.state_dict()
    wrong: list[tuple[Any, type[Exception]]] = [
        ([1.0], ValueError),
        ([1.0, "a"], TypeError),
        (torch.ones(2, 1), ValueError),
        (3.0, TypeError),
    ]
    for losses, error in wrong:
        with pytest.raises(error, match=r"^losses.*: expected .*, found"):
            weighting.observe(losses)
    weighting.observe([float("nan"), 1.0])  # counts as none
    for key in weighting.state_dict():
        if key != "method":
            assert_same(weighting.state_dict()[key], before[key])
    weighting(None, vector(0.5, 2.0))
    assert_near(weighting.state_dict()["logits"], vector(-0.025, 0.025), 1e-6)


def test_famo_leaves_out_a_loss_that_is_not_above_its_minimum() -> None:
    weighting = FAMO(min_losses=1.0)
    weighting(None, vector(2.0, 3.0, 1.5))
    weighting(None, vector(1.5, 2.8, 1.5))
    before = weighting.state_dict()
    for bad in (1.0, 0.5, -1e300):
        weights = weighting(None, vector(bad, 2.0, 1.5))
        assert weighting.status == "degenerate"
        assert float(weights[0]) == 0
        assert_near(weights.sum(), vector(1.0)[0])
        now = weighting.state_dict()
        for key in ("logits", "exp_avg", "exp_avg_sq"):
            assert_same(now[key][0], before[key][0])
            assert bool((now[key][1:] != before[key][1:]).all())
    weighting(None, vector(1.2, 1.5, 1.4))
    assert weighting.status == "ok"
    before = weighting.state_dict()
    weighting.observe([0.0, 0.0, 0.0])  # nothing can be learned from it
    for key in ("num_updates", "logits", "exp_avg", "exp_avg_sq"):
        assert_same(weighting.state_dict()[key], before[key])


def test_famo_learns_among_the_others() -> None:
    # Slopes of a softmax sum to 0, so a task that is left out must not move the mean.
    weighting = FAMO(weight_decay=0.0)
    weighting(None, vector(0.0, 1.0, 2.0))
    weighting.observe([0.0, 0.9, 1.1])
    slopes = weighting.state_dict()["exp_avg"]
    assert_near(slopes.sum(), vector(0.0)[0])
    assert float(slopes[0]) == 0
    assert float(slopes[1]) < 0 < float(slopes[2])


def test_famo_does_not_see_the_scale_of_a_loss() -> None:
    scale = vector(100.0, 1.0, 10.0)
    plain, scaled = FAMO(), FAMO()
    for step in range(5):
        losses = random_losses(3, step)
        expected = plain(None, losses) * losses
        found = scaled(None, scale * losses) * scale * losses
        assert_near(found / found.sum(), expected / expected.sum(), 1e-6)


def test_famo_gives_slow_tasks_more() -> None:
    weighting = FAMO()
    losses = vector(1.0, 1.0)
    for _ in range(30):
        weights = weighting(None, losses)
        losses = losses * vector(0.99, 0.9)
        weighting.observe(losses)
    assert float((weights * losses)[0]) > 1.5 * float((weights * losses)[1])


# DTP


@pytest.mark.parametrize(
    "kpi",
    [
        [0.5, 0.9, 1.0],
        (0.5, torch.tensor(0.9, dtype=torch.float64), torch.ones(1)),
        {"a": 0.5, "b": 0.9, "c": 1},
        vector(0.5, 0.9, 1.0),
    ],
)
def test_dtp_by_hand(kpi: Any) -> None:
    weighting = DTP(gamma=2.0, alpha=0.25)
    assert_same(weighting(torch.eye(3)), torch.ones(3).double())
    weighting.observe(kpi)
    k = vector(0.5, 0.9, 1.0)
    expected = -((1 - k) ** 2) * k.log()
    assert_near(weighting(None, torch.ones(3)), expected)
    assert_near(weighting(torch.eye(3)), expected)
    weighting.observe([0.1, 0.2, 0.2])
    k = 0.25 * vector(0.1, 0.2, 0.2) + 0.75 * k
    assert_near(weighting(torch.eye(3)), -((1 - k) ** 2) * k.log())
    state = weighting.state_dict()
    assert float(state["num_observations"]) == 2
    assert_near(state["means"], k)
    resumed = DTP(gamma=2.0, alpha=0.25)
    resumed.load_state_dict(state)
    resumed.observe(kpi)
    weighting.observe(kpi)
    assert_same(resumed(torch.eye(3)), weighting(torch.eye(3)))


def test_dtp_prefers_the_worst_task() -> None:
    weighting = DTP()
    weighting.observe(torch.linspace(0.01, 1, 50))
    weights = weighting(torch.eye(50))
    assert bool((weights.diff() < 0).all())
    assert float(weights[-1]) == 0


@pytest.mark.parametrize(
    ("kpi", "error", "message"),
    [
        ([0.5, 0.0], ValueError, r"kpi\[1\]: expected a number in \(0, 1\], found 0.0"),
        ([1.5, 0.5], ValueError, r"kpi\[0\]: expected a number in \(0, 1\], found 1.5"),
        ([float("nan"), 0.5], ValueError, r"kpi\[0\]: expected .*, found nan"),
        ([0.5], ValueError, r"kpi: expected 2 numbers, found 1"),
        ([], ValueError, r"kpi: expected at least one scalar, found none"),
        ("ab", TypeError, r"kpi: expected K scalars .*, found str"),
        (0.5, TypeError, r"kpi: expected K scalars .*, found float"),
        ([0.5, True], TypeError, r"kpi\[1\]: expected a scalar, found bool"),
        ([0.5, None], TypeError, r"kpi\[1\]: expected a scalar, found NoneType"),
        ([0.5, torch.ones(2)], ValueError, r"kpi\[1\]: expected a scalar, found \[2\]"),
        (torch.ones(1, 2), ValueError, r"kpi: expected shape \[K\], found \[1, 2\]"),
        (torch.ones(2).long(), ValueError, r"kpi: expected a real floating dtype, .*int64"),
    ],
)
def test_dtp_wrong_kpi(kpi: Any, error: type[Exception], message: str) -> None:
    weighting = DTP()
    weighting.observe([0.3, 0.6])
    before = weighting.state_dict()
    with pytest.raises(error, match=f"^{message}$"):
        weighting.observe(kpi)
    for key in ("num_observations", "means"):
        assert_same(weighting.state_dict()[key], before[key])


# Options


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (DTP, {"gamma": -1}, ValueError, r"gamma: expected .*, found -1"),
        (DTP, {"alpha": 0}, ValueError, r"alpha: expected a number in \(0, 1\], found 0"),
        (DTP, {"alpha": "1"}, TypeError, r"alpha: expected a number, found str"),
        (FAMO, {"lr": -1}, ValueError, r"lr: expected .*, found -1"),
        (FAMO, {"weight_decay": -1}, ValueError, r"weight_decay: expected .*, found -1"),
        (FAMO, {"min_losses": float("inf")}, ValueError, r"min_losses: expected .*, found inf"),
        (FAMO, {"min_losses": True}, TypeError, r"min_losses: expected a number, found bool"),
        (FAMO, {"min_losses": []}, ValueError, r"min_losses: expected .*, found none"),
        (FAMO, {"min_losses": None}, TypeError, r"min_losses: expected K numbers, found None.*"),
    ],
)
def test_wrong_options(
    make: Callable[..., object], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make(**options)
