"""Gramians from sketches: exact norms, cosines right in the mean, and how far off."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from cases import BACKENDS, backend
from devices import no_synchronisation
from hypothesis import given, settings
from kernel_cases import ISAS, assert_same, engine, float64
from sketches import sketched
from torch import Tensor

from mtlfast import ops
from mtlfast.reference.sketch import draw_signs
from mtlfast.sketch_ops import sketched_gramian


def task_grads(num_tasks: int, num_columns: int, seed: int = 0) -> Tensor:
    """``[K, P]``: rows whose cosines are far from zero, entries of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (-2 * torch.rand(num_columns, generator=generator))
    rows = torch.randn(num_tasks, num_columns, generator=generator)
    return (rows + 0.7 * rows.roll(1, 0)) * scale


def of(rows: Tensor, num_buckets: int, seed: int) -> Tensor:
    """The Gramian of the rows' sketches."""
    pairs = [sketched([row], num_buckets=num_buckets, seed=seed) for row in rows]
    return sketched_gramian(torch.stack([s for s, _ in pairs]), torch.cat([n for _, n in pairs]))


def cosines(gramian: Tensor) -> Tensor:
    lengths = gramian.diagonal().sqrt()
    return gramian / lengths / lengths[:, None]


# ---- the signs -----------------------------------------------------------------------------------


def test_signs_are_balanced_and_independent() -> None:
    """Of neighbours, of elements of one bucket, and under neighbouring seeds: as fair coins."""
    count = 1 << 20
    numbers = torch.arange(count)
    signs = draw_signs(0, numbers).double()
    error = 5 / math.sqrt(count)  # five standard deviations
    assert abs(float(signs.mean())) < error
    for distance in (1, 2, 31, 32, 63, 64, 128, 1024, 2048, 4096, 65536, 3 * 65536, 1 << 30):
        others = draw_signs(0, numbers + distance).double()
        assert abs(float((signs * others).mean())) < error, distance
    for seed in (1, 2, 3, -1, 64, 1 << 20, 1 << 40, -(2**63)):
        assert abs(float((signs * draw_signs(seed, numbers).double()).mean())) < error, seed
    groups = signs.view(-1, 64)  # every bit of a hash, and each pair of them
    products = groups.T @ groups / len(groups)
    assert float((products - torch.eye(64)).abs().max()) < 6 / math.sqrt(len(groups))
    assert float(groups.mean(0).abs().max()) < 5 / math.sqrt(len(groups))
    # The turns of 64 buckets around a small sketch, in pairs.
    turns = signs.view(-1, 1024)[:, :64]
    products = turns @ turns.T / 64
    spread = (
        float((products - torch.eye(len(turns))).square().sum()) / len(turns) / (len(turns) - 1)
    )
    assert abs(spread * 64 - 1) < 0.02


# ---- the error -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_buckets", [1024, 4096])
def test_inner_products_are_right_in_the_mean(num_buckets: int) -> None:
    """Unbiased; the variance is ``(|a|² |b|² + (a·b)²) / S``, less what one element adds alone."""
    rows = task_grads(2, 30_000)
    exact = float(rows[0].double() @ rows[1].double())
    squares = rows.double().square()
    variance = float(squares[0].sum() * squares[1].sum()) + exact**2
    found = []
    for seed in range(200):
        first, second = (sketched([row], num_buckets=num_buckets, seed=seed)[0] for row in rows)
        found.append(float(first.double() @ second.double()) - exact)
    errors = torch.tensor(found, dtype=torch.float64)
    deviation = math.sqrt(variance / num_buckets)
    assert abs(float(errors.mean())) < 4 * deviation / math.sqrt(len(errors))
    assert 0.85 < float(errors.std()) / deviation < 1.15


def test_cosines_are_off_by_one_over_the_root_of_the_buckets() -> None:
    rows = task_grads(4, 200_000)
    exact = cosines(ops.gramian([[row] for row in rows]))
    upper = torch.ones(4, 4).triu(1).bool()
    assert float(exact[upper].abs().max()) > 0.3
    for num_buckets in (1024, 16384, 65536):
        errors = torch.stack(
            [(cosines(of(rows, num_buckets, seed)) - exact)[upper] for seed in range(12)]
        )
        root = float(errors.square().mean().sqrt()) * math.sqrt(num_buckets)
        # A cosine c is off by (1 - c²) / sqrt(S).
        wanted = float((1 - exact[upper] ** 2).square().mean().sqrt())
        assert 0.7 * wanted < root < 1.3 * wanted
        assert float(errors.abs().max()) < 4.5 / math.sqrt(num_buckets)


