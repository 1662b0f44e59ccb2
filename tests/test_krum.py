"""Krum: against a search by hand, its ties, and its arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from cases import BACKENDS, backend, random_jacobian, random_orders
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlfast.weighting import Krum


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


def gram(jacobian: Tensor) -> Tensor:
    return jacobian @ jacobian.T


def scores(jacobian: Tensor, num_byzantine: int, power: int) -> list[float]:
    """Score of each task from the gradients themselves."""
    rows = range(len(jacobian))
    found = []
    for i in rows:
        far = sorted(float((jacobian[i] - jacobian[j]).norm()) ** power for j in rows if j != i)
        found.append(math.fsum(far[: len(jacobian) - num_byzantine - 2]))
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_tasks=st.integers(3, 12),
    byzantine=st.floats(0, 1),
    selected=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    distance=st.sampled_from(["squared", "norm"]),
)
def test_selects_the_smallest_scores(
    num_tasks: int,
    byzantine: float,
    selected: float,
    seed: int,
    distance: Literal["squared", "norm"],
) -> None:
    num_byzantine = round(byzantine * (num_tasks - 3))
    num_selected = 1 + round(selected * (num_tasks - 1))
    jacobian = random_jacobian(num_tasks, seed)
    method = Krum(num_byzantine, num_selected, distance)
    weights = method(gram(jacobian))
    assert method.status == "ok"
    assert sorted(set(weights.tolist()) - {0.0}) == [1 / num_selected]
    assert int((weights > 0).sum()) == num_selected
    found = scores(jacobian, num_byzantine, 2 if distance == "squared" else 1)
    chosen = [score for score, weight in zip(found, weights.tolist(), strict=True) if weight]
    left = [score for score, weight in zip(found, weights.tolist(), strict=True) if not weight]
    assert max(chosen) <= min(left, default=math.inf) * (1 + 1e-12)


def test_renaming_tasks_renames_weights() -> None:
    for num_tasks in (5, 8, 16):  # with fewer, the two closest gradients tie
        jacobian = random_jacobian(num_tasks, 0)
        old = random_orders(num_tasks, 1)[0]
        expected = Krum(1, 2)(gram(jacobian))
        assert Krum(1, 2)(gram(jacobian[old])).tolist() == expected[old].tolist()


def test_equal_scores_go_to_the_lowest_index() -> None:
    # Three tasks have one neighbour each, so that the two closest tie; rounding must not decide.
    for seed in range(100):
        jacobian = random_jacobian(3, seed)
        gramian = gram(jacobian)
        gramian[2, 1] += 1e-13  # a product may be rounded differently on either side
        gaps = [float((jacobian[i] - jacobian[j]).norm()) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert int(Krum()(gramian).argmax()) == (0, 0, 1)[gaps.index(min(gaps))]
    assert Krum()(torch.eye(6)).tolist() == [1, 0, 0, 0, 0, 0]
    assert Krum(num_selected=2)(torch.ones(5, 5)).tolist() == [0.5, 0.5, 0, 0, 0]


def test_ignores_the_outlier() -> None:
    crowd = torch.ones(6, 20).double() + 0.1 * random_jacobian(13, 0)[:6]
    for outlier in (-100 * crowd[:1], 1e6 * crowd[:1], torch.zeros(1, 20).double()):
        jacobian = torch.cat([crowd[:3], outlier, crowd[3:]])
        weights = Krum(num_byzantine=1, num_selected=6)(gram(jacobian))
        assert weights.tolist() == [1 / 6] * 3 + [0] + [1 / 6] * 3


def test_norm_and_square_may_disagree() -> None:
    # On a line, three neighbours each. Sums: 34, 32, 32, 58, .. for the left three and 40, 40 for
    # those at 40 and 50; of squares: 900 and more, but 600 and 600.
    positions = torch.tensor([-1.0, 0.0, 1.0, 30.0, 40.0, 50.0, 60.0])[:, None]
    assert int(Krum(2, distance="norm")(gram(positions)).argmax()) == 1
    assert int(Krum(2, distance="squared")(gram(positions)).argmax()) == 4


def test_few_tasks() -> None:
    for num_selected, num_tasks, status in (
        (1, 1, "ok"),
        (1, 2, "degenerate"),
        (2, 2, "ok"),
        (3, 3, "ok"),
    ):
        method = Krum(num_selected=num_selected)
        weights = method(gram(random_jacobian(num_tasks, 0)))
        assert weights.tolist() == [1 / num_tasks] * num_tasks
        assert method.status == status


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_byzantine": -1}, ValueError, "num_byzantine: expected at least 0, found -1"),
        ({"num_byzantine": 1.0}, TypeError, "num_byzantine: expected an int, found float"),
        ({"num_byzantine": True}, TypeError, "num_byzantine: expected an int, found bool"),
        ({"num_selected": 0}, ValueError, "num_selected: expected at least 1, found 0"),
        ({"num_selected": None}, TypeError, "num_selected: expected an int, found NoneType"),
        ({"distance": "cosine"}, ValueError, "distance: expected one of .*, found 'cosine'"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Krum(**arguments)


def test_too_few_tasks_are_an_error() -> None:
    for num_byzantine, num_tasks, most in ((1, 3, 0), (1, 1, 0), (4, 6, 3)):
        with pytest.raises(
            ValueError,
            match=f"num_byzantine: expected at most {most} for {num_tasks} tasks, "
            f"found {num_byzantine}",
        ):
            Krum(num_byzantine)(torch.eye(num_tasks))
    with pytest.raises(ValueError, match=r"num_selected: expected at most 3, .*, found 4"):
        Krum(num_selected=4)(torch.eye(3))
