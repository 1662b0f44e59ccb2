"""MoCo and DBMTL, and what they share: buffers that are kept, checked, saved and taken back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, random_jacobian, random_losses
from models import assert_same, assert_same_state
from special import assert_stationary, nearest_on_simplex
from torch import Tensor, nn

from mtlfast import DBMTL, MoCo, MultiTaskOptimizer, aggregate, ops
from mtlfast.weighting import buffered

NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


# MoCo


def test_moco_by_hand() -> None:
    method = MoCo(beta=0.7, gamma=0.2, rho=0.3, beta_decay=0.5, gamma_decay=0.25)
    tracked = torch.zeros(3, 10, dtype=torch.float64)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for t in range(1, 6):
        jacobian = random_jacobian(3, t, 0.9)
        tracked = tracked + 0.7 / t**0.5 * (jacobian - tracked)
        slope = tracked @ (tracked.T @ weights) + 0.3 * weights
        weights = nearest_on_simplex(weights - 0.2 / t**0.25 * slope)
        torch.testing.assert_close(aggregate(jacobian, method), weights @ tracked)
    state = method.state_dict()
    torch.testing.assert_close(state["weights"], weights)
    torch.testing.assert_close(torch.stack([row[0] for row in state["buffer"]]), tracked)
    assert float(state["num_updates"]) == 5


def test_moco_without_history_has_the_gradients_for_buffers() -> None:
    """With beta = 1 the buffers are the gradients, whatever came before, and need not be kept."""
    method, alone = MoCo(beta=1.0), MoCo()
    for t in range(4):
        jacobian = random_jacobian(4, t, 0.9)
        rows = method.transform([[row] for row in jacobian], torch.ones(4).double())
        assert_same(torch.stack([row[0] for row in rows if row[0] is not None]), jacobian)
        gramian = ops.gramian(rows)
        assert_same(method(gramian), alone(gramian))


def test_moco_converges_to_the_minimum_norm() -> None:
    jacobian = random_jacobian(5, 3, 0.5)
    gramian = jacobian @ jacobian.T
    for rho in (0.0, 0.1):
        method = MoCo(gamma=1 / float(torch.linalg.eigvalsh(gramian)[-1] + rho), rho=rho)
        for _ in range(1500):
            weights = method(gramian)
        assert_stationary(gramian @ weights + rho * weights, weights)


def test_moco_tracks_the_mean_of_noisy_gradients() -> None:
    method = MoCo(beta=1.0, gamma=0.0, beta_decay=1.0)  # the plain mean over the steps
    rows = [random_jacobian(3, t) for t in range(20)]
    for jacobian in rows:
        answer = aggregate(jacobian, method)
    torch.testing.assert_close(answer, torch.stack(rows).mean((0, 1)))


# DB-MTL


def test_dbmtl_brings_all_log_loss_gradients_to_the_longest() -> None:
    for num_tasks in (1, 2, 5):
        jacobian, losses = random_jacobian(num_tasks, 0), random_losses(num_tasks, 0)
        method = DBMTL(beta=0.0)
        weights = method(jacobian @ jacobian.T, losses)
        assert method.status == "ok"
        lengths = jacobian.norm(dim=1)
        longest = (lengths / (losses + 1e-8)).max()
        torch.testing.assert_close(weights * lengths, longest.expand(num_tasks))
        assert method.state_dict() == {"method": "dbmtl"}
        assert method.compares_raw
        assert not method.keeps_buffers


def test_dbmtl_is_the_step_on_log_losses() -> None:
    """Against autograd through the logarithm, for shared and own parameters; no buffers."""
    torch.manual_seed(0)
    shared = nn.Parameter(torch.randn(4).double())
    own = [nn.Parameter(torch.randn(2).double()) for _ in range(3)]

    def losses() -> list[Tensor]:
        return [
            (shared * (k - 1.5)).exp().sum() * 10.0 ** (2 * k) + own[k].square().sum()
            for k in range(3)
        ]

    logs = [torch.log(loss + 1e-8) for loss in losses()]
    rows = [torch.autograd.grad(logs[k], [shared, own[k]]) for k in range(3)]
    lengths = torch.stack([row[0].norm() for row in rows])
    expected = (lengths.max() / lengths) @ torch.stack([row[0] for row in rows])
    optimizer = MultiTaskOptimizer(torch.optim.SGD([shared, *own], lr=0.1), DBMTL(beta=0.0))
    optimizer.backward(losses())
    torch.testing.assert_close(shared.grad, expected)
    for param, row in zip(own, rows, strict=True):
        torch.testing.assert_close(param.grad, row[1])


def test_dbmtl_buffers_by_hand() -> None:
    method = DBMTL(beta=0.8, sigma=0.5)
    average = torch.zeros(3, 10, dtype=torch.float64)
    for t in range(1, 6):
        jacobian, losses = random_jacobian(3, t), random_losses(3, t)
        kept = 0.8 / t**0.5
        average = kept * average + (1 - kept) * jacobian / (losses + 1e-8)[:, None]
        lengths = average.norm(dim=1)
        expected = (lengths.max() / lengths) @ average
        torch.testing.assert_close(aggregate(jacobian, method, losses), expected)
    assert float(method.state_dict()["num_updates"]) == 5


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_dbmtl_degenerate(beta: float) -> None:
    """Zero gradients get weight 0, and so do tasks without a logarithm, which is told."""
    jacobian = random_jacobian(4, 0)
    jacobian[1] = 0.0
    for losses, status in (
        ([1.0, 2.0, 3.0, 1.0], "ok"),
        ([1.0, 1.0, 1e-100, 1e100], "ok"),
        ([1.0, 2.0, 3.0, 0.0], "degenerate"),
        ([1.0, -2.0, 3.0, -1e-8], "degenerate"),
        ([0.0, -1.0, 0.0, -1e300], "degenerate"),
    ):
        method, values = DBMTL(beta), torch.tensor(losses, dtype=torch.float64)
        rows = method.transform([[row] for row in jacobian], values)
        weights = method(ops.gramian(rows), values)
        assert method.status == status
        assert weights.isfinite().all()
        alive = (values > 0) & jacobian.any(1)
        assert_same(weights > 0, alive)
        assert_same(method.own_weights(weights, values) > 0, values > 0)
    method = DBMTL(beta)
    assert not method(torch.zeros(3, 3), torch.ones(3)).any()
    assert method.status == "degenerate"


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_dbmtl_without_a_logarithm_is_the_others_step(beta: float) -> None:
    """The task leaves; a zero enters its average, from which it returns."""
    method, others = DBMTL(beta), DBMTL(beta)
    for t, loss in enumerate((1.0, -1.0, 0.0, 2.0)):
        jacobian = random_jacobian(3, t)
        losses = torch.tensor([0.5, loss, 2.0]).double()
        found = aggregate(jacobian, method, losses)
        alone = aggregate(jacobian[[0, 2]], others, losses[[0, 2]])
        if t in (1, 2):
            torch.testing.assert_close(found, alone)
        else:
            assert not torch.allclose(found, alone)


# Buffers


BUFFERED: list[Callable[[], Any]] = [MoCo, DBMTL]


def trained(make: Callable[[], Any], steps: int = 2) -> Any:
    """A method that has seen gradients of two tensors."""
    method = make()
    for t in range(steps):
        rows = [[row[:4].view(2, 2), row[4:]] for row in random_jacobian(3, t)]
        step_on(method, rows)
    return method


def step_on(method: Any, rows: ops.TaskGrads) -> Tensor:
    losses = torch.ones(3).double()
    weights: Tensor = method(ops.gramian(method.transform(rows, losses)), losses)
    return weights


@pytest.mark.parametrize("make", BUFFERED)
def test_snapshots_hold_buffers_by_reference(make: Callable[[], Any]) -> None:
    method = trained(make)
    old = method._buffer
    values = copy.deepcopy(old)
    snapshot = method.snapshot()
    assert snapshot["_buffer"] is old
    state = method.state_dict()
    trained(lambda: method)
    assert method._buffer is not old
    assert_same_state(old, values)  # never written to
    method.restore(snapshot)
    assert method._buffer is old
    assert_same_state(method.state_dict(), state)


@pytest.mark.parametrize("make", BUFFERED)
def test_a_step_makes_one_new_row_for_each_task(make: Callable[[], Any]) -> None:
    """``K P`` new elements, and what is compared is what is kept."""
    method = trained(make)
    rows = method.transform([[torch.ones(2, 2).double(), None]] * 3, torch.ones(3).double())
    method(ops.gramian(rows), torch.ones(3).double())
    for kept, seen in zip(method._buffer, rows, strict=True):
        assert kept[0] is seen[0]
        assert seen[1] is None
        assert kept[1] is not None


@pytest.mark.parametrize("make", BUFFERED)
@pytest.mark.parametrize("on_host", [True, False])
def test_tensors_that_no_task_reaches_wait(
    make: Callable[[], Any], on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffered, "_on_host", lambda flag: on_host)
    method = trained(make)
    before = method.state_dict()["buffer"]
    first = torch.full((2, 2), INF).double()
    step_on(method, [[first, None]] * 3)
    assert method.status == "non-finite"
    assert_same_state(method.state_dict()["buffer"], before)
    step_on(method, [[None, torch.ones(6).double()], [None, None], [None, None]])
    after = method.state_dict()["buffer"]
    for k in range(3):
        assert_same(after[k][0], before[k][0])
        assert not torch.equal(after[k][1], before[k][1])  # a task that does not reach it: zeros
    step_on(method, [[None, None, torch.ones(5)], [None] * 3, [None] * 3])
    assert [x if x is None else list(x.shape) for x in method._buffer[0]] == [[2, 2], [6], [5]]
    assert method._buffer[1][2] is None


@pytest.mark.parametrize("make", BUFFERED)
def test_buffers_follow_the_gradients(make: Callable[[], Any]) -> None:
    """A checkpoint of one dtype goes on in another, as in torch's optimizers."""
    method = trained(make)
    rows = [[row[:4].view(2, 2).float(), row[4:].float()] for row in random_jacobian(3, 5)]
    step_on(method, rows)
    assert {x.dtype for row in method._buffer for x in row} == {torch.float32}


