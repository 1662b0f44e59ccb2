"""MoDo and SDMGrad, and the steps on the simplex that they share with MoCo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, batches, oracle, random_jacobian
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_same, assert_same_state
from special import assert_on_simplex, assert_stationary, nearest_on_simplex

from mtlfast import MoCo, MoDo, SDMGrad, ops

NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


@pytest.mark.parametrize("name", ["moco", "modo", "sdmgrad", "dbmtl", "crmogm"])
def test_solvers_without_their_state_say_so(name: str) -> None:
    options = {"moco": 3, "modo": 3, "sdmgrad": 4, "dbmtl": 1, "crmogm": 1}[name]
    status = torch.zeros((), dtype=torch.int32)
    gramian = torch.eye(6, dtype=torch.float64)
    weights = ops.solve(name, gramian, options=[0.5] * options, status=status)
    assert weights.isnan().all()
    assert int(status) == 3


# The simplex


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    point=st.lists(st.floats(-2, 2) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12),
    spread=st.sampled_from([1e-9, 1.0, 1e3, 1e18]),
)
def test_projection_is_the_nearest_point(point: list[float], spread: float) -> None:
    """From 1/K a step along a diagonal Gramian leads anywhere: there it is projected."""
    target = spread * torch.tensor(point, dtype=torch.float64)
    gramian = (len(point) * (target.max() - target)).diag()
    weights = MoCo(1.0, gamma=1.0, rho=0.0)(gramian)
    assert_on_simplex(weights)
    expected = nearest_on_simplex(1 / len(point) - gramian.diagonal() / len(point))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e18, 1e150])
def test_weights_stay_on_the_simplex(scale: float) -> None:
    for num_tasks in (1, 2, 5, 40):
        jacobian = scale * random_jacobian(num_tasks, 0, 0.9)
        for method in (MoCo(), MoDo(reduction="mean"), SDMGrad()):
            for t in range(3):
                seen = batches(method, jacobian.roll(t, 1))
                weights = method(seen @ seen.T)
                assert method.status == "ok"
                assert_on_simplex(weights)


@pytest.mark.parametrize("make", [MoCo, MoDo, SDMGrad, lambda: SDMGrad(lr=1e300)])
def test_indefinite_gramian_gives_finite_weights(make: Callable[[], Any]) -> None:
    """No task gradients have such a Gramian, but rounding, or a caller, can make one."""
    generator = torch.Generator().manual_seed(0)
    for size in (6, 12, 30):
        noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
        for gramian in (noise, noise + noise.T, 1e300 * noise, -torch.eye(size), noise.tril()):
            method = make()
            for _ in range(3):
                weights = method(gramian)
                assert bool(weights.isfinite().all())


# MoDo


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_modo_stream(num_tasks: int) -> None:
    """Certified weights over twelve steps, batches 3 t and 3 t + 1."""
    data = oracle()
    jacobian = torch.from_numpy(data[f"K{num_tasks}/J"]).double()
    expected = torch.from_numpy(data[f"K{num_tasks}/modo_w"])
    method, half = MoDo(), MoDo(reduction="mean")
    for t, weights in enumerate(expected):
        rows = jacobian[3 * t : 3 * t + 2].flatten(0, 1)
        found = method(rows @ rows.T)
        torch.testing.assert_close(found, weights.repeat(2), rtol=0, atol=1e-12)
        assert_same(half(rows @ rows.T), found / 2)


def test_modo_of_one_batch_twice_is_moco_without_history() -> None:
    modo, moco = MoDo(0.3, 0.2), MoCo(1.0, 0.3, 0.2)
    for t in range(4):
        jacobian = random_jacobian(3, t, 0.9)
        gramian = jacobian @ jacobian.T
        assert_same(modo(gramian.repeat(2, 2))[:3], moco(gramian))


# SDMGrad


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_sdmgrad_stream(num_tasks: int) -> None:
    """Certified weights, whose A is divided by 1e-8 more: as a shorter step would have it."""
    data = oracle()
    jacobian = torch.from_numpy(data[f"K{num_tasks}/J"]).double()
    expected = torch.from_numpy(data[f"K{num_tasks}/sdmgrad_w"])
    method = SDMGrad()
    for t, weights in enumerate(expected):
        rows = jacobian[3 * t : 3 * t + 3].flatten(0, 1)
        gramian = rows @ rows.T
        square = float(gramian.diagonal(num_tasks)[:num_tasks].clamp(min=0).sqrt().mean()) ** 2
        method.lr = 10 * square / (square + 1e-8) if square else 10.0
        found = method(gramian)
        assert not found[: 2 * num_tasks].any()
        torch.testing.assert_close(found[2 * num_tasks :], weights, rtol=0, atol=1e-12)


def test_sdmgrad_converges_to_the_minimum_norm() -> None:
    jacobian = random_jacobian(4, 1, 0.9)
    gramian = jacobian @ jacobian.T
    for pull in (0.0, 0.3, 2.0):
        method = SDMGrad(lr=0.3, regularization=pull, num_steps=500)
        weights = method(gramian.repeat(3, 3))[8:]
        assert_on_simplex(weights)
        assert_stationary(gramian @ weights, weights * (1 + pull) - pull / 4)


def test_sdmgrad_combines_the_third_batch_alone() -> None:
    rows = torch.cat([random_jacobian(3, t) for t in range(3)])
    weights = SDMGrad()(rows @ rows.T)
    rows[:6] = NAN
    (found,) = ops.combine([[row] for row in rows], weights)
    torch.testing.assert_close(found, weights[6:] @ rows[6:])


@pytest.mark.parametrize("bad", range(9))
def test_sdmgrad_refuses_nan_in_any_batch(bad: int) -> None:
    rows = torch.cat([random_jacobian(3, t) for t in range(3)])
    method = SDMGrad()
    method(rows @ rows.T)
    before = method.state_dict()
    rows[bad, 0] = INF
    assert method(rows @ rows.T).isnan().all()
    assert_same_state(method.state_dict(), before)


def test_sdmgrad_without_agreement() -> None:
    """No task agrees with itself across batches: scaled by the lengths instead, still a descent."""
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()
    rows = torch.cat([first, -first, first])
    for scale in (1e-20, 1.0, 1e18):
        method = SDMGrad(lr=0.01)
        weights = method(scale * rows @ (scale * rows).T)
        assert method.status == "ok"
        if scale == 1e-20:
            expected = weights
            assert float(weights[5]) > 0.5  # along -A the longer gradient gains
        torch.testing.assert_close(weights, expected)
    rows[:4] = 0
    method = SDMGrad()
    uniform = torch.tensor([0, 0, 0, 0, 0.5, 0.5]).double()
    torch.testing.assert_close(method(rows @ rows.T), uniform)
    assert method.status == "degenerate"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MoDo(gamma=-1), ValueError, r"gamma: expected .*, found -1"),
        (lambda: MoDo(rho=INF), ValueError, r"rho: expected .*, found inf"),
        (lambda: MoDo(reduction="x"), ValueError, r"reduction: expected .*, found 'x'"),  # type: ignore[arg-type]
        (lambda: SDMGrad(lr=0), ValueError, r"lr: expected a number in \(0, inf\), found 0"),
        (lambda: SDMGrad(momentum=1), ValueError, r"momentum: .*\[0, 1\), found 1"),
        (lambda: SDMGrad(regularization=-1), ValueError, r"regularization: .*, found -1"),
        (lambda: SDMGrad(num_steps=0), ValueError, "num_steps: expected an int .* 1, found 0"),
        (lambda: SDMGrad(num_steps=2.0), TypeError, "num_steps: expected an int, found float"),  # type: ignore[arg-type]
        (lambda: MoDo()(torch.eye(3)), ValueError, r"gramian: expected shape \[2 K, 2 K\], found"),
        (lambda: SDMGrad()(torch.eye(4)), ValueError, r"gramian: .*\[3 K, 3 K\], found \[4, 4\]"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make()
