"""NashMTL and FairGrad: the root, its size and its invariances, and what happens without one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, random_jacobian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlfast.weighting import FairGrad, NashMTL, Weighting

ALPHAS = [0.1, 0.5, 1.0, 2.0, 5.0, 20.0]
METHODS = [NashMTL(), NashMTL(None), *(FairGrad(alpha) for alpha in ALPHAS)]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


def weights_of(weighting: Weighting, jacobian: Tensor) -> Tensor:
    weights = weighting(jacobian @ jacobian.T)
    assert bool(weights.isfinite().all())
    return weights


def around_zero(num_tasks: int, seed: int) -> Tensor:
    """``[K, K + 7]`` rows of norm 0.5 to 3 with 0 inside their convex hull."""
    generator = torch.Generator().manual_seed(seed)
    jacobian = random_jacobian(num_tasks, seed, conflict=0.0)
    shares = torch.rand(num_tasks - 1, generator=generator, dtype=torch.float64) + 0.2
    jacobian[-1] = -(shares @ jacobian[:-1])
    lengths = torch.rand(num_tasks, 1, generator=generator, dtype=torch.float64) * 2.5 + 0.5
    jacobian *= lengths / jacobian.norm(dim=1, keepdim=True)
    return jacobian


# The root


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    alpha=st.floats(0.1, 20),
    num_tasks=st.sampled_from([1, 2, 3, 5, 8, 16, 40]),
    seed=st.integers(0, 2**31),
    conflict=st.sampled_from([0.0, 0.9, 0.99]),
    decades=st.sampled_from([0.0, 3.0]),
)
def test_root(alpha: float, num_tasks: int, seed: int, conflict: float, decades: float) -> None:
    jacobian = random_jacobian(num_tasks, seed, conflict)
    jacobian *= 10 ** torch.linspace(-decades, 0, num_tasks, dtype=torch.float64)[:, None]
    weighting = FairGrad(alpha)
    weights = weights_of(weighting, jacobian)
    assert weighting.status == "ok"
    assert bool((weights > 0).all())
    # The improvements are differences of large numbers: their error is relative to those.
    improvements = jacobian @ (weights @ jacobian)
    norms = jacobian.norm(dim=1)
    rounding = norms * float(weights @ norms)
    error = (improvements - weights ** (-1 / alpha)).abs()
    assert bool((error <= 1e-12 * rounding + 1e-10 * improvements.abs()).all())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    num_tasks=st.sampled_from([1, 2, 3, 8, 40]),
    seed=st.integers(0, 2**31),
    conflict=st.sampled_from([0.0, 0.9, 0.999]),
)
def test_alpha_1_is_nash(num_tasks: int, seed: int, conflict: float) -> None:
    jacobian = random_jacobian(num_tasks, seed, conflict)
    expected = weights_of(NashMTL(None), jacobian)
    torch.testing.assert_close(weights_of(FairGrad(1.0), jacobian), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_no_other_update_of_the_length_is_fairer(alpha: float) -> None:
    for seed in range(5):
        jacobian = random_jacobian(4, seed, conflict=0.9)
        best = weights_of(FairGrad(alpha), jacobian) @ jacobian
        generator = torch.Generator().manual_seed(seed + 1)
        steps = torch.randn(400, len(best), generator=generator, dtype=torch.float64)
        others = best + torch.logspace(-4, 0, 400, dtype=torch.float64)[:, None] * steps
        others *= best.norm() / others.norm(dim=1, keepdim=True)
        improvements = others @ jacobian.T
        others_utility = utility(improvements[(improvements > 0).all(1)], alpha)
        assert len(others_utility) > 20
        assert bool((others_utility < utility(jacobian @ best, alpha)).all())


def utility(improvements: Tensor, alpha: float) -> Tensor:
    if alpha == 1:
        return improvements.log().sum(-1)
    return (improvements ** (1 - alpha) / (1 - alpha)).sum(-1)


def test_two_tasks_by_hand() -> None:
    # For unit gradients at cosine c both weights are (1 + c)^(-alpha / (1 + alpha)).
    for cosine in (-0.99, -0.5, 0.0, 0.7, 1.0):
        gramian = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
        for alpha in ALPHAS:
            value = (1 + cosine) ** (-alpha / (1 + alpha))
            expected = torch.full((2,), value, dtype=torch.float64)
            found = FairGrad(alpha)(gramian)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    # Orthogonal gradients: w = n^(-2 alpha / (1 + alpha)).
    norms = torch.tensor([1e-3, 1.0, 50.0], dtype=torch.float64)
    for alpha in ALPHAS:
        found = FairGrad(alpha)(norms.square().diag())
        expected = norms ** (-2 * alpha / (1 + alpha))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_nash_sees_directions_only() -> None:
    jacobian = random_jacobian(6, 0, conflict=0.9)
    lengths = 10.0 ** torch.arange(-9, 9, 3, dtype=torch.float64)[:, None]
    expected = weights_of(NashMTL(), jacobian) @ jacobian
    scaled = jacobian * lengths
    torch.testing.assert_close(
        weights_of(NashMTL(), scaled) @ scaled, expected, rtol=1e-9, atol=1e-12
    )


def test_extreme_alpha() -> None:
    jacobian = random_jacobian(5, 0).abs()
    nearly_sum = weights_of(FairGrad(1e-3), jacobian)
    torch.testing.assert_close(nearly_sum, torch.ones(5).double(), rtol=0.02, atol=0)
    # Far towards max-min every task with a weight to speak of improves equally, the least.
    weights = weights_of(FairGrad(50.0), jacobian)
    improvements = jacobian @ (weights @ jacobian)
    heavy = weights > 0.05 * weights.max()
    assert float(improvements[heavy].max() / improvements.min()) < 1.1
    for alpha in (1e-300, 1e-9, 1e4, 1e300):
        for conflict in (0.0, 0.98):
            weights_of(FairGrad(alpha), random_jacobian(8, 1, conflict))


# Size


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    scale=st.floats(1e-20, 1e18),
    num_tasks=st.sampled_from([2, 3, 8]),
    seed=st.integers(0, 2**31),
    conflict=st.sampled_from([0.0, 0.9]),
    max_norm=st.sampled_from([0.1, 1.0, 100.0, None]),
)
def test_nash_update_does_not_see_the_scale(
    scale: float, num_tasks: int, seed: int, conflict: float, max_norm: float | None
) -> None:
    jacobian = random_jacobian(num_tasks, seed, conflict)
    length = min(math.inf if max_norm is None else max_norm, math.sqrt(num_tasks))
    expected = weights_of(NashMTL(max_norm), jacobian) @ jacobian
    found = weights_of(NashMTL(max_norm), scale * jacobian) @ (scale * jacobian)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * length)
    torch.testing.assert_close(float(found.norm()), length, rtol=1e-10, atol=0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    scale=st.floats(1e-20, 1e18),
    alpha=st.floats(0.1, 20),
    num_tasks=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 2**31),
)
def test_fairgrad_size(scale: float, alpha: float, num_tasks: int, seed: int) -> None:
    jacobian = random_jacobian(num_tasks, seed, 0.9)
    expected = weights_of(FairGrad(alpha), jacobian) * scale ** (-2 * alpha / (1 + alpha))
    found = weights_of(FairGrad(alpha), scale * jacobian)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_powers_of_two_change_the_size_only(method: Weighting) -> None:
    jacobian = random_jacobian(5, 0)
    alpha = method.alpha if isinstance(method, FairGrad) else 1.0
    method.reset()
    expected = weights_of(method, jacobian)
    for exponent in (-60, -1, 3, 60):
        size = 2.0 ** (-2 * alpha / (1 + alpha) * exponent)
        found = weights_of(method, jacobian * 2.0**exponent)
        torch.testing.assert_close(found, expected * size, rtol=1e-14, atol=0)


@pytest.mark.parametrize("method", [*METHODS, FairGrad(1e4)], ids=repr)
def test_weights_stay_finite_at_the_ends_of_float64(method: Weighting) -> None:
    for norm in (1e-161, 1e-150, 1e150):
        for cosine in (-1.0, -0.9, 0.5):
            gramian = norm * norm * torch.tensor([[1.0, cosine], [cosine, 1.0]]).double()
            method.reset()
            weights = method(gramian)
            assert bool(weights.isfinite().all())
            assert bool((weights > 0).all())


def test_max_norm_and_reduction_of_fairgrad() -> None:
    jacobian = random_jacobian(4, 0, conflict=0.5)
    root = weights_of(FairGrad(2.0), jacobian)
    length = float((root @ jacobian).norm())
    torch.testing.assert_close(weights_of(FairGrad(2.0, "sum"), jacobian), 4 * root)
    for reduction, factor in (("mean", 1), ("sum", 4)):
        for max_norm in (0.01, 1.0, 1e3):
            weighting = FairGrad(2.0, reduction, max_norm)  # type: ignore[arg-type]
            expected = root * min(factor, max_norm / length)
            torch.testing.assert_close(weights_of(weighting, jacobian), expected)


# No root


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    num_tasks=st.sampled_from([2, 3, 5, 8, 16, 40]),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-18, 1.0, 1e16]),
    method=st.sampled_from(METHODS),
)
def test_zero_in_the_hull_has_no_root(
    num_tasks: int, seed: int, scale: float, method: Weighting
) -> None:
    jacobian = around_zero(num_tasks, seed)
    method.reset()
    weights = weights_of(method, scale * jacobian)
    assert method.status == "degenerate"
    inverse = 1 / (scale * jacobian.norm(dim=1))
    length = float((inverse @ (scale * jacobian)).norm())
    max_norm = method.max_norm if isinstance(method, (NashMTL, FairGrad)) else None
    if max_norm is not None and length > max_norm:
        inverse *= max_norm / length
    torch.testing.assert_close(weights, inverse, rtol=1e-9, atol=0)
    # A step away from the hull there is one.
    away = torch.nn.functional.pad(jacobian, (0, 1), value=1e-3)
    weights_of(method, scale * away)
    assert method.status == "ok"


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_without_root_the_last_weights_stay(method: Weighting) -> None:
    method.reset()
    expected = weights_of(method, random_jacobian(3, 0))
    state = method.state_dict()
    no_root = 1e-3 * around_zero(3, 1)  # short: max_norm is not reached
    for jacobian in (no_root, torch.zeros(3, 4).double(), no_root):
        torch.testing.assert_close(weights_of(method, jacobian), expected, rtol=0, atol=0)
        assert method.status == "degenerate"
        torch.testing.assert_close(method.state_dict()["weights"], state["weights"])
    resumed = type(method)()
    resumed.load_state_dict(state)
    torch.testing.assert_close(weights_of(resumed, no_root), expected, rtol=0, atol=0)
    found = weights_of(method, random_jacobian(3, 2))
    assert method.status == "ok"
    method.reset()
    torch.testing.assert_close(found, weights_of(method, random_jacobian(3, 2)), rtol=0, atol=0)


def test_max_norm_holds_without_root_too() -> None:
    for weighting in (NashMTL(0.5), FairGrad(2.0, max_norm=0.5), FairGrad(2.0, "sum", 0.5)):
        first = weights_of(weighting, random_jacobian(3, 0))
        long = 1e3 * around_zero(3, 1)
        weights = weights_of(weighting, long)
        assert weighting.status == "degenerate"
        torch.testing.assert_close(float((weights @ long).norm()), 0.5)
        torch.testing.assert_close(weights / weights.sum(), first / first.sum())
        short = 1e-6 * long  # the shortening was not remembered
        torch.testing.assert_close(weights_of(weighting, short), first, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_zero_gradients_leave_the_solve(method: Weighting) -> None:
    method.reset()
    jacobian = random_jacobian(5, 3, conflict=0.9)
    expected = weights_of(method, jacobian)
    padded = torch.zeros(7, jacobian.shape[1], dtype=torch.float64)
    rows = [0, 1, 3, 4, 6]
    padded[rows] = jacobian
    method.reset()
    found = weights_of(method, padded)
    assert method.status == "ok"
    torch.testing.assert_close(found[rows], expected, rtol=1e-12, atol=0)
    assert found[[2, 5]].tolist() == [0.0, 0.0]
    method.reset()
    assert weights_of(method, torch.zeros(4, 3).double()).tolist() == [0.0] * 4
    assert method.status == "degenerate"
    method.reset()
    no_root = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]).double()
    torch.testing.assert_close(weights_of(method, no_root), torch.tensor([1.0, 0.0, 0.5]).double())


def test_the_edge_of_the_hull_is_no_noise() -> None:
    # |J'w| down to 1e-6 of the gradients is a proper answer, exact to what the Gramian tells.
    for gap in (1e-1, 1e-3, 1e-5, 1e-6):
        for seed in range(10):
            frame = torch.linalg.qr(random_jacobian(3, seed).T).Q.T  # [3, 10], orthonormal rows
            rows = [[1.0, gap, 0.0], [-1.0, gap, 0.0], [0.0, 0.0, 2.0]]
            jacobian = torch.tensor(rows, dtype=torch.float64) @ frame
            weighting = NashMTL()
            direction = weights_of(weighting, jacobian) @ jacobian
            assert weighting.status == "ok"
            expected = torch.tensor([0, 2 / 3, 1 / 3], dtype=torch.float64).sqrt() @ frame
            torch.testing.assert_close(direction, expected, rtol=0, atol=1e-14 / gap**2)


def test_numbers_of_tasks_may_not_change() -> None:
    for weighting in (NashMTL(), FairGrad()):
        weighting(torch.eye(3))
        with pytest.raises(ValueError, match=r"gramian: expected 3 tasks .*, found 2"):
            weighting(torch.eye(2))


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        (NashMTL, {"max_norm": 0}, ValueError, r"max_norm: expected .* \(0, inf\), found 0"),
        (NashMTL, {"max_norm": -1.0}, ValueError, r"max_norm: expected .*, found -1.0"),
        (NashMTL, {"max_norm": "1"}, TypeError, r"max_norm: expected a number, found str"),
        (FairGrad, {"alpha": 0}, ValueError, r"alpha: expected .* \(0, inf\), found 0"),
        (FairGrad, {"alpha": math.inf}, ValueError, r"alpha: expected .*, found inf"),
        (FairGrad, {"alpha": None}, TypeError, r"alpha: expected a number, found NoneType"),
        (FairGrad, {"reduction": "avg"}, ValueError, r"reduction: expected .*, found 'avg'"),
        (FairGrad, {"max_norm": 0.0}, ValueError, r"max_norm: expected .*, found 0.0"),
    ],
)
def test_wrong_options(
    method: type[Weighting], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        method(**options)


def test_repr() -> None:
    assert repr(NashMTL()) == "NashMTL(max_norm=1.0)"
    assert repr(NashMTL(None)) == "NashMTL(max_norm=None)"
    assert repr(FairGrad()) == "FairGrad(alpha=2.0, reduction='mean')"