# ---- the Gramian ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
def test_norms_are_exact(name: str) -> None:
    rows = task_grads(5, 3000) * torch.tensor([1.0, 1e-15, 1e12, 3.0, 1e-3])[:, None]
    with backend(name):
        found = of(rows, 1024, 3)
        exact = ops.gramian([[row] for row in rows])
    torch.testing.assert_close(found.diagonal(), exact.diagonal(), rtol=1e-14, atol=0)
    assert_same(found, found.T)
    unit = cosines(found)
    assert float(torch.linalg.eigvalsh(unit).min()) > -1e-12
    assert float((unit - cosines(exact)).abs().max()) < 5 / math.sqrt(1024)


@pytest.mark.parametrize("name", BACKENDS)
def test_by_hand(name: str) -> None:
    sketches = torch.zeros(3, 1024)
    sketches[0, :2] = torch.tensor([3.0, 4.0])
    sketches[1, 1] = 2.0
    with backend(name):
        found = sketched_gramian(sketches, float64(100, 9, 16))
    # cos = 8 / (5 · 2); a sketch of zeros has no direction.
    expected = torch.tensor([[100.0, 24, 0], [24, 9, 0], [0, 0, 16]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_of_zeros_and_rows_that_are_not_finite(name: str) -> None:
    rows = task_grads(5, 3000)
    rows[1] = 0
    rows[2, 5] = torch.nan
    rows[4, 7] = torch.inf
    with backend(name):
        found = of(rows, 1024, 0)
    assert_same(found[1, [0, 1, 3]], torch.zeros(3, dtype=torch.float64))
    for k in (2, 4):
        assert bool(found[k].isnan().all())
        assert bool(found[:, k].isnan().all())
    assert bool(found[[0, 3]][:, [0, 3]].isfinite().all())


@settings(max_examples=40, deadline=None)
@given(
    num_tasks=st.integers(1, 12),
    rank=st.integers(1, 12),
    exponent=st.integers(-15, 15),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_positive_semidefinite(num_tasks: int, rank: int, exponent: int, seed: int) -> None:
    """Also where tasks are multiples of each other, and where K > P."""
    generator = torch.Generator().manual_seed(seed % 1000)
    mix = torch.randn(num_tasks, rank, generator=generator)
    rows = mix @ torch.randn(rank, 300, generator=generator) * 10.0**exponent
    found = of(rows, 1024, seed)
    assert bool(found.isfinite().all())
    unit = cosines(found)
    assert float(torch.linalg.eigvalsh(unit).min()) > -1e-6  # chunks are float32 where K is large
    assert float(unit.abs().max()) < 1 + 1e-6


@pytest.mark.skipif(not ISAS, reason="needs the native extension")
def test_the_host_does_not_wait() -> None:
    sketches, norms = torch.randn(3, 1024), torch.ones(3, dtype=torch.float64)
    with engine(ISAS[0]), no_synchronisation(torch.device("cpu")):
        sketched_gramian(sketches, norms)


@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_arguments(name: str) -> None:
    sketches, norms = torch.ones(3, 1024), float64(1, 2, 3)
    wrong: list[tuple[type[Exception], str, object, object]] = [
        (TypeError, r"sketches: expected a tensor \[K, S\], found list", [sketches], norms),
        (ValueError, r"sketches: expected \[K, S\] .*found \[1024\]", sketches[0], norms),
        (ValueError, r"sketches: expected .*float32, found .*float64", sketches.double(), norms),
        (TypeError, r"norms: expected a tensor \[K\], found float", sketches, 1.0),
        (ValueError, r"norms: expected \[K\] .*found \[3, 1\]", sketches, norms[:, None]),
        (ValueError, r"norms: expected .*float64, found .*float32", sketches, norms.float()),
        (ValueError, r"norms: expected \[3\] on cpu, .*found \[2\]", sketches, norms[:2]),
        (ValueError, r"norms: expected \[3\] on cpu, .*on meta", sketches, norms.to("meta")),
        (ValueError, "task_grads: expected at least one task", sketches[:0], norms[:0]),
    ]
    with backend(name):
        for error, match, first, second in wrong:
            with pytest.raises(error, match="^" + match):
                sketched_gramian(first, second)  # type: ignore[arg-type]
