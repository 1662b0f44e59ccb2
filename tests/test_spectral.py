"""AlignedMTL, ConFIG and IMTLG: what each promises, and their arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal, localcontext
from typing import Any, Literal

import pytest
import torch
from cases import BACKENDS, backend, random_jacobian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlfast import ops
from mtlfast.weighting import IMTLG, AlignedMTL, ConFIG, Weighting

sizes = st.sampled_from([1, 2, 3, 5, 8, 16, 40])
seeds = st.integers(0, 2**31)
checked = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


def assert_close(found: Tensor, expected: Any, error: float = 1e-9) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=error, atol=error)


def graded(num_tasks: int, seed: int, decades: float) -> Tensor:
    """``[K, K + 7]`` with norms from 10^-decades to about 1."""
    exponents = torch.linspace(-decades, 0, num_tasks, dtype=torch.float64)
    return random_jacobian(num_tasks, seed, conflict=0.8) * 10.0 ** exponents[:, None]


def gram(jacobian: Tensor) -> Tensor:
    return jacobian @ jacobian.T


# AlignedMTL


def transformation(
    jacobian: Tensor, scale: Literal["min", "median", "rmse"]
) -> tuple[Tensor, Tensor]:
    """B ``[K, K]``, one column per preference, and its eigenvalues."""
    columns = [AlignedMTL(scale, row)(gram(jacobian)) for row in torch.eye(len(jacobian)).tolist()]
    return torch.stack(columns, 1), torch.linalg.svdvals(jacobian).square().flip(0)


@checked
@given(num_tasks=sizes, seed=seeds, decades=st.sampled_from([0.0, 1.0, 4.0]))
def test_aligned_gradients_are_orthogonal_and_of_the_level(
    num_tasks: int, seed: int, decades: float
) -> None:
    jacobian = graded(num_tasks, seed, decades)
    for scale in ("min", "median", "rmse"):
        balance, values = transformation(jacobian, scale)
        level = {
            "min": values[0],
            "median": values[(num_tasks - 1) // 2],
            "rmse": values.mean(),
        }[scale]
        assert_close(gram(balance @ jacobian) / level, torch.eye(num_tasks), 1e-7)
        # Of all B with that product, the symmetric positive one.
        unit = balance / balance.diagonal().sqrt() / balance.diagonal().sqrt()[:, None]
        assert_close(unit, unit.T, 1e-7)
        assert bool((torch.linalg.eigvalsh(unit) > 0).all())


def exact_weights(gramian: list[list[Decimal]]) -> list[Decimal]:
    """AlignedMTL's for two tasks, from ``sqrt(G) = (G + r I) / sqrt(tr G + 2 r)``, r² = det G."""
    (a, b), (_, d) = gramian
    root = (a * d - b * b).sqrt()
    smallest = (a + d) / 2 - (((a - d) / 2) ** 2 + b * b).sqrt()
    shrink = smallest.sqrt() * (a + d + 2 * root).sqrt()
    inner = (a + root) * (d + root) - b * b
    return [shrink * (d + root - b) / inner / 2, shrink * (a + root - b) / inner / 2]


@pytest.mark.parametrize("decades", [0, 2, 4, 6])
@pytest.mark.parametrize("cosine", [0.0, 0.5, -0.9, 0.999])
def test_aligned_keeps_every_digit_over_decades(cosine: float, decades: int) -> None:
    short = 2.0 ** round(-decades * math.log2(10))
    cross = 0.8 * cosine * short
    gramian = torch.tensor([[0.7, cross], [cross, short**2]], dtype=torch.float64)
    with localcontext() as context:
        context.prec = 60
        exact = exact_weights([[Decimal(float(x)) for x in row] for row in gramian])
    for swap in (False, True):
        given_, wanted = (gramian.flip(0, 1), exact[::-1]) if swap else (gramian, exact)
        weights = AlignedMTL()(given_)
        # Relative in each weight: that of the long gradient is small, and its error must be too.
        ratio = weights / torch.tensor([float(w) for w in wanted], dtype=torch.float64)
        # The reference ends in a singular value decomposition, accurate to the largest value.
        native = ops.describe()["backend"] == "native"
        assert_close(ratio, [1.0, 1.0], 1e-12 if native else 1e-9)


