"""GradDrop and TrimmedMean: certified answers, what they promise, and their use in a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from cases import BACKENDS, backend, oracle
from hypothesis import given, settings
from kernel_cases import DTYPES, ENGINES, assert_same, engine, float64
from test_oracle import CONDITIONS
from torch import Tensor, nn

import mtlfast
from mtlfast import MultiTaskOptimizer, aggregate, column_ops
from mtlfast.reference.columns import draw_uniform
from mtlfast.weighting import GradDrop, TrimmedMean, get

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", BACKENDS)
def test_certified_directions(name: str, dtype: torch.dtype, condition: str) -> None:
    data = oracle()
    found: dict[str, float] = {}
    for key in data["keys"].tolist():
        if f"_{condition}_" not in key:
            continue
        jacobian = torch.from_numpy(data[f"{key}/J"]).to(dtype)
        uniform = torch.from_numpy(data[f"{key}/uniform"])
        with backend(name):
            answers = {"graddrop_d": aggregate(jacobian, GradDrop(), uniform=uniform)}
            if len(jacobian) > 2:
                answers["trimmedmean1_d"] = aggregate(jacobian, TrimmedMean(1))
        for answer, direction in answers.items():
            expected = torch.from_numpy(data[f"{key}/{answer}"])
            longest = float(jacobian.double().norm(dim=1).max())
            size = max(float(expected.norm()), 1e-6 * longest, 1e-300)
            found[f"{key}/{answer}"] = float((direction.double() - expected).norm()) / size
    allowed = 1e-15 if dtype == torch.float64 else 1e-7  # the answer's own rounding
    assert len(found) == 36
    assert {key: error for key, error in found.items() if not error <= allowed} == {}


# Random numbers


def test_drawn_numbers_are_uniform() -> None:
    """Also along columns, across the blocks that share keys, and from call to call."""
    count = 2_300_000
    columns = torch.arange(count)
    first, second = draw_uniform(5, 7, columns), draw_uniform(5, 8, columns)
    other = draw_uniform(6, 7, columns)
    for values in (first, second, other):
        assert float(values.min()) > 0
        assert float(values.max()) < 1
        bins = torch.histc(values, 1000, 0, 1)
        assert 0.85 < float((bins - count / 1000).square().sum() / count * 1000 / 999) < 1.15
    pairs = [(first, second), (first, other)]
    pairs += [(first[lag:], first[:-lag]) for lag in (1, 2, 8, 16, 64, 4096, 1 << 20)]
    for a, b in pairs:
        cells = (a * 50).long() * 50 + (b * 50).long()
        filled = torch.bincount(cells, minlength=2500).double()
        mean = len(a) / 2500
        assert 0.88 < float((filled - mean).square().sum() / mean / 2499) < 1.12


@pytest.mark.parametrize("name", BACKENDS)
def test_share_of_positive_entries_decides(name: str) -> None:
    count = 100_000
    with backend(name):
        for share in (0.1, 0.5, 0.75):
            jacobian = torch.tensor([[share], [share - 1]]).expand(2, count)
            kept = aggregate(jacobian, GradDrop(seed=1))
            assert abs(float((kept > 0).double().mean()) - share) < 4 * (0.25 / count) ** 0.5


@pytest.mark.parametrize("name", BACKENDS)
def test_every_call_draws_anew(name: str) -> None:
    jacobian = torch.tensor([[1.0], [-1.0]]).expand(2, 300)
    with backend(name):
        method = GradDrop(seed=4)
        answers = [aggregate(jacobian, method) for _ in range(3)]
        assert_same(method.state_dict()["rng"], torch.tensor([4, 3]))
        method.reset()
        assert_same([aggregate(jacobian, method) for _ in range(3)], answers)
        assert_same(aggregate(jacobian, GradDrop(seed=4)), answers[0])
        uniform = torch.rand(300)
        aggregate(jacobian, method, uniform=uniform)
        assert_same(method.state_dict()["rng"], torch.tensor([4, 3]))
    assert 0.3 < float((answers[0] == answers[1]).double().mean()) < 0.7
    assert 0.3 < float((answers[1] == answers[2]).double().mean()) < 0.7


# What the answers are made of


@given(
    num_tasks=st.integers(1, 9),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    leak=st.sampled_from([0.0, 0.25, 0.7, 1.0]),
    name=st.sampled_from(BACKENDS),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_one_side_of_every_column_is_kept(
    num_tasks: int, width: int, seed: int, leak: float, name: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(num_tasks, width, generator=generator, dtype=torch.float64)
    jacobian[:, 0] = 0
    with backend(name):
        answer = aggregate(jacobian, GradDrop(leak, seed=seed))
    positive, negative = jacobian.clamp(min=0).sum(0), jacobian.clamp(max=0).sum(0)
    up, down = positive + leak * negative, negative + leak * positive
    errors = torch.minimum((answer - up).abs(), (answer - down).abs())
    assert float(errors.max()) < 1e-13
    assert answer[0] == 0


@pytest.mark.parametrize("name", ENGINES)
def test_leaks_by_task(name: str) -> None:
    jacobian = torch.tensor([[4.0, 4, 0], [-2, -2, -8], [1, 1, 1]])
    with engine(name):
        uniform = float64(0, 0.99, 0.5)
        answer = aggregate(jacobian, GradDrop([0.5, 0.25, 0]), uniform=uniform)
        # Column 0 keeps the positive side and a quarter of -2, the others the negative one.
        assert_same(answer, torch.tensor([4.5, 0.0, -8.0]))
        assert_same(aggregate(jacobian, GradDrop(1)), jacobian.sum(0))
        with pytest.raises(ValueError, match=r"^leak: expected 3 numbers, .*, found 2$"):
            aggregate(jacobian, GradDrop([0.5, 0.5]))


@pytest.mark.parametrize("name", ENGINES)
def test_a_tie_keeps_the_negative_side(name: str) -> None:
    jacobian = torch.tensor([[3.0, 2.0, -1.0, 1.0], [-1.0, -2.0, -2.0, 2.0]])
    with engine(name):
        answer = aggregate(jacobian, GradDrop(), uniform=torch.tensor([0.75, 0.5, 0.0, 0.0]))
    assert_same(answer, torch.tensor([-1.0, -2.0, -3.0, 3.0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_graddrop_shows_what_is_not_finite(name: str, dtype: torch.dtype) -> None:
    for num_tasks in (1, 3, 4, 5, 9):
        for bad in (INF, -INF, NAN, -NAN):
            for task in range(num_tasks):
                jacobian = torch.ones(num_tasks, 1100, dtype=dtype)
                jacobian[task, ::300] = bad
                for leak in (0, 0.5, 1):
                    with engine(name):
                        answer = aggregate(jacobian, GradDrop(leak))
                    assert bool(answer[::300].isnan().all())
                    assert int(answer.isfinite().sum()) == 1096


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_trimmed_mean_of_what_is_not_finite(name: str, dtype: torch.dtype) -> None:
    """NaN comes through wherever it stands; Inf is a number larger than any."""
    for num_tasks in (3, 4, 5, 7, 9):
        largest = (num_tasks - 1) // 2
        for trim in range(largest + 1):
            for task in range(num_tasks):
                jacobian = torch.arange(1.0, num_tasks + 1)[:, None].repeat(1, 1100).to(dtype)
                jacobian[task, ::300] = NAN
                with engine(name):
                    answer = aggregate(jacobian, TrimmedMean(trim))
                assert bool(answer[::300].isnan().all())
                assert int(answer.isfinite().sum()) == 1096
                for bad in (INF, -INF):
                    jacobian[task, ::300] = bad
                    with engine(name):
                        answer = aggregate(jacobian, TrimmedMean(trim))
                    kept = jacobian[:, 0].double().sort().values[trim : num_tasks - trim]
                    assert_same(answer[::300], kept.mean().to(dtype).expand(4))


@given(
    values=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=11),
    data=st.data(),
    name=st.sampled_from(ENGINES),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_trimmed_mean_is_the_mean_of_the_middle(
    values: list[float], data: st.DataObject, name: str
) -> None:
    """Without adding what is trimmed: a huge entry costs no digit of the small ones."""
    trim = data.draw(st.integers(0, (len(values) - 1) // 2))
    with engine(name):
        found = aggregate(float64(*values)[:, None], TrimmedMean(trim))
    kept = sorted(values)[trim : len(values) - trim]
    size = max(abs(value) for value in kept)
    assert abs(float(found) - float(float64(*kept).mean())) <= 1e-15 * len(kept) * size


@pytest.mark.parametrize("name", ENGINES)
def test_unreached_tensors_count_as_zeros(name: str) -> None:
    rows: list[list[Tensor | None]] = [
        [torch.full((70,), 3.0), None],
        [None, None],
        [torch.full((70,), 5.0), torch.full((3,), -1.0)],
    ]
    with engine(name):
        assert_same(column_ops.trimmed_mean(rows, 1), [torch.full((70,), 3.0), torch.zeros(3)])
        assert_same(column_ops.trimmed_mean(rows, 0)[1], torch.full((3,), -1 / 3))
        found = column_ops.graddrop(rows, rng=torch.tensor([0, 0]))
        assert_same(found, [torch.full((70,), 8.0), torch.full((3,), -1.0)])


# Arguments


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (GradDrop, {"leak": 1.5}, ValueError, r"leak: expected a number in \[0, 1\], found 1.5"),
        (GradDrop, {"leak": -0.1}, ValueError, r"leak: expected .*, found -0.1"),
        (GradDrop, {"leak": NAN}, ValueError, r"leak: expected .*, found nan"),
        (GradDrop, {"leak": "1"}, TypeError, r"leak: expected a number, found str"),
        (GradDrop, {"leak": [0.5, 2]}, ValueError, r"leak\[1\]: expected .*, found 2.0"),
        (GradDrop, {"leak": []}, ValueError, r"leak: expected .*, found none"),
        (GradDrop, {"seed": 0.5}, TypeError, r"seed: expected an int or None, found float"),
        (TrimmedMean, {"trim_number": -1}, ValueError, r"trim_number: expected .*, found -1"),
        (TrimmedMean, {"trim_number": 1.0}, TypeError, r"trim_number: .* int, found float"),
        (TrimmedMean, {"trim_number": True}, TypeError, r"trim_number: .* int, found bool"),
    ],
)
def test_wrong_options(
    make: Callable[..., object], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make(**options)


@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_calls(name: str) -> None:
    jacobian = torch.ones(2, 3)
    method = GradDrop(seed=1)
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "uniform: expected numbers in .*, found 1.0", {"uniform": torch.ones(3)}),
        (
            ValueError,
            "uniform: expected numbers in .*, found -0.5",
            {"uniform": float64(0, -0.5, 0)},
        ),
        (ValueError, "uniform: expected numbers in .*, found nan", {"uniform": float64(0, NAN, 0)}),
        (ValueError, "uniform: expected .*3.*found .*2", {"uniform": torch.zeros(2)}),
        (TypeError, "order: GradDrop expected only .*uniform", {"order": torch.zeros(2)}),
    ]
    with backend(name):
        aggregate(jacobian, method)
        before = method.state_dict()
        for error, message, inputs in wrong:
            with pytest.raises(error, match=f"^{message}"):
                aggregate(jacobian, method, **inputs)
        assert_same(method.state_dict()["rng"], before["rng"])
        match = r"^trim_number: expected a number in \[0, 0\] for 2 tasks, found 1$"
        with pytest.raises(ValueError, match=match):
            aggregate(jacobian, TrimmedMean(1))
        with pytest.raises(TypeError, match=r"^uniform: TrimmedMean expected only"):
            aggregate(jacobian, TrimmedMean(0), uniform=torch.zeros(3))
        for other in (method, TrimmedMean(0)):
            with pytest.raises(TypeError, match="has no task weights"):
                other(torch.eye(2))
    assert repr(get("GradDrop", leak=[0, 1])) == "GradDrop(leak=[0.0, 1.0])"
    assert repr(get("trimmed_mean", trim_number=2)) == "TrimmedMean(trim_number=2)"


# In a step


class Net(nn.Module):
    """Three tasks on a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(6, 5)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))

    def losses(self, step: int) -> list[Tensor]:
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        features = self.trunk(inputs).tanh()
        return [(head(features) - k).square().mean() for k, head in enumerate(self.heads)]


