"""CRMOGM: the average of another method's weights, and all that it hands on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, batches, random_jacobian, random_losses
from models import Mlp, Snapshot, assert_same, assert_same_state, wrap
from torch import Tensor

from mtlfast import CRMOGM, DBMTL, UW, CAGrad, Constant, GradNorm, MoCo, MoDo, PCGrad, SDMGrad, ops
from mtlfast.ops import TaskGrads
from mtlfast.weighting import ColumnWise, Weighting

NAN = float("nan")


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


def gramian_of(seed: int, num_tasks: int = 3, conflict: float = 0.9) -> Tensor:
    jacobian = random_jacobian(num_tasks, seed, conflict)
    return jacobian @ jacobian.T


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_average_by_hand(alpha: float) -> None:
    method, alone = CRMOGM(CAGrad(), alpha), CAGrad()
    average = alone(gramian_of(0))
    for t in range(6):
        average = alpha * average + (1 - alpha) * alone(gramian_of(t))
        torch.testing.assert_close(method(gramian_of(t)), average, rtol=1e-14, atol=0)


def test_alpha_may_be_set_between_steps() -> None:
    method, alone = CRMOGM("cagrad"), CAGrad()
    first = method(gramian_of(0))
    method.alpha = 0.25
    expected = 0.25 * first + 0.75 * alone(gramian_of(1))
    torch.testing.assert_close(method(gramian_of(1)), expected)
    with pytest.raises(ValueError, match=r"^alpha: expected a number in \[0, 1\], found 1.5$"):
        method.alpha = 1.5
    assert repr(method).endswith("alpha=0.25)")


WRAPPED: list[Callable[[], Weighting]] = [
    lambda: Constant([1.0, 2.0, 3.0]),
    lambda: PCGrad(seed=3),
    GradNorm,
    MoCo,
    lambda: DBMTL(0.0),
    DBMTL,
    MoDo,
    SDMGrad,
    lambda: CRMOGM(CAGrad(), 0.5),
]


@pytest.mark.parametrize("make", WRAPPED)
def test_hands_on_what_the_method_needs(make: Callable[[], Weighting]) -> None:
    method, alone = CRMOGM(make()), make()
    for name in (
        "needs_gramian",
        "needs_losses",
        "weights_losses",
        "inputs",
        "num_batches",
        "keeps_buffers",
        "needs_task_grads",
        "compares_raw",
    ):
        assert getattr(method, name) == getattr(alone, name), name


@pytest.mark.parametrize("make", WRAPPED)
def test_is_the_average_of_the_method(make: Callable[[], Weighting]) -> None:
    """Over steps with buffers, several batches and losses; the method's own state is the same."""
    method, alone = CRMOGM(make(), 0.6), make()
    average: Tensor | None = None
    for t in range(4):
        losses = random_losses(3, t)
        found = []
        for weighting in (method, alone):
            rows = weighting.transform(
                [[row] for row in batches(weighting, random_jacobian(3, t))], losses
            )
            found.append(weighting(ops.gramian(rows), losses))
            assert_same(weighting.own_weights(losses, losses), alone.own_weights(losses, losses))
        average = found[1] if average is None else 0.6 * average + 0.4 * found[1]
        torch.testing.assert_close(found[0], average)
    assert_same_state(method.state_dict()["weighting"], alone.state_dict())
    assert method.status == alone.status


def test_inputs_reach_the_method() -> None:
    method, alone = CRMOGM(PCGrad(), 0.0), PCGrad()
    order = torch.tensor([[2, 1, 0]] * 3)
    assert_same(method(gramian_of(0), order=order), alone(gramian_of(0), order=order))
    with pytest.raises(TypeError, match=r"^order: CRMOGM expected only gramian, losses, found"):
        CRMOGM(CAGrad())(gramian_of(0), order=order)


def test_weights_that_are_not_finite_stay_out_of_the_average() -> None:
    """Also where the wrapped method says that all is well."""

    class Broken(Constant):
        def _weights(self, call: Any) -> Tensor:
            return super()._weights(call) * float(call.losses.sum())

    method = CRMOGM(Broken([1.0, 2.0]), 0.5)
    for losses in ([1.0, 0.0], [1e308, 1e308], [3.0, 0.0]):
        before = method.state_dict()
        weights = method(None, torch.tensor(losses, dtype=torch.float64))
        if losses[0] > 1e300:
            assert weights.isnan().all()
            assert method.status == "non-finite"
            assert_same_state(method.state_dict(), before)
        else:
            assert method.status == "ok"
    torch.testing.assert_close(weights, torch.tensor([2.0, 4.0]).double())


def test_parameters_are_those_of_the_method() -> None:
    """Learned scales in the user's optimizer are no task's parameters, but get their slopes."""
    model = Mlp()
    method = CRMOGM(UW(None, num_tasks=3), 0.5)
    (scales,) = method.parameters()
    optimizer = wrap(model, method)
    optimizer.add_param_group({"params": [scales]})
    before = scales.detach().clone()
    for step in range(2):
        optimizer.zero_grad()
        optimizer.backward(model.losses(step))
        assert scales.grad is not None
        optimizer.step()
    assert not torch.equal(scales.detach(), before)