@pytest.mark.parametrize("num_tasks", [2, 5, 16])
def test_aligned_counts_the_rank_only(num_tasks: int) -> None:
    jacobian = random_jacobian(num_tasks, 0)
    doubled = torch.cat([jacobian, -0.7 * jacobian[:1], torch.zeros_like(jacobian[:1])])
    shares = [1.0] * num_tasks + [0.0, 0.0]
    for scale in ("min", "median", "rmse"):
        method = AlignedMTL(scale, shares)
        weights = method(gram(doubled))
        assert method.status == "ok"
        assert float(weights[-1]) == 0
        # The update J' sqrt(level) U V' p, from the singular values that are not rounding.
        left, lengths, right = torch.linalg.svd(doubled, full_matrices=False)
        left, lengths, right = left[:, :num_tasks], lengths[:num_tasks], right[:num_tasks]
        squares = lengths.square()
        level = {"min": squares[-1], "median": squares.median(), "rmse": squares.mean()}[scale]
        expected = level.sqrt() * (torch.tensor(shares).double() @ left) @ right
        assert_close(weights @ doubled, expected)


def test_aligned_drops_eigenvalues_at_the_rounding_of_the_largest() -> None:
    # Orthogonal, so that every eigenvalue is exact: the tolerance is 2 eps times the largest.
    for factor, kept in ((1.01, True), (0.99, False)):
        small = factor * 2 * 2.0**-52
        gramian = torch.tensor([[1.0, 0.0], [0.0, small]], dtype=torch.float64)
        expected = [math.sqrt(small) / 2, 0.5] if kept else [0.5, 0.0]
        assert_close(AlignedMTL()(gramian), expected, 1e-14)


def test_aligned_without_gradients_is_the_preference() -> None:
    for preference, expected in ((None, [1 / 3] * 3), ([1.0, 0.0, 5.0], [1.0, 0.0, 5.0])):
        method = AlignedMTL(preference=preference)
        assert_close(method(torch.zeros(3, 3)), expected, 0)
        assert method.status == "degenerate"


# ConFIG


@checked
@given(num_tasks=sizes, seed=seeds, decades=st.sampled_from([0.0, 4.0]))
def test_config_has_the_cosines_asked_for(num_tasks: int, seed: int, decades: float) -> None:
    jacobian = graded(num_tasks, seed, decades)
    generator = torch.Generator().manual_seed(seed)
    preference = torch.rand(num_tasks, generator=generator, dtype=torch.float64) + 0.1
    for target, method in (
        (torch.ones_like(preference), ConFIG()),
        (preference, ConFIG(preference)),
    ):
        update = method(gram(jacobian)) @ jacobian
        assert method.status == "ok"
        cosines = (jacobian @ update) / jacobian.norm(dim=1) / update.norm()
        assert_close(cosines / target, (cosines[0] / target[0]).expand(num_tasks), 1e-8)
        assert float(cosines[0]) > 0
        # As long as the sum of the projections.
        projections = (jacobian @ update).sum() / update.norm()
        assert_close(update.norm() / projections, 1.0, 1e-8)


def test_config_of_parallel_gradients_is_their_sum() -> None:
    jacobian = torch.tensor([[1.0, 2.0, 2.0]]).double() * torch.tensor([[1.0], [0.3], [20.0]])
    method = ConFIG()
    assert_close(method(gram(jacobian)) @ jacobian, jacobian.sum(0))
    assert method.status == "ok"


def test_config_of_opposite_gradients_is_exactly_zero() -> None:
    for seed in range(50):
        gradient = random_jacobian(1, seed)[0]
        for factor in (-1.0, -0.3, -1e-6, -7e5):
            jacobian = torch.stack([gradient, factor * gradient])
            method = ConFIG()
            weights = method(gram(jacobian))
            assert weights.tolist() == [0, 0]
            assert method.status == "degenerate"


def test_config_of_dependent_gradients_is_the_least_squares_answer() -> None:
    for seed in range(5):
        jacobian = random_jacobian(9, seed)[:, :4]
        units = jacobian / jacobian.norm(dim=1, keepdim=True)
        ones = torch.ones(9, 1, dtype=torch.float64)
        best = torch.linalg.lstsq(units, ones).solution[:, 0]
        best = best / best.norm()
        assert_close(ConFIG()(gram(jacobian)) @ jacobian, (jacobian @ best).sum() * best)


def test_config_zero_gradient_leaves_the_solve() -> None:
    jacobian = random_jacobian(4, 1)
    jacobian[2] = 0
    preference = [1.0, 2.0, 9.0, 0.5]
    weights = ConFIG(preference)(gram(jacobian))
    others = ConFIG([1.0, 2.0, 0.5])(gram(jacobian[[0, 1, 3]]))
    assert float(weights[2]) == 0
    assert_close(weights[[0, 1, 3]], others, 1e-12)
    method = ConFIG()
    assert method(torch.zeros(2, 2)).tolist() == [0, 0]
    assert method.status == "degenerate"