@pytest.mark.parametrize("make", BUFFERED)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[(2, 2), (6,)]] * 2, r"task_grads: expected 3 tasks .*, found 2; reset\(\)"),
        ([[(2, 2)]] * 3, r"task_grads: expected at least the 2 tensors .*, found 1; reset\(\)"),
        (
            [[(2, 2), (5,)]] * 3,
            r"task_grads\[0\]\[1\]: expected shape \[6\] .*, found \[5\]; reset",
        ),
    ],
)
def test_other_gradients_are_refused(make: Callable[[], Any], rows: Any, message: str) -> None:
    method = trained(make)
    before = method.state_dict()
    given = [[torch.ones(shape).double() for shape in row] for row in rows]
    with pytest.raises(ValueError, match=f"^{message}"):
        method.transform(given, torch.ones(len(given)).double())
    assert_same_state(method.state_dict(), before)
    method.reset()
    method.transform(given, torch.ones(len(given)).double())


WRONG_BUFFERS: list[tuple[Any, str]] = [
    (3, "found int"),
    ([1], "found list"),
    ([[None]] * 2, "found 2 lists"),
    ([[None], [None], []], "found lists of 1, 1, 0"),
    ([[None], ["x"], [None]], r"found str in \[1\]\[0\]"),
    (
        [[torch.ones(2)], [torch.ones(3)], [None]],
        r"found torch.float32 of shape \[3\] in \[1\]\[0\]",
    ),
    ([[torch.ones(2)], [torch.ones(2).double()], [None]], "found torch.float64 of shape"),
    ([[torch.ones(2).long()]] * 3, "found torch.int64 of shape"),
    ([[torch.tensor([NAN])], [None], [None]], r"found NaN or Inf in \[0\]\[0\]"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_BUFFERS)
def test_wrong_buffers(wrong: Any, message: str) -> None:
    method = trained(MoCo)
    state = method.state_dict()
    with pytest.raises(ValueError, match=rf"^state_dict\['buffer'\]: expected 3 lists .*{message}"):
        method.load_state_dict({**state, "buffer": wrong})
    assert_same_state(method.state_dict(), state)


def test_state_of_a_method_that_was_only_called() -> None:
    """A user with buffers of their own calls it with their Gramian: nothing is kept but lambda."""
    method = MoCo()
    for _ in range(2):
        method(torch.eye(3))
    state = method.state_dict()
    assert state["buffer"] == []
    other = MoCo()
    other.load_state_dict(state)
    assert_same(other(torch.eye(3)), method(torch.eye(3)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MoCo(beta=0.0), ValueError, r"beta: expected a number in \(0, 1\], found 0.0"),
        (lambda: MoCo(beta=1.5), ValueError, r"beta: expected a number in \(0, 1\], found 1.5"),
        (lambda: MoCo(gamma=-1), ValueError, r"gamma: expected a number in \[0, inf\), found -1"),
        (lambda: MoCo(rho=NAN), ValueError, r"rho: expected .*, found nan"),
        (lambda: MoCo(beta_decay=-1), ValueError, r"beta_decay: expected .*, found -1"),
        (lambda: MoCo(gamma_decay=-1), ValueError, r"gamma_decay: expected .*, found -1"),
        (lambda: DBMTL(beta=1), ValueError, r"beta: expected a number in \[0, 1\), found 1"),
        (lambda: DBMTL(sigma=-1), ValueError, r"sigma: expected .*, found -1"),
        (lambda: DBMTL()(torch.eye(2)), ValueError, "losses: DBMTL expected .*, found None"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make()
