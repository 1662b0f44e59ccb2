"""The methods that descend a function of the losses: GLS, SI, STCH, COSMOS, PBI, and any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vectors import assert_near, assert_same, vector

from mtlfast.weighting import COSMOS, FAMO, GLS, PBI, SI, STCH, Scalarization, Weighting


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 40])
@pytest.mark.parametrize("spread", [0.5, 12.0])
def test_weights_are_gradients(num_tasks: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(num_tasks)
    noise = torch.randn(num_tasks, generator=generator, dtype=torch.float64)
    losses = (spread * noise.clamp(-2, 2)).exp()  # up to 21 decades apart
    wanted = torch.rand(num_tasks, generator=generator, dtype=torch.float64) + 0.1
    nadir, ideal = wanted.flip(0), 0.1 * wanted
    r, k = wanted, num_tasks
    scale = float(losses.max())

    def distance(x: Tensor) -> Tensor:
        unit, f = r / r.square().sum().sqrt(), x - ideal
        along = f @ unit
        return along + 3 * (f - along * unit).square().sum().sqrt()

    functions: list[tuple[Weighting, Callable[[Tensor], Tensor]]] = [
        (SI(), lambda x: x.log().sum()),
        (GLS(), lambda x: x.log().mean().exp()),
        (STCH(scale), lambda x: scale * (x / (k * scale)).logsumexp(0)),
        (STCH(0.3, preference=wanted), lambda x: 0.3 * (r * x / 0.3).logsumexp(0)),
        (STCH(2, None, wanted, ideal), lambda x: 2 * (r * (x - ideal) / 2).logsumexp(0)),
        (STCH(0.7, nadir), lambda x: 0.7 * ((x / nadir).log() / (0.7 * k)).logsumexp(0)),
        (STCH(3, nadir, wanted), lambda x: 3 * (r * (x / nadir).log() / 3).logsumexp(0)),
        (COSMOS(2.0, wanted), lambda x: r @ x - 2 * (r @ x) / (r.norm() * x.norm())),
        (COSMOS(1e3), lambda x: x.mean() - 1e3 * x.sum() / (k**0.5 * x.norm())),
        (PBI(2.0), lambda x: x.sum() / k**0.5 + 2 * (x - x.mean()).norm()),
        (PBI(3.0, wanted, ideal), distance),
    ]
    for weighting, function in functions:
        if num_tasks == 1 and isinstance(weighting, PBI):
            continue  # on the ray
        expected = Scalarization(function)(None, losses)
        assert_near(weighting(None, losses), expected, 1e-10)
        assert weighting.status == "ok"


def test_gls_where_a_product_would_leave_its_range() -> None:
    for scale in (1e-200, 1e200):
        losses = scale * torch.linspace(1, 2, 40, dtype=torch.float64)
        expected = (losses / scale).log().mean().exp() / (40 * losses / scale)
        assert_near(GLS()(None, losses), expected)
    # The largest weight is out of the range of float64.
    found = GLS()(None, vector(1e300, 1e300, 1e-300))
    assert bool(found.isfinite().all())
    assert float(found[2]) > 1e307


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    exponents=st.lists(st.floats(-100, 100), min_size=1, max_size=8),
    shift=st.floats(-90, 90),
)
def test_gls_and_si_share_the_step_equally(exponents: list[float], shift: float) -> None:
    losses = 10.0 ** vector(*exponents)
    for weighting in (GLS(), SI()):
        shares = weighting(None, losses) * losses
        torch.testing.assert_close(shares, shares[0].expand_as(shares), rtol=1e-12, atol=0)
    scaled = losses * 10.0**shift
    assert_near(GLS()(None, scaled), GLS()(None, losses), 1e-10)
    assert_near(SI()(None, scaled) * 10.0**shift, SI()(None, losses), 1e-12)


def test_stch_of_the_official_code() -> None:
    losses, nadir = vector(0.5, 2.0, 1.0), vector(1.0, 3.0, 0.5)
    expected = 3 * ((losses / nadir).log() / 0.2).softmax(0) / losses  # lambda = 1, times K
    found = STCH(mu=3 * 0.2, nadir=nadir, preference=[3, 3, 3])(None, losses)
    assert_near(found, expected)


def test_stch_nears_the_maximum() -> None:
    losses = vector(0.5, 2.0, 1.0)
    assert_near(STCH(1e-3)(None, losses), vector(0.0, 1 / 3, 0.0), 1e-12)
    assert_near(STCH(1e-300)(None, losses), vector(0.0, 1 / 3, 0.0), 1e-12)
    assert_near(STCH(1e6)(None, losses), vector(1 / 9, 1 / 9, 1 / 9), 1e-5)


# COSMOS and PBI


def test_cosmos_at_the_preferred_ratio() -> None:
    preference = vector(0.2, 0.3, 0.5)
    for scale in (1e-150, 3.3, 1e150):
        for penalty in (0.0, 1.0, 1e6):
            weighting = COSMOS(penalty, preference)
            assert_same(weighting(None, scale * preference), preference)
            assert weighting.status == "ok"


def test_cosmos_pulls_towards_the_ratio() -> None:
    losses = vector(1.0, 3.0)
    without, pulled = COSMOS(0.0)(None, losses), COSMOS(0.5)(None, losses)
    assert float(pulled[0]) < float(without[0])
    assert float(pulled[1]) > float(without[1])
    # No move along the losses themselves: the cosine does not see their length.
    assert_near(pulled @ losses, without @ losses)


def test_pbi_on_the_ray() -> None:
    preference, reference = vector(0.2, 0.3, 0.5), vector(1.0, 2.0, 3.0)
    along = preference / preference.norm()
    for scale in (1e-150, 3.3, 1e150, 0.0):
        weighting = PBI(5.0, preference)
        assert_near(weighting(None, scale * preference), along, 1e-15)
        assert weighting.status == "ok"
    assert_near(PBI(5.0, preference, reference)(None, reference), along, 1e-15)


def test_pbi_beside_the_ray() -> None:
    # One rounding away from the ray nothing is known; a thousand away the side is.
    losses = vector(1.0, 1.0)
    assert_near(PBI(5.0)(None, losses * vector(1.0, 1 + 3e-16)), vector(1.0, 1.0) / 2**0.5, 1e-15)
    sideways = vector(-5.0, 5.0) / 2**0.5
    found = PBI(5.0)(None, losses * vector(1.0, 1 + 1e-12))
    assert_near(found, vector(1.0, 1.0) / 2**0.5 + sideways, 1e-3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    losses=st.lists(st.floats(0.01, 100), min_size=2, max_size=6), exponent=st.integers(-400, 400)
)
def test_pbi_does_not_see_the_common_scale(losses: list[float], exponent: int) -> None:
    plain = vector(*losses)
    preference = torch.arange(1.0, 1.0 + len(losses))
    expected = PBI(2.0, preference)(None, plain)
    assert_same(PBI(2.0, preference)(None, plain * 2.0**exponent), expected)
    # u and the unit vector away from the ray are orthogonal.
    assert_near(expected.square().sum(), vector(1.0 + 2.0**2)[0], 1e-9)


# Scalarization


def test_scalarization_is_the_derivative() -> None:
    losses = torch.tensor([1.0, 3.0], requires_grad=True)
    seen = []

    def product(values: Tensor) -> Tensor:
        seen.append((values.dtype, values.requires_grad))
        return values.prod()[None]

    weighting = Scalarization(product)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            assert_same(weighting(None, losses), vector(3.0, 1.0))
    assert weighting.status == "ok"
    assert seen == [(torch.float64, True)] * 2
    assert losses.grad is None


def test_scalarization_leaves_a_module_alone() -> None:
    module = torch.nn.Linear(2, 1, bias=False).double()
    weighting = Scalarization(lambda losses: module(losses)[0])
    snapshot = weighting.snapshot()
    assert_same(weighting(None, vector(1.0, 2.0)), module.weight.detach()[0])
    weighting.restore(snapshot)
    assert module.weight.grad is None
    assert weighting.status == "ok"


def test_scalarization_nonfinite() -> None:
    weighting = Scalarization(lambda losses: losses.log().sum())
    for losses in (vector(0.0, 1.0), vector(float("nan"), 1.0), vector(float("inf"), 1.0)):
        assert bool(weighting(None, losses).isnan().all())
        assert weighting.status == "non-finite"
    assert_same(weighting(None, vector(2.0, 1.0)), vector(0.5, 1.0))
    assert weighting.status == "ok"


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda losses: 1.0, TypeError, r"fn: expected to return a scalar tensor, found float"),
        (lambda losses: losses, ValueError, r"fn: expected to return a scalar, .* \[3\]"),
        (lambda losses: losses.detach().sum(), ValueError, r"fn: expected .* differentiably .*"),
        (lambda losses: (losses > 1).sum(), ValueError, r"fn: expected .* differentiably .*"),
        (
            lambda losses: torch.ones((), requires_grad=True) * 2,
            ValueError,
            r"fn: expected .* differentiably .*",
        ),
    ],
)
def test_scalarization_wrong_results(fn: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        Scalarization(fn)(None, torch.ones(3))


# Options


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (STCH, {"mu": 0}, ValueError, r"mu: expected .*, found 0"),
        (STCH, {"nadir": [1, 0]}, ValueError, r"nadir\[1\]: expected .*, found 0"),
        (STCH, {"nadir": 1.0}, TypeError, r"nadir: expected K numbers, found float"),
        (STCH, {"preference": [0, 0]}, ValueError, r"preference: expected .*, found \[0.0, 0.0\]"),
        (STCH, {"reference": []}, ValueError, r"reference: expected .*, found none"),
        (
            STCH,
            {"nadir": [1.0], "reference": [0.0]},
            ValueError,
            r"reference: expected None beside a nadir, found \[0.0\]",
        ),
        (COSMOS, {"penalty": -1}, ValueError, r"penalty: expected .*, found -1"),
        (COSMOS, {"preference": [1, -1]}, ValueError, r"preference\[1\]: expected .*, found -1"),
        (PBI, {"theta": float("inf")}, ValueError, r"theta: expected .*, found inf"),
        (PBI, {"preference": "12"}, TypeError, r"preference: expected K numbers, found str"),
        (PBI, {"reference": [float("nan")]}, ValueError, r"reference\[0\]: expected .*found nan"),
        (Scalarization, {"fn": 3}, TypeError, r"fn: expected a function of .*, found int"),
    ],
)
def test_wrong_options(
    make: Callable[..., object], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make(**options)


@pytest.mark.parametrize(
    ("weighting", "key"),
    [
        (STCH(1.0, nadir=[1.0, 1.0]), "nadir"),
        (STCH(1.0, preference=[1.0, 1.0]), "preference"),
        (STCH(1.0, reference=[1.0, 1.0]), "reference"),
        (COSMOS(1.0, [1.0, 1.0]), "preference"),
        (PBI(1.0, [1.0, 1.0]), "preference"),
        (PBI(1.0, None, [1.0, 1.0]), "reference"),
        (FAMO(min_losses=[0.0, 0.1]), "min_losses"),
    ],
)
def test_options_of_another_length(weighting: Weighting, key: str) -> None:
    expected = f"^{key}: expected one number for each of the 3 tasks, found 2$"
    with pytest.raises(ValueError, match=expected):
        weighting(None, torch.ones(3))
    assert weighting.state_dict() == {"method": weighting.name}


def test_preference_may_be_drawn_anew() -> None:
    weighting = COSMOS(0.5, [1.0, 1.0])
    losses = vector(1.0, 3.0)
    for preference in (vector(0.25, 0.75), [0.5, 0.5], (1, 0)):
        weighting.preference = preference  # type: ignore[assignment]
        assert_same(
            weighting(None, losses), COSMOS(0.5, [float(r) for r in preference])(None, losses)
        )