@pytest.mark.parametrize("make", [lambda: GradDrop(0.25, seed=3), lambda: TrimmedMean(1)])
@pytest.mark.parametrize("name", BACKENDS)
def test_step(name: str, make: Callable[[], mtlfast.Weighting]) -> None:
    """Shared parameters get the combined columns, the heads their own gradients."""
    net, method = Net(), make()
    shared, own = list(net.trunk.parameters()), list(net.heads.parameters())
    with backend(name):
        optimizer = MultiTaskOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), make())
        for step in range(3):
            rows = [torch.autograd.grad(net.losses(step)[k], shared) for k in range(3)]
            jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
            expected = aggregate(jacobian, method)
            own_grads = torch.autograd.grad(torch.stack(net.losses(step)).sum(), own)
            optimizer.zero_grad()
            optimizer.backward(net.losses(step))
            found = [p.grad.flatten() for p in shared if p.grad is not None]
            torch.testing.assert_close(torch.cat(found), expected)
            torch.testing.assert_close([p.grad for p in own], list(own_grads))
            assert optimizer.last is not None
            assert optimizer.last.weights is None
            assert optimizer.last.status == "ok"
            optimizer.step()


@pytest.mark.parametrize("name", BACKENDS)
def test_step_with_given_uniform_and_after_an_error(name: str) -> None:
    net = Net()
    with backend(name):
        optimizer = MultiTaskOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=1))
        optimizer.backward(net.losses(0), uniform=torch.full((35,), 0.5))
        before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        state = optimizer.weighting.state_dict()
        with pytest.raises(ValueError, match=r"^uniform: expected"):
            optimizer.backward(net.losses(1), uniform=torch.full((36,), 0.5))
        assert_same([p.grad for p in net.parameters()], before)
        assert_same(optimizer.weighting.state_dict()["rng"], state["rng"])
