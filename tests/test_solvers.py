"""The solvers: native against reference on fresh Gramians, and what is known of each answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from cases import (
    BACKENDS,
    PLAIN,
    ROWS,
    Row,
    backend,
    call,
    random_jacobian,
    random_losses,
    step,
)
from models import assert_same_state
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.weighting import CAGrad, ColumnWise, GradNorm, PCGrad, Weighting

OTHERS = [row for row in ROWS if row not in PLAIN and not isinstance(row.make(2), ColumnWise)]
SIZES = [1, 2, 3, 5, 8, 16, 40, 64, 65]


def jacobians(num_tasks: int, seed: int, distance: float = 1e-4) -> Iterator[tuple[str, Tensor]]:
    """Kinds of Jacobians ``[K, P]`` float64, from easy to rank-deficient.

    Near duplicates are up to ``distance`` apart, and a hundredth of it.
    """
    yield "plain", random_jacobian(num_tasks, seed, conflict=0.0)
    conflict = random_jacobian(num_tasks, seed, conflict=0.98)
    yield "conflict", conflict
    decades = torch.linspace(-4, 0, num_tasks, dtype=torch.float64)[:, None]
    yield "decades", conflict * 10.0**decades
    yield "more tasks than columns", conflict[:, : max(1, num_tasks // 2)]
    yield "duplicates", conflict[torch.arange(num_tasks) // 2]
    twins = conflict[torch.arange(num_tasks) // 2]
    yield "near duplicates", twins + distance * 10.0 ** (decades / 2) * jacobian_noise(twins, seed)
    yield "one zero", conflict * (torch.arange(num_tasks) != num_tasks - 1)[:, None]


def jacobian_noise(jacobian: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)  # not the rows of random_jacobian
    return torch.randn(jacobian.shape, generator=generator, dtype=torch.float64)


def assert_same_direction(found: Tensor, expected: Tensor, jacobian: Tensor, error: float) -> None:
    """Compares ``Jᵀw``, the part of the weights that is unique."""
    direction = expected @ jacobian
    scale = max(float(direction.norm()), 1e-6 * float(jacobian.norm(dim=1).max()))
    torch.testing.assert_close(found @ jacobian, direction, rtol=0, atol=error * scale)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("row", PLAIN, ids=str)
def test_native_agrees_with_reference(row: Row, num_tasks: int) -> None:
    # The rounding of a Gramian weighs epsilon / distance^2 in an answer that is not continuous.
    distance = 1e-4 if row.smooth else 0.1
    for kind, jacobian in jacobians(num_tasks, num_tasks, distance):
        gramian = jacobian @ jacobian.T
        error = 1e-9 if kind in ("plain", "conflict") else 1e-6
        methods: dict[str, Weighting] = {}
        answers: dict[str, list[Tensor]] = {}
        statuses: dict[str, list[str]] = {}
        for name in BACKENDS:
            torch.manual_seed(0)
            weighting = methods[name] = row.make(num_tasks)
            answers[name], statuses[name] = [], []
            for t in range(3 if row.stateful else 1):
                with backend(name):
                    losses = random_losses(num_tasks, t)
                    answers[name].append(call(weighting, gramian, losses, None))
                statuses[name].append(weighting.status)
        assert statuses["native"] == statuses["reference"], kind
        for found, expected in zip(answers["native"], answers["reference"], strict=True):
            assert_same_direction(found, expected, jacobian, error)
        expected_state = methods["reference"].state_dict()
        found_state = methods["native"].state_dict()
        assert_same_state(found_state, expected_state, 1e-9)


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("row", OTHERS, ids=str)
def test_native_agrees_with_reference_over_steps(row: Row, num_tasks: int) -> None:
    """Methods with buffers or several batches, whose weights are unique."""
    for kind, jacobian in jacobians(num_tasks, seed=num_tasks):
        methods: dict[str, Weighting] = {}
        answers: dict[str, Tensor] = {}
        for name in BACKENDS:
            weighting = methods[name] = row.make(num_tasks)
            with backend(name):
                found = [
                    step(row, weighting, (t + 1) * jacobian, random_losses(num_tasks, t), None)
                    for t in range(3)
                ]
            answers[name] = torch.stack(found)
        torch.testing.assert_close(answers["native"], answers["reference"], rtol=1e-9, atol=1e-12)
        assert methods["native"].status == methods["reference"].status, kind
        expected = methods["reference"].state_dict()
        assert_same_state(methods["native"].state_dict(), expected, 1e-9)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("row", PLAIN, ids=str)
def test_indefinite_gramian_gives_finite_weights(row: Row, name: str) -> None:
    """No task gradients have such a Gramian, but rounding, or a caller, can make one."""
    generator = torch.Generator().manual_seed(0)
    gramians = [torch.tensor([[0.0, 1.0], [1.0, 0.0]]), -torch.eye(3), torch.ones(4, 4).tril()]
    for num_tasks in (2, 3, 6, 12, 12, 12):
        noise = torch.randn(num_tasks, num_tasks, generator=generator)
        gramians.append(noise + noise.T)
        jacobian = random_jacobian(num_tasks, 0, conflict=0.9)
        gramians.append(jacobian @ jacobian.T * (1 + 1e-5 * (noise + noise.T)))
    for gramian in gramians:
        with backend(name):
            weights = call(row.make(len(gramian)), gramian, torch.ones(len(gramian)), None)
        assert bool(weights.isfinite().all())


# PCGrad


@pytest.mark.parametrize("name", BACKENDS)
def test_pcgrad_by_hand(name: str) -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -2.0]])
    order = torch.tensor([[0, 1, 2], [2, 0, 1], [0, 1, 2]])
    # Task 0 meets 1, (1, 0) -> (.5, .5), then 2 -> (.5, 0). Task 1 meets 2, (-1, 1) -> (-1, 0),
    # then 0 -> (0, 0). Task 2 meets 0, no conflict, then 1, (0, -2) -> (-1, -1).
    with backend(name):
        weights = PCGrad()(jacobian @ jacobian.T, order=order)
    torch.testing.assert_close(weights @ jacobian.double(), torch.tensor([-0.5, -1.0]).double())


@pytest.mark.parametrize("name", BACKENDS)
def test_pcgrad_opposes_neither_of_two(name: str) -> None:
    for seed in range(50):
        jacobian = random_jacobian(2, seed, conflict=0.95)
        with backend(name):
            weights = PCGrad()(jacobian @ jacobian.T)
        products = jacobian @ (weights @ jacobian)
        assert bool((products >= -1e-12).all())


@pytest.mark.parametrize("name", BACKENDS)
def test_pcgrad_without_conflict_is_the_sum(name: str) -> None:
    jacobian = torch.rand(6, 9, dtype=torch.float64)
    with backend(name):
        weights = PCGrad()(jacobian @ jacobian.T)
    assert_same(weights, torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("name", BACKENDS)
def test_pcgrad_cancels_opposite_gradients(name: str) -> None:
    gramian = torch.tensor([[4.0, -2.0], [-2.0, 1.0]])
    with backend(name):
        weights = PCGrad()(gramian)
    torch.testing.assert_close(weights, torch.tensor([1.5, 3.0], dtype=torch.float64))
    assert float(weights @ gramian.double() @ weights) == 0


# Drawn orders


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 40, 65])
@pytest.mark.parametrize("name", BACKENDS)
def test_drawn_orders_are_those_of_the_reference(name: str, num_tasks: int) -> None:
    jacobian = random_jacobian(num_tasks, 0, conflict=0.98)
    gramian = jacobian @ jacobian.T
    drawing = PCGrad(seed=-(2**62) - 17)
    with backend(name):
        for counter in range(3):
            order = scaffold.draw_orders(-(2**62) - 17, counter, num_tasks)
            assert_same(drawing(gramian), PCGrad()(gramian, order=order))
    assert drawing.state_dict()["rng"].tolist() == [-(2**62) - 17, 3]


def test_drawn_orders_never_change() -> None:
    expected = [[3, 0, 2, 1], [0, 3, 2, 1], [2, 0, 1, 3], [3, 0, 1, 2]]
    assert scaffold.draw_orders(7, 2, 4).tolist() == expected


def test_drawn_orders_are_uniform() -> None:
    counts = Counter(
        (row, tuple(order))
        for counter in range(1200)
        for row, order in enumerate(scaffold.draw_orders(5, counter, 4).tolist())
    )
    for row in range(4):
        found = [counts[row, order] for order in _permutations(4)]
        assert sum(found) == 1200
        # 24 permutations, 50 each expected; 49.7 is the 99.9 % point of chi-square with 23 degrees.
        assert sum((count - 50) ** 2 / 50 for count in found) < 49.7


def test_drawn_orders_of_two_tasks_are_independent() -> None:
    # Rows 0 and 1 of one call and row 0 of the next: all eight outcomes equally often.
    outcomes: Counter[tuple[int, int, int]] = Counter()
    for counter in range(0, 3200, 2):
        first = scaffold.draw_orders(9, counter, 2)[:, 0].tolist()
        second = scaffold.draw_orders(9, counter + 1, 2)[:, 0].tolist()
        outcomes[first[0], first[1], second[0]] += 1
    # 200 each expected; 24.3 is the 99.9 % point of chi-square with 7 degrees.
    assert sum((count - 200) ** 2 / 200 for count in outcomes.values()) < 24.3
    assert len(outcomes) == 8


def _permutations(count: int) -> list[tuple[int, ...]]:
    if count == 0:
        return [()]
    return [
        (*rest[:place], count - 1, *rest[place:])
        for rest in _permutations(count - 1)
        for place in range(count)
    ]


# CAGrad


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("c", [1e-3, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", BACKENDS)
def test_cagrad_certificate(name: str, c: float, num_tasks: int) -> None:
    for kind, jacobian in jacobians(num_tasks, seed=100 + num_tasks):
        weighting = CAGrad(c)
        with backend(name):
            weights = weighting(jacobian @ jacobian.T)
        if weighting.status == "degenerate":  # duplicates and zeros may balance exactly
            torch.testing.assert_close(weights, torch.full_like(weights, 1 / num_tasks))
            continue
        assert weighting.status == "ok"
        norms = jacobian.norm(dim=1)
        mean = jacobian.mean(0)
        direction = weights @ jacobian
        radius = c * float(mean.norm())
        # Feasible: on the boundary of the ball. Optimal: the dual point's value is reached.
        error = 1e-9 * float(norms.max())
        torch.testing.assert_close(
            float((direction - mean).norm()), radius, rtol=1e-6, atol=error * c
        )
        dual = weights - 1 / num_tasks
        assert bool((dual >= -1e-15).all()), kind
        dual = dual / dual.sum()
        value = float(dual @ (jacobian @ mean)) + radius * float((dual @ jacobian).norm())
        worst = float((jacobian @ direction)[norms > 0].min())
        assert value - worst <= error * float(mean.norm()), kind
        # A task is in the support only if it is among the worst.
        support = dual > 1e-6
        heights = jacobian[support] @ direction
        torch.testing.assert_close(
            heights, torch.full_like(heights, worst), rtol=0, atol=error * float(mean.norm())
        )


@pytest.mark.parametrize("name", BACKENDS)
def test_cagrad_two_tasks_by_search(name: str) -> None:
    for seed in range(5):
        jacobian = random_jacobian(2, seed, conflict=0.9)
        mean = jacobian.mean(0)
        share = torch.linspace(0, 1, 200_001, dtype=torch.float64)
        points = share[:, None] * jacobian[0] + (1 - share)[:, None] * jacobian[1]
        best = points[(points @ mean + 0.5 * mean.norm() * points.norm(dim=1)).argmin()]
        with backend(name):
            weights = CAGrad(0.5)(jacobian @ jacobian.T)
        expected = mean + 0.5 * mean.norm() * best / best.norm()
        torch.testing.assert_close(weights @ jacobian, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        [[0.0, 0.0], [0.0, 0.0]],  # nothing
        [[1.0, 2.0], [-1.0, -2.0]],  # no mean
        [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 1.0]],  # 0 on the boundary of the hull
    ],
)
@pytest.mark.parametrize("name", BACKENDS)
def test_cagrad_degenerate_is_the_mean(name: str, rows: list[list[float]]) -> None:
    jacobian = torch.tensor(rows)
    for scale in (1e-15, 1.0, 1e15):
        weighting = CAGrad(0.5)
        with backend(name):
            weights = weighting((scale * jacobian).double() @ (scale * jacobian).double().T)
        assert weighting.status == "degenerate"
        assert_same(weights, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64))


@pytest.mark.parametrize("name", BACKENDS)
def test_cagrad_zero_gradients_leave_the_solve(name: str) -> None:
    jacobian = random_jacobian(4, 3, conflict=0.9)
    jacobian[2] = 0
    others = jacobian[[0, 1, 3]]
    with backend(name):
        weights = CAGrad(0.5)(jacobian @ jacobian.T)
    assert float(weights[2]) == 0.25
    # Optimal for the other three, in the ball around the mean of all four.
    direction = weights @ jacobian
    mean = jacobian.mean(0)
    dual = (weights - 0.25)[[0, 1, 3]]
    dual /= dual.sum()
    value = float(dual @ (others @ mean)) + 0.5 * float(mean.norm() * (dual @ others).norm())
    torch.testing.assert_close(float((others @ direction).min()), value, rtol=1e-9, atol=1e-12)


# GradNorm


@pytest.mark.parametrize("name", BACKENDS)
def test_gradnorm_step_is_the_gradient_of_the_papers_loss(name: str) -> None:
    weighting = GradNorm(alpha=0.7, lr=1e-3, optimizer="sgd")
    norms = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
    losses = torch.tensor([[2.0, 0.5, 1.0], [1.0, 0.4, 1.1]], dtype=torch.float64)
    with backend(name):
        weighting(norms.square().diag(), losses[0])
        weights = weighting(norms.square().diag(), losses[1]).requires_grad_()
        updated = weighting(norms.square().diag(), losses[1])
    rates = losses[1] / losses[0]
    target = (weights * norms).mean() * (rates / rates.mean()) ** 0.7
    loss = (weights * norms - target.detach()).abs().sum()
    (slope,) = torch.autograd.grad(loss, weights)
    expected = weights.detach() - 1e-3 * slope
    torch.testing.assert_close(updated, 3 * expected / expected.sum())


@pytest.mark.parametrize("parametrization", ["sum", "softmax"])
@pytest.mark.parametrize("name", BACKENDS)
def test_gradnorm_settles_an_imbalance_of_100(name: str, parametrization: str) -> None:
    weighting = GradNorm(parametrization=parametrization)  # type: ignore[arg-type]
    norms = torch.tensor([1.0, 100.0, 10.0], dtype=torch.float64)
    with backend(name):
        for _ in range(500):
            weights = weighting(norms.square().diag(), torch.ones(3))
            assert bool((weights > 0).all())
            torch.testing.assert_close(float(weights.sum()), 3.0)
    weighted = weights * norms
    assert float(weighted.max() / weighted.min()) < 1.2


@pytest.mark.parametrize("name", BACKENDS)
def test_gradnorm_gives_slow_tasks_more(name: str) -> None:
    weighting = GradNorm()
    with backend(name):
        weighting(torch.eye(2), torch.tensor([1.0, 1.0]))
        for _ in range(20):
            weights = weighting(torch.eye(2), torch.tensor([0.9, 0.1]))
    assert float(weights[0]) > 1.2


@pytest.mark.parametrize("name", BACKENDS)
def test_gradnorm_gives_a_negative_rate_less(name: str) -> None:
    weighting = GradNorm()
    with backend(name):
        for losses in ([1.0, 1.0], [-0.2, 1.0], [-0.2, 1.0], [-0.2, 1.0]):
            weights = weighting(torch.eye(2), torch.tensor(losses))
    assert float(weights[0]) < 1 < float(weights[1])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("parametrization", ["sum", "softmax"])
def test_gradnorm_guards(name: str, optimizer: str, parametrization: str) -> None:
    streams = {
        "zero at first": [[0.0, 1.0], [0.5, 0.9], [0.25, 0.8], [0.0, 0.7]],
        "all zero": [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 2.0]],
        "to zero": [[1.0, 1.0], [0.0, 0.0], [0.0, 0.5], [0.0, 0.0]],
        "negative": [[1.0, 1.0], [-1.0, 0.5], [-3.0, 0.5], [-3.0, -0.5]],
        "huge": [[1e-300, 1.0], [1e300, 1.0], [1e300, 1e300], [1.0, 1.0]],
    }
    for stream in streams.values():
        for scale in (1e-15, 1.0, 1e15):
            weighting = GradNorm(
                optimizer=optimizer,  # type: ignore[arg-type]
                parametrization=parametrization,  # type: ignore[arg-type]
            )
            gramian = scale**2 * torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
            for losses in stream:
                with backend(name):
                    weights = weighting(gramian, torch.tensor(losses, dtype=torch.float64))
                assert weighting.status == "ok"
                assert bool(weights.isfinite().all())
                assert bool((weights > 0).all())
                torch.testing.assert_close(float(weights.sum()), 2.0)


@pytest.mark.parametrize("name", BACKENDS)
def test_gradnorm_without_gradients_stays(name: str) -> None:
    weighting = GradNorm()
    losses = torch.tensor([1.0, 2.0])
    with backend(name):
        weighting(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), losses)
        before = weighting.state_dict()
        weights = weighting(torch.zeros(2, 2), losses)
    assert weighting.status == "degenerate"
    assert_same(weights, before["weights"])
    for key, value in weighting.state_dict().items():
        if key != "method":
            assert_same(value, before[key])


@pytest.mark.parametrize("name", BACKENDS)
def test_gradnorm_first_call_is_one_and_balance_is_kept(name: str) -> None:
    weighting = GradNorm()
    with backend(name):
        for _ in range(3):
            # Equal norms and rates: rounding must not push the weights apart, and the mean of ten
            # times 0.1 is not 0.1.
            weights = weighting(0.01 * torch.eye(10).double(), torch.linspace(0.1, 1.3, 10))
            assert_same(weights, torch.ones(10, dtype=torch.float64))
    assert math.isclose(float(weighting.state_dict()["num_updates"]), 3)
