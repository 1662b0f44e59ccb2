"""MGDA, UPGrad, DualProj: optimality conditions, answers by hand, bad input; options of PCD too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, random_jacobian, random_losses
from convex import ANY, double, jacobian_of, jacobians, longest2
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlfast.weighting import MGDA, PCD, DualProj, PCGrad, UPGrad, Weighting

NAN = float("nan")


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


def assert_projection(jacobian: Tensor, weights: Tensor, preference: Tensor) -> None:
    """``Jᵀw`` is the point of the dual cone nearest to ``Jᵀp``: the conditions that prove it."""
    products = jacobian @ (weights @ jacobian)
    allowed = 1e-9 * max(longest2(jacobian), 1e-300) * float(preference.max())
    alive = jacobian.any(1)
    added = weights - preference
    assert bool((added[~alive] == 0).all())
    assert bool((added >= 0).all())
    assert float(products.min()) >= -allowed
    norms = jacobian.norm(dim=1)
    # Complementary: a task that was added to is not helped beyond that.
    assert float((added * products).abs().max()) <= allowed * (1 + float((added * norms).max()))


# UPGrad and DualProj


@ANY
@given(jacobian=jacobians(), seed=st.integers(0, 2**31))
def test_dualproj_is_a_projection(jacobian: Tensor, seed: int) -> None:
    preference = random_losses(len(jacobian), seed)
    weights = DualProj(preference)(jacobian @ jacobian.T)
    assert_projection(jacobian, weights, preference)


@ANY
@given(jacobian=jacobians(least=2), task=st.integers(0, 11))
def test_upgrad_projects_each_task(jacobian: Tensor, task: int) -> None:
    alone = torch.zeros(len(jacobian), dtype=torch.float64)
    alone[task % len(jacobian)] = 2.0
    weights = UPGrad(alone)(jacobian @ jacobian.T)
    assert_projection(jacobian, weights, alone)
    assert float(weights[task % len(jacobian)]) == 2.0  # a projection never adds to its own task


@ANY
@given(jacobian=jacobians(least=2), seed=st.integers(0, 2**31))
def test_upgrad_adds_up_the_tasks(jacobian: Tensor, seed: int) -> None:
    num_tasks, gramian = len(jacobian), jacobian @ jacobian.T
    preference = random_losses(num_tasks, seed)
    expected = torch.zeros(jacobian.shape[1], dtype=torch.float64)
    for task, value in enumerate(preference.tolist()):
        alone = [value if i == task else 0.0 for i in range(num_tasks)]
        expected += UPGrad(alone)(gramian) @ jacobian
    found = UPGrad(preference)(gramian) @ jacobian
    error = 1e-8 * math.sqrt(longest2(jacobian))
    torch.testing.assert_close(found, expected, rtol=0, atol=error)


@ANY
@given(jacobian=jacobians())
def test_they_oppose_no_task(jacobian: Tensor) -> None:
    for method in (UPGrad(), DualProj(), MGDA()):
        weights = method(jacobian @ jacobian.T)
        assert method.status == "ok"
        products = jacobian @ (weights @ jacobian)
        assert float(products.min()) >= -1e-9 * longest2(jacobian)


@pytest.mark.parametrize("exponent", range(-12, -1))
def test_nearly_opposite_gradients(exponent: int) -> None:
    # Within 1e-7 the angle is rounding in a float64 Gramian, and the bound 1e-8.
    bound = 1e-8 if -9 < exponent < -6 else 1e-9
    for seed in range(20):
        jacobian = jacobian_of("opposites", 2 + seed % 5, seed)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(jacobian.shape, generator=generator, dtype=torch.float64)
        jacobian = jacobian + 10.0**exponent * noise
        for method in (UPGrad(), DualProj()):
            weights = method(jacobian @ jacobian.T)
            assert method.status == "ok"
            products = jacobian @ (weights @ jacobian)
            assert float(products.min()) >= -bound * longest2(jacobian)


def by_enumeration(gramian: Tensor, preference: Tensor) -> Tensor:
    """The ``v >= p`` with the shortest ``Jᵀv``, among all supports; full rank only."""
    num_tasks = len(gramian)
    for size in range(num_tasks + 1):
        for support in itertools.combinations(range(num_tasks), size):
            chosen = list(support)
            added = torch.zeros(num_tasks, dtype=torch.float64)
            matrix = gramian[chosen][:, chosen]
            added[chosen] = -torch.linalg.solve(matrix, (gramian @ preference)[chosen])
            slopes = gramian @ (preference + added)
            slopes[chosen] = 0.0
            if bool((added >= 0).all()) and bool((slopes >= -1e-12).all()):
                return preference + added
    raise AssertionError("one support is optimal")


@pytest.mark.parametrize("num_tasks", [2, 3, 4, 6])
def test_projections_by_enumeration(num_tasks: int) -> None:
    for seed in range(8):
        jacobian = random_jacobian(num_tasks, seed, conflict=0.95)
        gramian = jacobian @ jacobian.T
        mean = torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)
        found = DualProj()(gramian)
        torch.testing.assert_close(found, by_enumeration(gramian, mean), rtol=1e-9, atol=1e-12)
        parts = [by_enumeration(gramian, part) for part in mean.diag()]
        expected = torch.stack(parts).sum(0)
        torch.testing.assert_close(UPGrad()(gramian), expected, rtol=1e-9, atol=1e-12)


def test_projections_by_hand() -> None:
    # g_1 = (2, 0) opposes g_2 = (-1, 1): projected on each other they are (1, 1) and (0, 1).
    jacobian = double([[2.0, 0.0], [-1.0, 1.0]])
    gramian = jacobian @ jacobian.T
    torch.testing.assert_close(UPGrad()(gramian) @ jacobian, double([0.5, 1.0]))
    torch.testing.assert_close(UPGrad([2, 1])(gramian) @ jacobian, double([2.0, 3.0]))
    # Their mean (0.5, 0.5) opposes nobody; with p = (4, 1), (7, 1) is projected off g_2.
    torch.testing.assert_close(DualProj()(gramian), double([0.5, 0.5]))
    torch.testing.assert_close(DualProj([4, 1])(gramian) @ jacobian, double([4.0, 4.0]))


def test_upgrad_of_two_is_half_of_pcgrad() -> None:
    for seed in range(20):
        jacobian = random_jacobian(2, seed, conflict=0.95)
        gramian = jacobian @ jacobian.T
        torch.testing.assert_close(UPGrad()(gramian), PCGrad()(gramian) / 2)


@pytest.mark.parametrize("make", [UPGrad, DualProj])
def test_without_conflict_nothing_is_projected(make: Callable[..., Weighting]) -> None:
    jacobian = random_jacobian(6, 0).abs()
    assert make()(jacobian @ jacobian.T).tolist() == [1 / 6] * 6
    preference = [3.0, 0.0, 1.0, 0.5, 2.0, 1e-9]
    assert make(preference)(jacobian @ jacobian.T).tolist() == preference


@pytest.mark.parametrize("make", [UPGrad, DualProj])
def test_zero_gradients_keep_their_preference(make: Callable[..., Weighting]) -> None:
    jacobian = random_jacobian(5, 1, conflict=0.95)
    jacobian[[0, 3]] = 0
    preference = double([4.0, 1.0, 2.0, 3.0, 1.0])
    method = make(preference)
    weights = method(jacobian @ jacobian.T)
    rest = [1, 2, 4]
    others = make(preference[rest])(jacobian[rest] @ jacobian[rest].T)
    assert weights[[0, 3]].tolist() == [4.0, 3.0]
    torch.testing.assert_close(weights[rest], others)
    assert make()(torch.zeros(3, 3)).tolist() == [1 / 3] * 3
    assert method.status == "ok"


@pytest.mark.parametrize("make", [UPGrad, DualProj])
def test_preference_of_another_length(make: Callable[..., Weighting]) -> None:
    method = make([1.0, 2.0])
    method(torch.eye(2))
    with pytest.raises(ValueError, match=r"^preference: expected .* 3 tasks, found 2$"):
        method(torch.eye(3))
    assert method(torch.eye(2)).tolist() == [1.0, 2.0]


# MGDA


@ANY
@given(jacobian=jacobians())
def test_mgda_is_the_shortest_mixture(jacobian: Tensor) -> None:
    method = MGDA()
    weights = method(jacobian @ jacobian.T)
    assert method.status == "ok"
    assert bool((weights >= 0).all())
    torch.testing.assert_close(float(weights.sum()), 1.0, rtol=1e-14, atol=0)
    direction = weights @ jacobian
    # <g_i, d> >= |d|² for all i proves that nothing shorter is among the mixtures.
    gap = float(direction @ direction) - float((jacobian @ direction).min())
    assert gap <= 1e-9 * max(float(direction.norm()), 1e-6) * math.sqrt(longest2(jacobian))


@ANY
@given(
    jacobian=jacobians(),
    normalization=st.sampled_from(["l2", "loss", "loss+"]),
    seed=st.integers(0, 2**31),
)
def test_mgda_normalises_the_rows(jacobian: Tensor, normalization: Any, seed: int) -> None:
    losses = 10 ** (4 * random_losses(len(jacobian), seed) - 2)
    method = MGDA(normalization)
    weights = method(jacobian @ jacobian.T, losses if method.needs_losses else None)
    assert method.status == "ok"
    if not bool(jacobian.any(1).all()):
        assert float((weights @ jacobian).norm()) == 0
        return
    divisors = torch.ones(len(jacobian), dtype=torch.float64)
    if normalization != "loss":
        divisors *= jacobian.norm(dim=1)
    if normalization != "l2":
        divisors *= losses
    normalised = jacobian / divisors[:, None]
    expected = MGDA()(normalised @ normalised.T) @ normalised
    error = 1e-7 * max(float(expected.norm()), 1e-5 * math.sqrt(longest2(normalised)))
    torch.testing.assert_close(weights @ jacobian, expected, rtol=0, atol=error)
    torch.testing.assert_close(float((weights * divisors).sum()), 1.0, rtol=1e-12, atol=0)


def test_mgda_by_hand() -> None:
    # The shortest from (2, 0) to (-1, 1) is (0.2, 0.6); of the next two segments it is an end.
    for rows, expected in (
        ([[2.0, 0.0], [-1.0, 1.0]], [0.4, 0.6]),
        ([[3.0, 0.0], [1.0, 1.0]], [0.0, 1.0]),
        ([[1.0, 0.0], [3.0, 1.0]], [1.0, 0.0]),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [1 / 3] * 3),
        ([[2.0, -1.0], [-2.0, -1.0], [0.0, 6.0]], [3 / 7, 3 / 7, 1 / 7]),
    ):
        for scale in (1e-20, 1.0, 1e18):
            jacobian = scale * double(rows)
            weights = MGDA()(jacobian @ jacobian.T)
            torch.testing.assert_close(weights, double(expected), rtol=1e-14, atol=1e-14)


def test_mgda_normalisations_by_hand() -> None:
    gramian = double([[4.0, 0.0], [0.0, 25.0]])
    losses = double([0.5, 2.0])
    torch.testing.assert_close(MGDA("l2")(gramian), double([0.25, 0.1]))
    # Normalised to (4, 0) and (0, 2.5), whose shortest mixture is w = (6.25, 16) / 22.25.
    expected = double([6.25 / 22.25 / 0.5, 16 / 22.25 / 2])
    torch.testing.assert_close(MGDA("loss")(gramian, losses), expected)
    # To (2, 0) and (0, 0.5): w = (0.25, 4) / 4.25.
    expected = double([0.25 / 4.25 / 0.5 / 2, 4 / 4.25 / 2 / 5])
    torch.testing.assert_close(MGDA("loss+")(gramian, losses), expected)


@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
def test_mgda_of_zero_gradients_is_zero(normalization: Any) -> None:
    jacobian = random_jacobian(4, 0)
    jacobian[[1, 2]] = 0
    losses = double([1.0, 0.0, -1.0, 2.0])
    method = MGDA(normalization)
    weights = method(jacobian @ jacobian.T, losses if method.needs_losses else None)
    assert weights.tolist() == [0.0, 0.5, 0.5, 0.0]
    assert method.status == "ok"


@pytest.mark.parametrize(("with_losses", "without"), [("loss", "none"), ("loss+", "l2")])
@pytest.mark.parametrize("bad", [0.0, -0.5, 1e-320])
def test_mgda_leaves_out_losses_that_cannot_divide(
    with_losses: Any, without: Any, bad: float
) -> None:
    jacobian = random_jacobian(3, 2, conflict=0.9)
    gramian = jacobian @ jacobian.T
    method = MGDA(with_losses)
    weights = method(gramian, double([1.0, bad, 2.0]))
    assert method.status == "degenerate"
    torch.testing.assert_close(weights, MGDA(without)(gramian), rtol=1e-12, atol=0)


def test_mgda_losses_over_all_magnitudes() -> None:
    jacobian = random_jacobian(3, 2, conflict=0.9)
    for losses in ([1e-300, 1.0, 1.0], [1e300, 1.0, 1e-300], [1e300, 1e300, 1e300]):
        for scale in (1e-20, 1.0, 1e18):
            for normalization in ("loss", "loss+"):
                method = MGDA(normalization)
                weights = method(scale**2 * (jacobian @ jacobian.T), double(losses))
                assert bool(weights.isfinite().all())


def test_mgda_asks_for_losses_only_where_it_needs_them() -> None:
    assert not MGDA("l2").needs_losses
    assert MGDA("loss").needs_losses
    assert MGDA().name == "mgda"
    with pytest.raises(ValueError, match=r"^losses: MGDA expected a tensor \[K\], found None$"):
        MGDA("loss+")(torch.eye(2))


# Options


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (MGDA, {"normalization": "l1"}, ValueError, r"normalization: expected .*, found 'l1'"),
        (MGDA, {"normalization": None}, ValueError, r"normalization: expected .*, found None"),
        (PCD, {"tau": 1.5}, ValueError, r"tau: expected a number in \[0, 1\], found 1.5"),
        (PCD, {"tau": [0.1, -0.1]}, ValueError, r"tau\[1\]: expected .*, found -0.1"),
        (PCD, {"tau": "0.1"}, TypeError, r"tau: expected a number, found str"),
        (PCD, {"tau": NAN}, ValueError, r"tau: expected .*, found nan"),
        (PCD, {"beta": 1.0}, ValueError, r"beta: expected a number in \[0, 1\), found 1.0"),
        (PCD, {"eps": -1e-8}, ValueError, r"eps: expected .*, found -1e-08"),
        *(
            (make, {"preference": preference}, error, message)
            for make in (UPGrad, DualProj)
            for preference, error, message in (
                ([1.0, -1.0], ValueError, r"preference\[1\]: expected .*, found -1.0"),
                ([0.0, 0.0], ValueError, r"preference: expected .*, found \[0.0, 0.0\]"),
                ([NAN, 1.0], ValueError, r"preference\[0\]: expected .*, found nan"),
                ([], ValueError, r"preference: expected .*, found none"),
                ("12", TypeError, r"preference: expected K numbers, found str"),
                (2.0, TypeError, r"preference: expected K numbers, found float"),
            )
        ),
    ],
)
def test_wrong_options(
    make: Callable[..., object], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make(**options)


def test_repr_shows_the_options() -> None:
    assert repr(MGDA()) == "MGDA(normalization='none')"
    assert repr(PCD()) == "PCD(tau=0.02, beta=0.999, eps=0.0)"
    assert repr(PCD(torch.tensor([0.5, 0.25]))) == "PCD(tau=[0.5, 0.25], beta=0.999, eps=0.0)"
    assert repr(UPGrad()) == "UPGrad()"
    assert repr(DualProj(torch.tensor([1.0, 2.0]))) == "DualProj(preference=[1.0, 2.0])"
