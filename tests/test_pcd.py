"""PCD: the nearest update that keeps its promises, answers by hand, degenerate input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, random_jacobian, random_losses
from convex import ANY, double, jacobians
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlfast.weighting import PCD

NAN = float("nan")


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


def assert_pcd(jacobian: Tensor, scales: Tensor, taus: Tensor, weights: Tensor) -> None:
    """The conditions that prove the answer, up to its length, which is ``|g_1|``."""
    rows = scales[:, None] * jacobian  # h_i
    length = float(jacobian[0].norm())
    torch.testing.assert_close(float((weights @ jacobian).norm()), length, rtol=1e-7, atol=0)
    found = torch.where(scales > 0, weights / scales, 0.0)  # over the h_i, up to a factor
    direction = found / found[0] @ rows
    added = (found / found[0])[1:]
    excess = rows[1:] @ direction - taus * rows[1:].square().sum(1)
    size = 1 + float((added * rows[1:].norm(dim=1)).max()) if len(added) else 1.0
    assert bool((added >= 0).all())
    assert bool((excess >= -1e-9 * size).all())
    assert float((added * excess).abs().sum()) <= 1e-8 * size**2


@ANY
@given(
    jacobian=jacobians(least=2),
    tau=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_pcd_is_the_nearest_that_keeps_its_promises(
    jacobian: Tensor, tau: float, seed: int
) -> None:
    taus = tau * random_losses(len(jacobian) - 1, seed).clamp(max=1)
    norms = jacobian.norm(dim=1)
    method = PCD(taus)
    weights = method(jacobian @ jacobian.T)
    if method.status == "degenerate":
        if tau == 0:  # d = 0 is allowed, so that the conditions contradict each other never
            assert float((weights @ jacobian).norm()) == 0
        else:
            assert weights.tolist() == [1.0] + [0.0] * (len(jacobian) - 1)
        return
    assert method.status == "ok"
    if norms[0] > 0:
        assert_pcd(jacobian, torch.where(norms > 0, 1 / norms, 0.0), taus, weights)


def test_pcd_by_hand() -> None:
    # Unit vectors at a right angle: h_2 is promised 0.5, d = (1, 0.5), of length 1 again.
    weights = PCD(tau=0.5)(torch.eye(2))
    torch.testing.assert_close(weights, double([1.0, 0.5]) / math.sqrt(1.25))
    # 3 g_2 is promised the same, and weighs a third.
    weights = PCD(tau=0.5)(double([[4.0, 0.0], [0.0, 9.0]]))
    torch.testing.assert_close(weights, double([1.0, 0.5 * 2 / 3]) / math.sqrt(1.25))
    # Opposite gradients leave the promise alone.
    jacobian = double([[1.0, 0.0], [-2.0, 0.0]])
    weights = PCD()(jacobian @ jacobian.T)
    torch.testing.assert_close(weights @ jacobian, double([-1.0, 0.0]))
    # A promise that is kept already.
    assert PCD()(torch.ones(2, 2)).tolist() == [1.0, 0.0]


def test_pcd_degenerate() -> None:
    opposite = double([[1.0, 0.0, 0.0], [0.0, 1.0, -2.0], [0.0, -2.0, 4.0]])
    method = PCD()
    assert method(opposite).tolist() == [1.0, 0.0, 0.0]
    assert method.status == "degenerate"
    method = PCD(tau=0.0)
    assert method(opposite).tolist() == [1.0, 0.0, 0.0]
    assert method.status == "ok"
    assert (
        method(double([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).tolist() == [0.0] * 3
    )
    assert method.status == "degenerate"


def test_pcd_contradictions() -> None:
    # Three directions around the circle cannot all be served.
    jacobian = double([[1.0, 0.3], [0.0, 1.0], [0.8, -0.6], [-0.8, -0.6]])
    # Nor can two that are opposite to rounding, whatever the last digits say.
    for angle in (None, 0.0, 1e-15, 1e-12, 1e-9, 2e-7):
        if angle is not None:
            jacobian = double([[1.0, 0.3], [0.6, 0.8], [-0.6 - 0.8 * angle, -0.8 + 0.6 * angle]])
        method = PCD()
        weights = method(jacobian @ jacobian.T)
        assert weights.tolist() == [1.0] + [0.0] * (len(jacobian) - 1)
        assert method.status == "degenerate"


@pytest.mark.parametrize("taus", [[0.2, 0.6, 0.4], [0.6, 0.2, 0.4], [0.2, 0.4, 0.6]])
def test_pcd_equal_gradients_are_promised_the_most(taus: list[float]) -> None:
    jacobian = double([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    method = PCD(taus)
    direction = method(jacobian @ jacobian.T) @ jacobian
    assert method.status == "ok"
    torch.testing.assert_close(direction, double([1.0, 0.6]) / math.hypot(1.0, 0.6))


def test_pcd_condition_that_depends_on_others() -> None:
    # Task 3 is in the span of tasks 1 and 2, which are violated by more, and matters in the end:
    # y >= 0.4, z >= 0.1 and (y + z) / sqrt(2) >= 0.3657, where task 2 has no say any more.
    half = math.sqrt(0.5)
    jacobian = double([[0.8, -0.6, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.0, half, half]])
    method = PCD([0.4, 0.1, 0.3657])
    direction = method(jacobian @ jacobian.T) @ jacobian
    expected = double([0.8, 0.4, 0.3657 / half - 0.4])
    torch.testing.assert_close(direction, expected / expected.norm())
    assert method.status == "ok"


def test_pcd_zero_gradients() -> None:
    gramian = double([[4.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    method = PCD()
    weights = method(gramian)
    assert float(weights[2]) == 0
    torch.testing.assert_close(weights[:2], PCD()(gramian[:2, :2]))
    backwards = gramian.flip(0, 1)
    assert PCD()(backwards).tolist() == [0.0] * 3
    assert PCD()(torch.zeros(2, 2)).tolist() == [0.0, 0.0]
    assert method.status == "ok"


@pytest.mark.parametrize("eps", [0.0, 1e-2])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_pcd_averages_the_squared_norms(beta: float, eps: float) -> None:
    method = PCD(tau=0.3, beta=beta, eps=eps)
    average = torch.zeros(4, dtype=torch.float64)
    for step in range(6):
        jacobian = (1.5**step) * random_jacobian(4, step, conflict=0.9)
        if step == 2:
            jacobian[3] = 0
        weights = method(jacobian @ jacobian.T)
        average = beta * average + (1 - beta) * jacobian.square().sum(1)
        running = (average / (1 - beta ** (step + 1)) + eps).sqrt()
        scales = torch.where(running > 0, 1 / running, 0.0)
        assert method.status == "ok"
        assert_pcd(jacobian, scales, double([0.3] * 3), weights)
    state = method.state_dict()
    assert float(state["num_updates"]) == 6
    torch.testing.assert_close(state["squared_norms"], average)


def test_pcd_does_not_see_the_scale_of_a_task() -> None:
    scales = double([1e-3, 1.0, 1e4, 7.0])[:, None]
    straight, scaled = PCD(tau=0.4, beta=0.8), PCD(tau=0.4, beta=0.8)
    for step in range(5):
        jacobian = random_jacobian(4, step, conflict=0.95)
        expected = straight(jacobian @ jacobian.T) @ jacobian
        other = scales * jacobian
        found = scaled(other @ other.T) @ other
        torch.testing.assert_close(found / 1e-3, expected, rtol=1e-9, atol=1e-12)


def test_pcd_state_over_all_magnitudes() -> None:
    jacobian = random_jacobian(3, 0, conflict=0.9)
    expected = PCD(tau=0.3)(jacobian @ jacobian.T)
    for scale in (1e-60, 1e-20, 1e18, 1e60):
        method = PCD(tau=0.3)
        for _ in range(3):
            found = method(scale**2 * (jacobian @ jacobian.T))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        norms2 = (scale * jacobian).square().sum(1)
        kept = method.state_dict()["squared_norms"] / (1 - 0.999**3)
        torch.testing.assert_close(kept / norms2, torch.ones(3).double(), rtol=1e-9, atol=0)


def test_pcd_taus_belong_to_the_tasks() -> None:
    promises = PCD([0.9, 0.0, 0.4])
    weights = promises(torch.eye(4))
    torch.testing.assert_close(weights / weights[0], double([1.0, 0.9, 0.0, 0.4]))
    promises.reset()
    with pytest.raises(ValueError, match=r"^tau: expected .* 2 tasks after .*, found 3$"):
        promises(torch.eye(3))
    assert PCD([])(torch.eye(1)).tolist() == [1.0]
