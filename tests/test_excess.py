"""ExcessMTL: its certified weights, and what becomes of its sums of squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, oracle, random_jacobian
from kernel_cases import DTYPES, assert_same
from models import assert_same_state
from torch import Tensor, nn

from mtlfast import ExcessMTL, MultiTaskOptimizer, column_ops

NAN, INF = float("nan"), float("inf")
Sums = list[list["Tensor | None"]]


def weigh(method: ExcessMTL, jacobian: Tensor) -> Tensor:
    """Weights ``[K]`` of one step."""
    losses = torch.zeros(len(jacobian), dtype=torch.float64)
    method.transform([[row] for row in jacobian], losses)
    return method(None, losses)


# The weights


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
@pytest.mark.parametrize("name", BACKENDS)
def test_certified_stream(name: str, num_tasks: int) -> None:
    jacobians = torch.from_numpy(oracle()[f"K{num_tasks}/J"])
    expected = torch.from_numpy(oracle()[f"K{num_tasks}/excessmtl_w"])
    with backend(name):
        for dtype, error in ((torch.float64, 1e-14), (torch.float32, 1e-8)):
            method, summed = ExcessMTL(lr=0.01), ExcessMTL(lr=0.01, reduction="sum")
            for jacobian, weights in zip(jacobians, expected, strict=False):
                found = weigh(method, jacobian.to(dtype))
                torch.testing.assert_close(found, weights, rtol=0, atol=error)
                sum_to_k = weigh(summed, jacobian.to(dtype))
                torch.testing.assert_close(sum_to_k, num_tasks * found, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", BACKENDS)
def test_warm_up(name: str) -> None:
    """Equal weights, whose mean excess is the baseline."""
    squares = torch.zeros(3, 10, dtype=torch.float64)
    excesses, log_weights = [], torch.zeros(3, dtype=torch.float64)
    method = ExcessMTL(lr=0.3, num_warmup_steps=4)
    with backend(name):
        for t in range(9):
            jacobian = random_jacobian(3, t)
            squares = squares + jacobian.square()
            excesses.append((jacobian.square() / (squares + 1e-7).sqrt()).sum(1))
            if t >= 4:
                baseline = torch.stack(excesses[:4]).mean(0)
                log_weights = log_weights + 0.3 * excesses[t] / (baseline + 1e-7)
            found = weigh(method, jacobian)
            torch.testing.assert_close(found, log_weights.softmax(0), rtol=1e-12, atol=0)
        state = method.state_dict()
    torch.testing.assert_close(torch.stack([row[0] for row in state["buffer"]]), squares)
    assert float(state["num_updates"]) == 9


@pytest.mark.parametrize("num_warmup", [0, 2])
@pytest.mark.parametrize("name", BACKENDS)
def test_baseline_of_zero(name: str, num_warmup: int) -> None:
    """A task that starts with a zero gradient is never divided by zero."""
    jacobian = random_jacobian(3, 0)
    silent = jacobian.clone()
    silent[1] = 0
    method = ExcessMTL(0.1, num_warmup)
    with backend(name):
        for _ in range(3):
            weights = weigh(method, silent)
            assert weights.isfinite().all()
        before = weigh(method, jacobian)  # takes its baseline, and nothing else
        assert float(before[1]) < float(weights[1])
        states = [method.state_dict()]
        weigh(method, jacobian)
        states.append(method.state_dict())
    first, second = (state["log_weights"] - state["log_weights"][0] for state in states)
    rate = (second - first)[1]
    assert bool(states[0]["initial_excess"].gt(0).all())
    assert abs(float(rate)) < 0.1  # lr times the difference of two rates of about 1


@pytest.mark.parametrize("name", BACKENDS)
def test_zero_gradients_are_degenerate(name: str) -> None:
    method = ExcessMTL(0.1)
    with backend(name):
        expected = weigh(method, random_jacobian(3, 0))
        assert method.status == "ok"
        assert_same(weigh(method, torch.zeros(3, 10).double()), expected)
        assert method.status == "degenerate"
        fresh = ExcessMTL()
        third = torch.full((3,), 1 / 3, dtype=torch.float64)
        torch.testing.assert_close(weigh(fresh, torch.zeros(3, 10)), third)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_weight_that_underflows_comes_back(name: str) -> None:
    jacobian = torch.tensor([[1e3], [1.0]]).double().expand(2, 50)
    method = ExcessMTL(lr=1.0)
    with backend(name):
        assert weigh(method, jacobian).tolist() == [1.0, 0.0]
        for _ in range(20_000 if name == "native" else 0):
            weights = weigh(method, torch.tensor([[0.0], [1e3]]).double().expand(2, 50))
            if float(weights[1]) == 1:
                break
        else:
            assert name == "reference"
        huge = ExcessMTL(lr=1e300)
        for scale in (1e18, 1e-20, 1e18):
            assert weigh(huge, scale * jacobian).isfinite().all()


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e200])
@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_not_finite_leaves_no_trace(name: str, bad: float) -> None:
    method, twin = ExcessMTL(0.1), ExcessMTL(0.1)
    with backend(name):
        for t in range(4):
            jacobian = random_jacobian(3, t)
            spoiled = jacobian.clone()
            spoiled[1, 2] = bad
            assert weigh(method, spoiled).isnan().all()
            assert method.status == "non-finite"
            assert_same(weigh(method, jacobian), weigh(twin, jacobian))


@pytest.mark.parametrize("name", BACKENDS)
def test_sums_of_half_types_are_float32(name: str) -> None:
    for dtype in DTYPES:
        method = ExcessMTL()
        with backend(name):
            weigh(method, random_jacobian(3, 0).to(dtype))
            (sums,) = method.state_dict()["buffer"][0]
            weigh(method, random_jacobian(3, 0).to(dtype))
        assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_wrong_calls() -> None:
    method = ExcessMTL()
    losses = torch.zeros(3)
    with pytest.raises(ValueError, match=r"^gramian: ExcessMTL .*expected one before.*found none"):
        method(None, losses)
    weigh(method, random_jacobian(3, 0))
    with pytest.raises(ValueError, match=r"^gramian: ExcessMTL .*expected one before.*found none"):
        method(None, losses)
    method.transform([[row] for row in random_jacobian(3, 0)], losses)
    with pytest.raises(ValueError, match=r"^losses: expected 3 tasks as in transform.*found 2"):
        method(None, losses[:2])
    for rows, message in (
        ([[torch.ones(10).double()]] * 2, r"task_grads: expected 3 tasks .*found 2"),
        ([[torch.ones(9).double()]] * 3, r"task_grads\[0\]\[0\]: expected shape .*found \[9\]"),
    ):
        with pytest.raises(ValueError, match="^" + message):
            method.transform(rows, losses)


def test_wrong_state() -> None:
    method = ExcessMTL()
    weigh(method, random_jacobian(3, 0))
    state = method.state_dict()
    ones = torch.ones(10).double()
    for buffer in ([[-ones]] * 3, [[ones]] * 2, [[ones]] * 2 + [[NAN * ones]], [[ones]] * 2 + [[]]):
        with pytest.raises(ValueError, match=r"^state_dict\['buffer'\]: expected .*, found"):
            method.load_state_dict({**state, "buffer": buffer})
        assert_same_state(method.state_dict(), state)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 0}, ValueError, r"lr: expected a number in \(0, inf\), found 0"),
        ({"num_warmup_steps": -1}, ValueError, "num_warmup_steps: expected .*, found -1"),
        ({"num_warmup_steps": 1.5}, TypeError, "num_warmup_steps: expected .*, found float"),
        ({"reduction": "max"}, ValueError, "reduction: expected .*, found 'max'"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        ExcessMTL(**options)


# In a step


def test_snapshots_hold_the_sums_by_reference() -> None:
    """They are K times as large as the model: a way back must not copy them."""
    method = ExcessMTL()
    weigh(method, random_jacobian(3, 0))
    assert method._buffer is not None
    held = method._buffer[0][0]
    assert held is not None
    assert method.snapshot()["_buffer"][0][0] is held
    before = method.snapshot()
    kept = held.clone()
    weigh(method, random_jacobian(3, 1))
    assert method._buffer[0][0] is not held
    method.restore(before)
    assert method._buffer[0][0] is held
    assert_same(held, kept)


@pytest.mark.parametrize("name", BACKENDS)
def test_micro_batches_are_one_step(name: str) -> None:
    """And the heads get their weighted gradients."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(6, 5), nn.ModuleList(nn.Linear(5, 1) for _ in range(3))
    net = nn.ModuleList([trunk, heads])
    inputs = torch.randn(2, 4, 6)

    def losses(batch: Tensor) -> list[Tensor]:
        features = trunk(batch).tanh()
        return [(head(features) - k).square().mean() for k, head in enumerate(heads)]

    def both() -> list[Tensor]:
        return [a + b for a, b in zip(*map(losses, inputs), strict=True)]

    with backend(name):
        parts, whole = (
            MultiTaskOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), ExcessMTL(0.1))
            for _ in range(2)
        )
        grads: list[list[Tensor | None]] = []
        for optimizer, calls in ((parts, list(inputs)), (whole, [None])):
            optimizer.zero_grad()
            for batch in calls:
                optimizer.backward(both() if batch is None else losses(batch))
            grads.append([p.grad for p in net.parameters()])
            assert optimizer.last is not None
            assert optimizer.last.gramian is None
            assert float(optimizer.weighting.state_dict()["num_updates"]) == 1
        torch.testing.assert_close(*grads)
        assert whole.last is not None
        weights = whole.last.weights
        assert weights is not None
        objective = (weights.float() * torch.stack(both())).sum()
        expected = torch.autograd.grad(objective, list(net.parameters()))
        torch.testing.assert_close(grads[1], list(expected))


def test_failing_kernel_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    param = nn.Parameter(torch.ones(4))
    optimizer = MultiTaskOptimizer(torch.optim.SGD([param], lr=0.1), ExcessMTL(0.1))

    def losses() -> list[Tensor]:
        return [(param - k).square().sum() for k in range(3)]

    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("out of it")

    optimizer.backward(losses())
    optimizer.step()
    state, grad = optimizer.weighting.state_dict(), param.grad
    places: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda patch: patch.setattr(column_ops, "excess", fail),
        lambda patch: patch.setattr("mtlfast.ops.solve", fail),
        lambda patch: patch.setattr("mtlfast.ops.combine_", fail),
    ]
    for break_it in places:
        with monkeypatch.context() as patch:
            break_it(patch)
            with pytest.raises(MemoryError):
                optimizer.backward(losses())
        assert_same_state(optimizer.weighting.state_dict(), state)
        assert param.grad is grad
