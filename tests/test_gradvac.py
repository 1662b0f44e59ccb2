"""GradVac: certified streams, its steps on the gradients themselves, and goals at their ends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import BACKENDS, backend, oracle, random_jacobian, random_orders
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.weighting import GradVac, PCGrad


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


def with_goals(weighting: GradVac, goals: Tensor) -> GradVac:
    weighting.load_state_dict({"method": "gradvac", "phi": goals.double()})
    return weighting


def goals_of(weighting: GradVac) -> Tensor:
    goals: Tensor = weighting.state_dict()["phi"]
    return goals


def vaccinate(jacobian: Tensor, order: Tensor, goals: Tensor, beta: float) -> Tensor:
    """One step on the gradients ``[K, P]`` themselves; ``goals`` are changed in place."""
    total = torch.zeros_like(jacobian[0])
    for i in range(len(jacobian)):
        v = jacobian[i]
        for j in order[i].tolist():
            if j == i:
                continue
            g = jacobian[j]
            cosine = float(v @ g / (v.norm() * g.norm()))
            goal = float(goals[i, j])
            if cosine < goal:
                sine, goal_sine = math.sqrt(1 - cosine**2), math.sqrt(1 - goal**2)
                v = v + v.norm() * (goal * sine - cosine * goal_sine) / (g.norm() * goal_sine) * g
            goals[i, j] = (1 - beta) * goal + beta * cosine
        total = total + v
    return total


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_certified_stream(num_tasks: int) -> None:
    data = oracle()
    jacobians = torch.from_numpy(data[f"K{num_tasks}/J"])  # [36, K, 24]
    expected = torch.from_numpy(data[f"K{num_tasks}/gradvac_w"])  # [6, K]
    weighting = GradVac()
    for t, wanted in enumerate(expected):
        generator = np.random.default_rng([99, t, num_tasks])  # the stream's own orders
        order = np.stack([generator.permutation(num_tasks) for _ in range(num_tasks)])
        found = weighting(jacobians[t] @ jacobians[t].T, order=torch.from_numpy(order))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    if num_tasks > 1:
        goals = torch.from_numpy(data[f"K{num_tasks}/gradvac_phi"])
        torch.testing.assert_close(goals_of(weighting), goals, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    num_tasks=st.sampled_from([2, 3, 5, 16]),
    seed=st.integers(0, 2**31),
    conflict=st.sampled_from([0.0, 0.5, 0.9]),
    beta=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    scale=st.sampled_from([1e-20, 1.0, 1e18]),
)
def test_steps_on_the_gradients(
    num_tasks: int, seed: int, conflict: float, beta: float, scale: float
) -> None:
    weighting, mean = GradVac(beta), GradVac(beta, "mean")
    goals = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    for t in range(4):
        jacobian = random_jacobian(num_tasks, seed + t // 2, conflict)
        order = random_orders(num_tasks, seed + t)
        expected = vaccinate(jacobian, order, goals, beta)
        gramian = (scale * jacobian) @ (scale * jacobian).T
        weights = weighting(gramian, order=order)
        assert weighting.status == "ok"
        torch.testing.assert_close(weights @ jacobian, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mean(gramian, order=order), weights / num_tasks)
    found = weighting.state_dict().get("phi", torch.zeros_like(goals))
    torch.testing.assert_close(found, goals, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_tasks", [2, 3, 8, 40])
def test_starts_as_pcgrad(num_tasks: int) -> None:
    still = GradVac(0.0, seed=3)
    for t in range(3):
        jacobian = random_jacobian(num_tasks, t, conflict=0.95)
        gramian = jacobian @ jacobian.T
        order = random_orders(num_tasks, t)
        expected = PCGrad()(gramian, order=order)
        torch.testing.assert_close(GradVac()(gramian, order=order), expected)
        torch.testing.assert_close(still(gramian, order=order), expected)  # beta 0: for good


def test_the_lift_reaches_the_goal() -> None:
    for cosine in (-0.999, -0.3, 0.2, 0.89):
        for goal in (-0.9, 0.0, 0.9, 0.999):
            jacobian = torch.tensor([[3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
            jacobian[1, 0] = 0.1 * cosine
            jacobian[1, 1] = 0.1 * math.sqrt(1 - cosine**2)
            # Task 0 has the goal, task 1 is content.
            goals = torch.tensor([[0.0, goal], [-1.0, 0.0]], dtype=torch.float64)
            weighting = with_goals(GradVac(0.25), goals)
            weights = weighting(jacobian @ jacobian.T)
            lifted = weights @ jacobian - jacobian[1]
            reached = float(lifted @ jacobian[1] / (lifted.norm() * jacobian[1].norm()))
            assert math.isclose(reached, max(goal, cosine), rel_tol=1e-12, abs_tol=1e-12)
            # The goals move towards the cosine found, not the one reached.
            expected = 0.75 * goals + 0.25 * cosine * (1 - torch.eye(2).double())
            torch.testing.assert_close(goals_of(weighting), expected, rtol=1e-12, atol=1e-14)


def test_gradients_that_agree_are_added_up() -> None:
    jacobian = torch.rand(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = GradVac()(jacobian @ jacobian.T)
    torch.testing.assert_close(weights, torch.ones(6, dtype=torch.float64), rtol=0, atol=0)


def test_zero_gradients_meet_nobody() -> None:
    jacobian = random_jacobian(4, 0, conflict=0.9)
    alone = jacobian[[0, 1, 3]]
    jacobian[2] = 0
    rows = torch.tensor([0, 1, 3])
    goals = torch.full((4, 4), 0.3, dtype=torch.float64)
    weighting = with_goals(GradVac(), goals)
    others = with_goals(GradVac(), goals[:3, :3])
    order = torch.tensor([[3, 2, 1, 0], [0, 2, 3, 1], [0, 1, 2, 3], [2, 1, 0, 3]])
    small = torch.tensor([[2, 1, 0], [0, 2, 1], [1, 0, 2]])
    for _ in range(2):
        weights = weighting(jacobian @ jacobian.T, order=order)
        expected = others(alone @ alone.T, order=small)
        torch.testing.assert_close(weights[rows], expected)
        assert float(weights[2]) == 1
    found = goals_of(weighting)
    torch.testing.assert_close(found[rows][:, rows], goals_of(others))
    assert found[2].tolist() == found[:, 2].tolist() == [0.3] * 4


def test_opposite_gradients_cancel() -> None:
    for seed in range(10):
        jacobian = random_jacobian(3, seed)
        jacobian[1] = -0.3 * jacobian[0]
        pair = jacobian[:2]
        for scale in (1e-20, 1.0, 1e18):
            weighting = GradVac()
            for _ in range(5):
                weights = weighting((scale * pair) @ (scale * pair).T)
                assert weighting.status == "ok"
                direction = weights @ pair
                torch.testing.assert_close(
                    direction, torch.zeros_like(direction), rtol=0, atol=1e-14
                )
        # A v that has vanished has no cosine with anybody: its goal for the third task stays.
        goals = torch.tensor([[0.0, 0.0, 0.2], [0.0, 0.0, 0.2], [0.1, 0.1, 0.0]]).double()
        weighting = with_goals(GradVac(), goals)
        weighting(jacobian @ jacobian.T, order=torch.tensor([[1, 2, 0], [0, 2, 1], [0, 1, 2]]))
        found = goals_of(weighting)
        torch.testing.assert_close(found[:2, 2], goals[:2, 2], rtol=0, atol=0)
        torch.testing.assert_close(found[:2, :2], torch.tensor([[0, -0.5], [-0.5, 0]]).double())
        assert bool((found[2, :2] != 0.1).all())


def test_equal_gradients_for_long() -> None:
    jacobian = random_jacobian(1, 0).expand(3, 8) * torch.tensor([[0.1], [1.0], [3.0]])
    weighting = GradVac()
    for _ in range(80):
        weights = weighting(jacobian @ jacobian.T)
        # A goal of 1 up to rounding asks for nothing where the cosine is 1 up to rounding.
        torch.testing.assert_close(weights, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    goals = goals_of(weighting)
    ones = torch.ones(3, 3, dtype=torch.float64).fill_diagonal_(0.0)
    torch.testing.assert_close(goals, ones, rtol=0, atol=1e-14)
    # When they part, the lift is as long as the goal asks for, and finite.
    weights = weighting(torch.eye(3))
    assert weighting.status == "ok"
    assert bool(weights.isfinite().all())
    assert float(weights.max()) > 1e6


@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e150])
def test_goals_beyond_float64(scale: float) -> None:
    num_tasks = 40
    weighting = with_goals(GradVac(), torch.ones(num_tasks, num_tasks))
    weights = weighting(scale**2 * torch.eye(num_tasks, dtype=torch.float64))
    assert weighting.status == "degenerate"
    assert bool(weights.isfinite().all())
    assert bool(goals_of(weighting).isfinite().all())
    assert torch.equal(goals_of(weighting)[0, 1:], torch.full((39,), 0.5).double())
    for goal in (-1.0, -1.0 + 2**-52, 1.0):
        for cosine in (-1.0, 0.0, 1.0):
            weighting = with_goals(GradVac(), goal * torch.ones(2, 2).double())
            gramian = scale**2 * torch.tensor([[1.0, cosine], [cosine, 1.0]]).double()
            assert bool(weighting(gramian).isfinite().all())
            assert weighting.status == "ok"


def test_drawn_orders_are_the_references() -> None:
    drawing = GradVac(seed=-5)
    given_orders = GradVac()
    for counter in range(4):
        jacobian = random_jacobian(7, counter, conflict=0.9)
        gramian = jacobian @ jacobian.T
        order = scaffold.draw_orders(-5, counter, 7)
        expected = given_orders(gramian, order=order)
        torch.testing.assert_close(drawing(gramian), expected, rtol=0, atol=0)
    assert drawing.state_dict()["rng"].tolist() == [-5, 4]
    assert given_orders.state_dict().keys() == {"method", "phi"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": 1.5}, ValueError, r"beta: expected a number in \[0, 1\], found 1.5"),
        ({"beta": -0.1}, ValueError, r"beta: expected a number in \[0, 1\], found -0.1"),
        ({"beta": math.nan}, ValueError, r"beta: expected .*, found nan"),
        ({"beta": "1"}, TypeError, r"beta: expected a number, found str"),
        ({"reduction": "avg"}, ValueError, r"reduction: expected .*, found 'avg'"),
        ({"seed": 0.5}, TypeError, r"seed: expected an int or None, found float"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        GradVac(**options)
