"""Single weightings: the constants, options, names and seeds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    BACKENDS,
    backend,
    random_jacobian,
    random_orders,
)
from torch import Tensor

from mtlfast import ops
from mtlfast.weighting import (
    REGISTRY,
    CAGrad,
    Constant,
    GradNorm,
    Mean,
    PCGrad,
    Sum,
    get,
)

NAN = float("nan")


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


def gramian_of(num_tasks: int, seed: int = 0) -> Tensor:
    jacobian = random_jacobian(num_tasks, seed)
    return jacobian @ jacobian.T


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit; the reference up to LAPACK, whose sums depend on the alignment of its memory."""
    exact = ops.describe()["backend"] == "native"
    rtol, atol = (0.0, 0.0) if exact else (1e-11, 1e-14)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True)


def test_weights_of_the_constants() -> None:
    losses = torch.rand(4)
    assert_same(Sum()(None, losses), torch.ones(4).double())
    assert_same(Mean()(None, losses), torch.full((4,), 0.25).double())
    assert_same(Constant([1, 0.5, 0, -2])(None, losses), torch.tensor([1, 0.5, 0, -2]).double())
    assert_same(Constant(torch.tensor([2.0, 3.0]))(torch.eye(2)), torch.tensor([2.0, 3]).double())
    with pytest.raises(ValueError, match=r"weights: expected .* 4 tasks, found 2"):
        Constant([1, 2])(None, losses)


def test_gradnorm_refuses_another_k() -> None:
    weighting = GradNorm()
    weighting(gramian_of(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"gramian: expected 3 tasks .*, found 4"):
        weighting(torch.eye(4), torch.ones(4))


def test_gradnorm_state_knows_its_parametrization() -> None:
    weighting = GradNorm()
    weighting(gramian_of(3), torch.ones(3))
    other = GradNorm(parametrization="softmax")
    with pytest.raises(ValueError, match=r"state_dict\['logits'\]"):
        other.load_state_dict(weighting.state_dict())


def test_seed_is_kept_by_reset() -> None:
    weighting = PCGrad(seed=-5)
    expected = [weighting(gramian_of(8, t)) for t in range(3)]
    weighting.reset()
    assert_same([weighting(gramian_of(8, t)) for t in range(3)], expected)
    again = PCGrad(seed=-5)
    assert_same([again(gramian_of(8, t)) for t in range(3)], expected)


def test_given_orders_draw_nothing() -> None:
    weighting = PCGrad(seed=1)
    weighting(gramian_of(3), order=random_orders(3, 0))
    assert weighting.state_dict() == {"method": "pcgrad"}


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (CAGrad, {"c": 1.0}, ValueError, r"c: expected a number in \[0, 1\), found 1.0"),
        (CAGrad, {"c": -0.1}, ValueError, r"c: expected .*, found -0.1"),
        (CAGrad, {"c": NAN}, ValueError, r"c: expected .*, found nan"),
        (CAGrad, {"c": "1"}, TypeError, r"c: expected a number, found str"),
        (CAGrad, {"rescale": 3}, ValueError, r"rescale: expected one of \[0, 1, 2\], found 3"),
        (CAGrad, {"rescale": True}, ValueError, r"rescale: expected .*, found True"),
        (CAGrad, {"reduction": "avg"}, ValueError, r"reduction: expected .*, found 'avg'"),
        (PCGrad, {"reduction": "avg"}, ValueError, r"reduction: expected .*, found 'avg'"),
        (PCGrad, {"include_self": 2}, ValueError, r"include_self: expected .*, found 2"),
        (PCGrad, {"seed": 1.5}, TypeError, r"seed: expected an int or None, found float"),
        (PCGrad, {"seed": 2**63}, ValueError, r"seed: expected .*, found 9223372036854775808"),
        (GradNorm, {"alpha": -1}, ValueError, r"alpha: expected .*, found -1"),
        (GradNorm, {"lr": 0}, ValueError, r"lr: expected a number in \(0, inf\), found 0"),
        (GradNorm, {"optimizer": "rms"}, ValueError, r"optimizer: expected .*, found 'rms'"),
        (
            GradNorm,
            {"parametrization": "x"},
            ValueError,
            r"parametrization: expected .*, found 'x'",
        ),
        (Constant, {"weights": []}, ValueError, r"weights: expected .*, found none"),
        (Constant, {"weights": [1, NAN]}, ValueError, r"weights\[1\]: expected .*, found nan"),
        (Constant, {"weights": "12"}, TypeError, r"weights: expected .*, found str"),
        (Constant, {"weights": 3}, TypeError, r"weights: expected .*, found int"),
        (lambda: get("pcgrd"), {}, ValueError, r"weighting: .*pcgrad.*, found 'pcgrd'"),
        (lambda name: get(name), {"name": 3}, TypeError, r"weighting: expected .*, found int"),
        (lambda c: get(Sum(), c=c), {"c": 1}, TypeError, r"options: expected none .*, found c"),
    ],
)
def test_wrong_options(
    make: Callable[..., object], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make(**options)


def test_get() -> None:
    weighting = CAGrad()
    assert get(weighting) is weighting
    assert repr(get("CAGrad", c=0.1)) == "CAGrad(c=0.1, rescale=0, reduction='mean')"
    assert repr(get("pcgrad")) == "PCGrad(reduction='sum')"


def test_names_of_classes_are_names() -> None:
    free = {
        name: method
        for name, method in REGISTRY.items()
        if all(p.default is not p.empty for p in inspect.signature(method).parameters.values())
    }
    assert len(free) > 30
    for name, method in free.items():
        for text in (name, method.__name__, name.replace("_", "-"), name.upper()):
            assert type(get(text)) is method


def test_names_are_unique() -> None:
    with pytest.raises(TypeError, match=r"name: expected .*, found 'sum'"):
        type("Other", (Sum,), {"name": "sum"})
