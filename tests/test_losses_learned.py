"""UW and IMTL-L: learned scales, here or in an optimizer of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, random_losses
from torch import Tensor, nn
from vectors import assert_near, assert_same, vector

from mtlfast import MultiTaskOptimizer
from mtlfast.weighting import IMTLL, UW


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


# UW and IMTL-L


def uw(losses: Tensor, s: Tensor) -> Tensor:
    return ((-s).exp() * losses + s).sum() / 2


def imtll(losses: Tensor, s: Tensor) -> Tensor:
    return (s.exp() * losses - s).sum()


LEARNED = [(UW, uw, 0.5), (IMTLL, imtll, 1.0)]


@pytest.mark.parametrize(("make", "objective", "alone"), LEARNED)
def test_slopes_are_the_gradient_of_the_objective(
    make: type[UW | IMTLL], objective: Callable[[Tensor, Tensor], Tensor], alone: float
) -> None:
    weighting = make(None, initial=0.3, num_tasks=4)
    (parameter,) = weighting.parameters()
    assert parameter.dtype == torch.float64
    total = torch.zeros(4, dtype=torch.float64)
    for step in range(3):
        losses = (random_losses(4, step) * 5).requires_grad_()
        weights_expected, slopes = torch.autograd.grad(
            objective(losses, parameter), (losses, parameter)
        )
        assert_near(weighting(None, losses), weights_expected)
        total += slopes
        assert_near(parameter.grad, total)  # as backward: it adds up
    assert_same(parameter.detach(), vector(0.3, 0.3, 0.3, 0.3))


@pytest.mark.parametrize(("make", "objective", "alone"), LEARNED)
def test_adam_is_torchs_where_slopes_are_small(
    make: type[UW | IMTLL], objective: Callable[[Tensor, Tensor], Tensor], alone: float
) -> None:
    own, theirs = make(), make(None, num_tasks=3)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.025)
    for step in range(8):
        losses = 0.5 * random_losses(3, step)  # scaled losses below 1: the bound does not bind
        assert_near(own(None, losses), theirs(None, losses))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("make", "objective", "alone"), LEARNED)
def test_settles_where_every_scaled_loss_is_one(
    make: type[UW | IMTLL],
    objective: Callable[[Tensor, Tensor], Tensor],
    alone: float,
    optimizer: Any,
) -> None:
    losses = vector(1e-3, 0.1, 1.0, 10.0, 1e3)
    weighting = make(optimizer=optimizer)
    for _ in range(400):
        weights = weighting(None, losses)
    distance = (weights * losses / alone).log().abs()
    if optimizer == "adam":  # 325 steps for three decades, up or down
        assert float(distance.max()) < 0.1
    else:
        assert float(distance.max()) > 1


def test_imtll_mirrors_uw() -> None:
    left, right = UW(0.1, "sgd", initial=-0.5), IMTLL(0.05, "sgd", initial=0.5)
    for step in range(5):
        losses = random_losses(3, step)
        assert_near(2 * left(None, losses), right(None, losses))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("make", [UW, IMTLL])
def test_a_loss_that_is_not_positive_moves_nothing(make: type[UW | IMTLL], optimizer: Any) -> None:
    weighting = make(optimizer=optimizer)
    weighting(None, vector(0.5, 2.0))
    before = weighting.state_dict()
    for bad in (0.0, -1.0):
        weighting(None, vector(bad, 2.0))
        assert weighting.status == "degenerate"
        now = weighting.state_dict()
        for key in (weighting.scalars, "exp_avg", "exp_avg_sq"):
            assert_same(now[key][0], before[key][0])
        assert float(now[weighting.scalars][1]) != float(before[weighting.scalars][1])


def test_scalars_stay_within_bounds() -> None:
    weighting = UW(lr=1000.0, optimizer="sgd")
    for losses in (vector(1e300, 1e-300), vector(1e-300, 1e300), vector(1.0, 1.0)):
        assert bool(weighting(None, losses).isfinite().all())
        assert float(weighting.state_dict()["log_variances"].abs().max()) == 50


def test_parameters_survive_what_a_step_can_do() -> None:
    shared = nn.Parameter(torch.ones(2))
    weighting = UW(None, num_tasks=2)
    (parameter,) = weighting.parameters()
    inner = torch.optim.SGD([{"params": [shared]}, {"params": [parameter]}], lr=0.1)
    optimizer = MultiTaskOptimizer(inner, weighting)

    def losses() -> list[Tensor]:
        return [shared.square().sum(), (shared - 3).square().sum()]

    optimizer.backward(losses())
    assert_near(parameter.grad, (1 - vector(2.0, 8.0)) / 2)
    optimizer.step()
    assert_near(parameter.detach(), -0.1 * (1 - vector(2.0, 8.0)) / 2)
    state = weighting.state_dict()
    assert parameter.grad is not None
    grad = parameter.grad.clone()

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise ArithmeticError("broken")

    with pytest.raises(ArithmeticError, match="broken"):
        optimizer.backward([losses()[0], Broken.apply(losses()[1])])  # type: ignore[no-untyped-call]
    assert next(weighting.parameters()) is parameter
    assert_same(parameter.grad, grad)
    assert_same(weighting.state_dict()["log_variances"], state["log_variances"])

    weighting(None, vector(float("nan"), 1.0))
    assert weighting.status == "non-finite"
    assert_same(parameter.grad, grad)
    weighting.load_state_dict({"method": "uw", "log_variances": vector(1.0, 2.0)})
    assert next(weighting.parameters()) is parameter
    assert_same(parameter.detach(), vector(1.0, 2.0))
    weighting.reset()
    assert next(weighting.parameters()) is parameter
    assert_same(parameter.detach(), vector(0.0, 0.0))
    assert parameter.grad is None


def test_parameters_under_micro_batches() -> None:
    grads = []
    for parts in (1, 2):
        shared = nn.Parameter(torch.ones(2))
        weighting = IMTLL(None, num_tasks=2)
        (parameter,) = weighting.parameters()
        inner = torch.optim.SGD([shared, parameter], lr=0.1)
        optimizer = MultiTaskOptimizer(inner, weighting, nonfinite="drop")
        for _ in range(parts):
            losses = [shared.square().sum(), (shared - 3).square().sum()]
            optimizer.backward([loss / parts for loss in losses])
        assert parameter.grad is not None
        assert shared.grad is not None
        grads.append((parameter.grad.clone(), shared.grad.clone()))
    assert_near(grads[1][0], grads[0][0])
    assert_near(grads[1][1], grads[0][1], 1e-6)


def test_parameters_are_of_one_number_of_tasks() -> None:
    weighting = UW(None, num_tasks=2)
    with pytest.raises(ValueError, match=r"^num_tasks: expected losses of 2 tasks, found 3$"):
        weighting(None, torch.ones(3))
    with pytest.raises(
        ValueError, match=r"^state_dict\['log_variances'\]: expected .*\[2\], found"
    ):
        weighting.load_state_dict({"method": "uw", "log_variances": torch.ones(3).double()})
    assert list(UW(num_tasks=2).parameters()) == []


# Options


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (UW, {"lr": 0}, ValueError, r"lr: expected a number in \(0, inf\), found 0"),
        (UW, {"lr": None}, ValueError, r"num_tasks: expected .* lr=None, found None"),
        (UW, {"num_tasks": 0}, ValueError, r"num_tasks: expected an int of at least 1, found 0"),
        (UW, {"num_tasks": 2.0}, TypeError, r"num_tasks: expected an int, found float"),
        (UW, {"optimizer": "rms"}, ValueError, r"optimizer: expected .*, found 'rms'"),
        (IMTLL, {"initial": 60}, ValueError, r"initial: expected .*, found 60"),
        (IMTLL, {"initial": "0"}, TypeError, r"initial: expected a number, found str"),
    ],
)
def test_wrong_options(
    make: Callable[..., object], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make(**options)
