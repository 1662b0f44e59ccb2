"""IMTL: the scales of the losses, the weights that go with them, and its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, oracle, random_jacobian, random_losses
from torch import Tensor

from mtlfast import MultiTaskOptimizer
from mtlfast.weighting import IMTL, IMTLG


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


def assert_close(found: Tensor, expected: Any, error: float = 1e-9) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=error, atol=error)


def gram(jacobian: Tensor) -> Tensor:
    return jacobian @ jacobian.T


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_imtl_scales_are_those_of_imtl_l(num_tasks: int) -> None:
    data = oracle()
    losses = torch.from_numpy(data[f"K{num_tasks}/losses"])
    expected = torch.from_numpy(data[f"K{num_tasks}/imtll_w_sgd0.01"])  # [12, K]
    jacobian = random_jacobian(num_tasks, 0)
    impartial = IMTLG()(gram(jacobian))
    method = IMTL(lr=0.01)
    for step, scales in enumerate(expected):
        weights = method(gram(jacobian), losses[step])
        own = method.own_weights(weights, losses[step])
        assert_close(own, scales, 1e-12)
        # The weights of IMTL-G for the scaled gradients sum to 1; the direction is IMTL-G's.
        assert_close((weights / scales).sum(), 1.0, 1e-12)
        assert_close(weights / weights[0], impartial / impartial[0], 1e-9)
    assert_close(IMTLG()(gram(expected[-1][:, None] * jacobian)) * expected[-1], weights)


def test_imtl_brings_losses_to_one() -> None:
    method = IMTL(lr=0.1)
    losses = torch.tensor([100.0, 1.0, 0.01])
    for _ in range(200):
        weights = method(torch.eye(3), losses)
    assert_close(method.own_weights(weights, losses), [0.01, 1.0, 100.0], 1e-4)


def test_imtl_moves_within_bounds() -> None:
    method = IMTL(lr=2.0)
    for losses in ([1e30, 1e-30], [1e308, 1e-308]):
        weights = method(torch.eye(2), torch.tensor(losses, dtype=torch.float64))
        assert bool(weights.isfinite().all())
    assert method.state_dict()["log_scales"].tolist() == [-2.0, 2.0]
    for _ in range(100):
        weights = method(torch.eye(2), torch.tensor([1e308, 1e-308], dtype=torch.float64))
        assert bool(weights.isfinite().all())
    assert method.state_dict()["log_scales"].tolist() == [-50.0, 50.0]


def test_imtl_leaves_the_scale_of_a_loss_that_is_not_positive() -> None:
    method = IMTL(lr=0.5)
    method(torch.eye(3), torch.tensor([2.0, 2.0, 2.0]))
    assert method.status == "ok"
    method(torch.eye(3), torch.tensor([0.5, 0.0, -1.0]))
    assert method.status == "degenerate"
    first, second, third = method.state_dict()["log_scales"].tolist()
    assert first != second == third == -0.5


def test_imtl_in_an_optimizer() -> None:
    shared = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    heads = [torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64)) for _ in range(2)]
    inner = torch.optim.SGD([shared, *heads], lr=0.0)
    method = IMTL(lr=0.2)
    optimizer = MultiTaskOptimizer(inner, method)
    for _ in range(3):
        scales = method.state_dict().get("log_scales", torch.zeros(2, dtype=torch.float64)).exp()
        optimizer.zero_grad()
        optimizer.backward(
            [shared.square().sum() * heads[0], (shared[0] * 5 - shared[1]).square() * heads[1]]
        )
        own = [head.grad for head in heads]
        assert_close(torch.stack([g for g in own if g is not None]), scales * torch.tensor([5, 9]))
        assert optimizer.last is not None
        assert_close((optimizer.last.weights / scales).sum(), 1.0)


def test_imtl_knows_its_tasks() -> None:
    method = IMTL()
    method(torch.eye(3), random_losses(3, 0))
    with pytest.raises(ValueError, match=r"gramian: expected 3 tasks .*, found 2"):
        method(torch.eye(2), random_losses(2, 0))
    method.reset()
    weights = method(torch.eye(2), random_losses(2, 0))
    method.reset()
    assert_close(method.own_weights(weights, random_losses(2, 0)), [1.0, 1.0], 0)


@pytest.mark.parametrize(
    ("lr", "message"),
    [(0, "expected a number in .*, found 0"), ("fast", "expected a number, .*str")],
)
def test_wrong_arguments_are_named(lr: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^lr: {message}"):
        IMTL(lr)
