"""The methods that look at the losses alone: what each promises, on both backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import BACKENDS, ROWS, Row, backend, random_losses
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from vectors import assert_near, assert_same, vector

from mtlfast import MultiTaskOptimizer
from mtlfast.reference import scaffold
from mtlfast.weighting import (
    COSMOS,
    DWA,
    FAMO,
    GLS,
    IMTLL,
    LBTW,
    RLW,
    SI,
    STCH,
    UW,
    Random,
    Weighting,
)

LOSS_ROWS = [row for row in ROWS if row.make(2).family == "loss"]
DEGENERATE = [[0.0, 1.0, 2.0], [-1.0, 1.0, 2.0], [1e-320, 1.0, 2.0], [0.0, 0.0, 0.0]]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


# All of them


@pytest.mark.parametrize("row", LOSS_ROWS, ids=str)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    stream=st.lists(
        st.lists(
            st.one_of(
                st.sampled_from([0.0, -0.0, 5e-324, 1e-310, 1e-300, -1e-300, 1e300, -1e300, 1.0]),
                st.floats(-1e3, 1e3),
            ),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_finite_losses_give_finite_weights(row: Row, stream: list[list[float]]) -> None:
    torch.manual_seed(0)
    weighting, other = row.make(3), row.make(3)
    weighting.prepare(torch.device("cpu"))
    other.restore(weighting.snapshot())
    for losses in [*stream, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]:  # nothing is spoilt for ever
        weights = weighting(None, vector(*losses))
        row.after(weighting)
        assert bool(weights.isfinite().all())
        with backend("reference"):
            expected = other(None, vector(*losses))
            row.after(other)
        torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-30)
        assert weighting.status == other.status
    for value in weighting.state_dict().values():
        assert isinstance(value, str) or bool(value.isfinite().all())


@pytest.mark.parametrize("row", LOSS_ROWS, ids=str)
def test_gramian_is_ignored(row: Row) -> None:
    first, second = row.make(3), row.make(3)
    for method in (first, second):
        torch.manual_seed(0)
        method.prepare(torch.device("cpu"))
    for step in range(3):
        losses = random_losses(3, step)
        expected = first(None, losses)
        nonsense = torch.full((3, 3), float("nan"))
        assert_same(second(nonsense, losses), expected)


@pytest.mark.parametrize("row", LOSS_ROWS, ids=str)
def test_common_scale_of_the_losses(row: Row) -> None:
    torch.manual_seed(0)
    plain, scaled = row.make(3), row.make(3)
    plain.prepare(torch.device("cpu"))
    scaled.restore(plain.snapshot())
    same = True
    for step in range(4):
        losses = random_losses(3, step) + 0.1
        expected, found = plain(None, losses), scaled(None, 1024.0 * losses)
        row.after(plain)
        row.after(scaled)
        same &= bool((found - expected).abs().max() < 1e-6)  # FAMO adds 1e-8 to a loss
    assert same == row.loss_scale_free


@pytest.mark.parametrize("row", LOSS_ROWS, ids=str)
def test_one_joint_backward(row: Row) -> None:
    backwards = 0

    class Shared(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            nonlocal backwards
            backwards += 1
            return grad

    shared = nn.Parameter(vector(0.5, 0.25))
    heads = [nn.Parameter(vector(1.0 + k)) for k in range(3)]
    weighting = row.make(3)
    optimizer = MultiTaskOptimizer(torch.optim.SGD([shared, *heads], lr=0.1), weighting)
    features = Shared.apply(shared)  # type: ignore[no-untyped-call]
    losses = [(features.square().sum() + k) * heads[k].sum() for k in range(3)]
    optimizer.backward(losses)
    assert optimizer.last is not None
    weights = optimizer.last.weights
    assert weights is not None
    assert backwards == 1
    factors = torch.cat(list(heads)).detach()
    assert shared.grad is not None
    assert_near(shared.grad, 2 * shared * (weights @ factors))
    for k in range(3):
        assert_near(heads[k].grad, weights[k] * (shared.detach().square().sum() + k).reshape(1))


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (SI, [[0, 1, 0.5], [0, 1, 0.5], [0, 1, 0.5], [0, 0, 0]]),
        (GLS, [[0, 2**0.5 / 2, 2**0.5 / 4]] * 3 + [[0, 0, 0]]),
        (lambda: STCH(1.0, [1.0] * 3, [1.0] * 3), [[0, 1 / 3, 1 / 3]] * 3 + [[0, 0, 0]]),
        (FAMO, [[0, 2 / 3, 1 / 3], [0, 2 / 3, 1 / 3], [1, 0, 0], [0, 0, 0]]),
        (UW, [[0.5, 0.5, 0.5]] * 4),
        (IMTLL, [[1, 1, 1]] * 4),
        (LBTW, [[1, 1, 1]] * 4),
        (COSMOS, [None, None, None, [1 / 3, 1 / 3, 1 / 3]]),
    ],
)
def test_fallbacks(make: Callable[[], Weighting], weights: list[list[float] | None]) -> None:
    for losses, expected in zip(DEGENERATE, weights, strict=True):
        if expected is None:
            continue
        weighting = make()
        found = weighting(None, vector(*losses))
        below = losses[0] == 1e-320 and isinstance(weighting, FAMO)  # positive, and next to 1e-8
        assert weighting.status == ("ok" if below else "degenerate")
        assert_near(found, vector(*expected), 1e-7)


# RLW


def test_rlw_is_a_softmax_of_normal_numbers() -> None:
    normal = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float32)
    weighting = RLW(seed=1)
    assert_near(weighting(None, torch.ones(3), normal=normal), normal.double().softmax(0))
    assert weighting.state_dict() == {"method": "rlw"}  # nothing was drawn


@pytest.mark.parametrize("num_tasks", [1, 2, 40])
def test_rlw_draws_the_numbers_of_the_reference(num_tasks: int) -> None:
    seed = -(2**62) - 17
    weighting, other = RLW(seed), Random(seed)
    for counter in range(3):
        normal = scaffold.draw_normals(seed, counter, num_tasks)
        expected = normal.softmax(0)
        assert_near(weighting(torch.eye(num_tasks)), expected)
        assert_near(other(None, torch.ones(num_tasks)), expected)
    assert weighting.state_dict()["rng"].tolist() == [seed, 3]


def test_drawn_normals_never_change() -> None:
    expected = vector(
        0.9185725584767335, 1.0709188571848152, 0.6086869395926403, -0.8022097741535709
    )
    assert_near(scaffold.draw_normals(7, 2, 4), expected, 1e-15)


def test_drawn_normals_are_normal_and_independent() -> None:
    found = torch.stack([scaffold.draw_normals(3, counter, 16) for counter in range(1000)])
    ordered = found.flatten().sort().values
    uniform = torch.special.ndtr(ordered)
    places = (torch.arange(len(ordered)) + 0.5) / len(ordered)
    # Kolmogorov and Smirnov: beyond 1.95 / sqrt(n) with a probability of 1e-3.
    assert float((uniform - places).abs().max()) < 1.95 / len(ordered) ** 0.5
    for left, right in ((found[:, :-1], found[:, 1:]), (found[:-1], found[1:])):
        for power in (1, 2):
            x, y = left.flatten() ** power, right.flatten() ** power
            correlation = torch.corrcoef(torch.stack((x, y)))[0, 1]
            assert abs(float(correlation)) < 3.3 / len(x) ** 0.5  # the same probability


def test_rlw_reads_no_losses() -> None:
    expected = RLW(5)(torch.eye(2))
    assert_same(RLW(5)(None, vector(float("nan"), 1.0)), expected)


@pytest.mark.parametrize(
    ("normal", "error", "message"),
    [
        ([0.0, 1.0], TypeError, r"normal: expected a tensor \[K\], found list"),
        (torch.zeros(3), ValueError, r"normal: expected shape \[2\], found \[3\]"),
        (torch.zeros(2, 1), ValueError, r"normal: expected shape \[2\], found \[2, 1\]"),
        (torch.zeros(2).long(), ValueError, r"normal: expected a real floating .*int64"),
    ],
)
def test_rlw_wrong_normal(normal: Any, error: type[Exception], message: str) -> None:
    weighting = RLW(seed=1)
    with pytest.raises(error, match=f"^{message}$"):
        weighting(torch.eye(2), normal=normal)
    assert weighting.state_dict() == {"method": "rlw"}


def test_rlw_nonfinite_normal() -> None:
    weighting = RLW(seed=1)
    assert bool(weighting(torch.eye(2), normal=vector(0.0, float("nan"))).isnan().all())
    assert weighting.status == "non-finite"


# DWA


def test_dwa_by_hand() -> None:
    weighting = DWA(temperature=0.5)
    epochs = [[[4.0, 1.0], [2.0, 3.0]], [[1.0, 1.0]], [[9.0, 9.0], [7.0, 7.0]]]
    found: list[Tensor] = []
    for epoch in epochs:
        found += [weighting(None, vector(*losses)) for losses in epoch]
        weighting.end_epoch()
        weighting.end_epoch()  # an epoch without a step counts as none
    # Means: (3, 2), then (1, 1): rates 1/3 and 1/2.
    expected = 2 * (vector(1 / 3, 1 / 2) / 0.5).softmax(0)
    assert_same(torch.stack(found[:3]), torch.ones(3, 2).double())
    assert_near(torch.stack(found[3:]), expected.expand(2, 2))
    # Means: (1, 1), then (8, 8).
    assert_near(weighting(None, vector(5.0, 5.0)), vector(1.0, 1.0))


def test_dwa_end_of_no_epoch() -> None:
    weighting = DWA()
    weighting.end_epoch()
    assert weighting.state_dict() == {"method": "dwa"}


def test_dwa_without_a_rate() -> None:
    for older, last in (([0.0, 1.0], [1.0, 0.5]), ([-1.0, 1.0], [1.0, 0.5])):
        weighting = DWA()
        for losses in (older, last):
            weighting(None, vector(*losses))
            assert weighting.status == "ok"
            weighting.end_epoch()
        found = weighting(None, vector(1.0, 1.0))
        assert weighting.status == "degenerate"
        assert_near(found, 2 * (vector(1.0, 0.5) / 2).softmax(0))


# LBTW


def test_lbtw_by_hand() -> None:
    weighting = LBTW(alpha=0.5)
    assert_same(weighting(None, vector(4.0, 9.0)), vector(1.0, 1.0))
    assert_near(weighting(None, vector(1.0, 9.0)), vector(0.5, 1.0))
    assert_near(weighting(None, vector(16.0, 0.0)), vector(2.0, 0.0))
    assert weighting.status == "ok"
    weighting.end_epoch()
    assert_same(weighting(None, vector(16.0, 1.0)), vector(1.0, 1.0))
    assert_near(weighting(None, vector(4.0, 2.0)), vector(0.5, 2**0.5))


def test_lbtw_takes_the_first_positive_loss() -> None:
    weighting = LBTW(alpha=1.0)
    assert_same(weighting(None, vector(0.0, 1.0)), vector(1.0, 1.0))
    assert weighting.status == "degenerate"
    assert_same(weighting(None, vector(4.0, 1.0)), vector(1.0, 1.0))
    assert weighting.status == "ok"
    assert_same(weighting(None, vector(2.0, -1.0)), vector(0.5, 0.0))
    assert weighting.status == "degenerate"


def test_ratios_do_not_see_the_scale_of_a_loss() -> None:
    scale = vector(2.0**-40, 1.0, 2.0**30)
    for make in (DWA, LBTW):
        plain, scaled = make(), make()
        for step in range(9):
            losses = random_losses(3, step)
            assert_same(scaled(None, scale * losses), plain(None, losses))
            if step % 2:
                plain.end_epoch()
                scaled.end_epoch()


# Options


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (RLW, {"seed": 1.5}, TypeError, r"seed: expected an int or None, found float"),
        (DWA, {"temperature": 0}, ValueError, r"temperature: expected .* \(0, inf\), found 0"),
        (LBTW, {"alpha": -1}, ValueError, r"alpha: expected .* \[0, inf\), found -1"),
    ],
)
def test_wrong_options(
    make: Callable[..., object], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make(**options)