def test_status_is_that_of_the_method() -> None:
    method = CRMOGM("cagrad")
    assert method.status == method.status_flag() == "ok"
    method(gramian_of(0))
    assert method.status == "ok"
    method(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert method.status == "degenerate"
    flag = method.status_flag()
    assert isinstance(flag, Tensor)
    method(torch.full((3, 3), NAN))
    assert method.status == "non-finite"
    assert int(flag) == 1  # a copy
    method.reset()
    assert method.status == "ok"


def test_another_k_moves_nothing() -> None:
    method = CRMOGM(PCGrad(seed=0))
    method(gramian_of(0))
    before = method.state_dict()
    with pytest.raises(ValueError, match=r"^gramian: expected 3 tasks as in .*, found 4"):
        method(gramian_of(0, 4))
    assert_same_state(method.state_dict(), before)
    method.reset()
    method(gramian_of(0, 4))


def test_a_failing_method_moves_nothing() -> None:
    method = CRMOGM(Constant([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"^weights: expected"):
        method(gramian_of(0))
    assert method.state_dict().keys() == {"method", "weighting"}
    method(gramian_of(0, 2))  # it has not learned K from the failure


def test_snapshots_keep_the_object_and_its_buffers() -> None:
    method = CRMOGM(MoCo())
    inner = method.weighting
    assert isinstance(inner, MoCo)

    def advance(t: int) -> Tensor:
        rows = method.transform([[row] for row in random_jacobian(3, t)], torch.ones(3).double())
        return method(ops.gramian(rows))

    advance(0)
    snapshot, buffer, state = method.snapshot(), inner._buffer, method.state_dict()
    expected = advance(1)
    for _ in range(2):  # a snapshot may be used again
        method.restore(snapshot)
        assert method.weighting is inner
        assert inner._buffer is buffer
        assert_same_state(method.state_dict(), state)
        assert_same(advance(1), expected)


def wrong_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    inner = state["weighting"]
    return [
        {**state, "weighting": 3},
        {**state, "weighting": {**inner, "method": "pcgrad"}},
        {**state, "weighting": {**inner, "logits": torch.zeros(3)}},
        {**state, "weighting": {**inner, "exp_avg": torch.full((3,), NAN).double()}},
        {k: v for k, v in state.items() if k != "weighting"},
        {k: v for k, v in state.items() if k != "started"},
        {**state, "weights": torch.full((3,), NAN).double()},
    ]


def test_wrong_state_dict_changes_nothing() -> None:
    method = CRMOGM(GradNorm())
    for t in range(2):
        method(gramian_of(t), random_losses(3, t))
    kept = copy.deepcopy(method)
    state = method.state_dict()
    for t in (2, 3):
        method(gramian_of(t), random_losses(3, t))
    before = method.state_dict()
    for wrong in wrong_states(state):
        with pytest.raises(ValueError, match=r"^state_dict.*: expected .*, found"):
            method.load_state_dict(wrong)
        assert_same_state(method.state_dict(), before)
    method.load_state_dict(state)
    losses = random_losses(3, 9)
    assert_same(method(gramian_of(9), losses), kept(gramian_of(9), losses))


def test_fresh_average_of_a_used_method() -> None:
    """A state with nothing but the wrapped method's is one of an average not yet begun."""
    gradnorm = GradNorm()
    gradnorm(gramian_of(0), random_losses(3, 0))
    method = CRMOGM(GradNorm())
    method.load_state_dict({"method": "crmogm", "weighting": gradnorm.state_dict()})
    losses = random_losses(3, 1)
    assert_same(method(gramian_of(1), losses), gradnorm(gramian_of(1), losses))


def test_failing_backward_leaves_both() -> None:
    model = Mlp()
    optimizer = wrap(model, CRMOGM("gradnorm"))
    optimizer.backward(model.losses(0))
    optimizer.step()
    snapshot = Snapshot(optimizer)
    with pytest.raises(ValueError, match="expected 3 tasks"):
        optimizer.backward(model.losses(1)[:2])
    snapshot.check()


class Columns(ColumnWise):
    """A method of columns, with no name of its own."""

    def combine(
        self,
        task_grads: TaskGrads,
        weights: Tensor | None = None,
        out: list[Tensor | None] | None = None,
        **inputs: Tensor | None,
    ) -> list[Tensor | None]:
        raise NotImplementedError

    def combine_(
        self,
        params: list[Tensor],
        task_grads: TaskGrads,
        weights: Tensor | None = None,
        *,
        accumulate: bool = False,
        **inputs: Tensor | None,
    ) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("weighting", "alpha", "error", "message"),
    [
        (Columns(), 0.9, TypeError, "weighting: expected .* task weights, found Columns, which"),
        (3, 0.9, TypeError, "weighting: expected a name or a Weighting, found int"),
        ("cagrd", 0.9, ValueError, "weighting: expected one of .*, found 'cagrd'"),
        ("cagrad", -0.1, ValueError, r"alpha: expected a number in \[0, 1\], found -0.1"),
        ("cagrad", NAN, ValueError, r"alpha: expected a number in \[0, 1\], found nan"),
        ("cagrad", True, TypeError, "alpha: expected a number, found bool"),
        ("cagrad", None, TypeError, "alpha: expected a number, found NoneType"),
    ],
)
def test_wrong_options(weighting: Any, alpha: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        CRMOGM(weighting, alpha)