@pytest.mark.parametrize("method", [ConFIG(), IMTLG(), AlignedMTL("rmse")], ids=repr)
def test_no_jump_where_gradients_become_equal(method: Weighting) -> None:
    gradient, other = random_jacobian(2, 0)

    def update(distance: float) -> Tensor:
        jacobian = torch.stack([gradient, gradient + distance * other])
        found = method(gram(jacobian)) @ jacobian
        # The mean of the eigenvalues is over two of them, then over one: its jump is no error.
        return found / found.norm() if isinstance(method, AlignedMTL) else found

    limit = update(0.0)
    for exponent in range(3, 14):
        assert_close(update(10.0**-exponent), limit, 5 * 10.0**-exponent + 1e-12)


# IMTLG


@checked
@given(num_tasks=sizes, seed=seeds, decades=st.sampled_from([0.0, 4.0]))
def test_imtlg_projects_equally(num_tasks: int, seed: int, decades: float) -> None:
    jacobian = graded(num_tasks, seed, decades)
    method = IMTLG()
    weights = method(gram(jacobian))
    assert method.status == "ok"
    assert_close(weights.sum(), 1.0, 1e-12)
    update = weights @ jacobian
    projections = (jacobian @ update) / jacobian.norm(dim=1) / update.norm()
    assert_close(projections, projections[0].expand(num_tasks), 1e-8)


def test_imtlg_of_two_is_the_inverse_norms() -> None:
    for cosine in (-0.999, -0.5, 0.0, 0.9):
        gramian = torch.tensor([[4.0, 2 * cosine], [2 * cosine, 1.0]], dtype=torch.float64)
        assert_close(IMTLG()(gramian), [1 / 3, 2 / 3], 1e-12)


def test_imtlg_zero_gradient_leaves_the_solve() -> None:
    jacobian = random_jacobian(4, 1)
    jacobian[1] = 0
    method = IMTLG()
    weights = method(gram(jacobian))
    assert method.status == "ok"
    assert float(weights[1]) == 0
    assert_close(weights[[0, 2, 3]], IMTLG()(gram(jacobian[[0, 2, 3]])), 1e-12)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e18])
def test_imtlg_degenerate_answers(scale: float) -> None:
    # Opposite gradients, and three whose weights before the division are 10/7, 10/7, -20/7.
    opposite = [[1.0, -2.0], [-2.0, 4.0]]
    cancelling = [[1.0, 0.0, 0.15], [0.0, 1.0, 0.15], [0.15, 0.15, 0.0625]]
    equal = [[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 1.0]]
    nothing = [[0.0, 0.0], [0.0, 0.0]]
    for gramian, expected in (
        (opposite, [2 / 3, 1 / 3]),
        (cancelling, [1 / 6, 1 / 6, 2 / 3]),
        (equal, [1 / 6, 1 / 6, 2 / 3]),
        (nothing, [0.0, 0.0]),
    ):
        method = IMTLG()
        scaled = scale**2 * torch.tensor(gramian, dtype=torch.float64)
        assert_close(method(scaled), expected, 1e-12)
        assert method.status == "degenerate"


# Arguments


@pytest.mark.parametrize(
    ("method", "option", "value", "message"),
    [
        (AlignedMTL, "scale", "mean", "expected one of .*, found 'mean'"),
        (AlignedMTL, "preference", "ab", "expected K numbers, found str"),
        (AlignedMTL, "preference", 3, "expected K numbers, found int"),
        (ConFIG, "preference", [1.0, "a"], "expected a number, found str"),
        (ConFIG, "preference", [1.0, -0.5], "expected a number in .*, found -0.5"),
        (ConFIG, "preference", torch.tensor([math.nan]), "expected a number in .*, found nan"),
        (ConFIG, "preference", [0.0, 0.0], "expected a number above 0 .*, found .0.0, 0.0."),
        (ConFIG, "preference", [], "expected one number per task, found none"),
    ],
)
def test_wrong_arguments_are_named(
    method: type[Weighting], option: str, value: object, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{option}(\[\d\])?: {message}"):
        method(**{option: value})


@pytest.mark.parametrize("method", [ConFIG([1.0, 2.0]), AlignedMTL(preference=[1.0, 2.0])])
def test_preference_must_fit_the_tasks(method: Weighting) -> None:
    with pytest.raises(ValueError, match=r"preference: expected one number .* 3 tasks, found 2"):
        method(torch.eye(3))
    assert bool(method(torch.eye(2)).isfinite().all())
