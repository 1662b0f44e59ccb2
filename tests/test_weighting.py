"""What every weighting promises, on every row of the table."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    BACKENDS,
    PLAIN,
    ROWS,
    Row,
    backend,
    call,
    random_jacobian,
    random_losses,
    random_orders,
    renamed,
    step,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlfast import ops
from mtlfast.weighting import (
    REGISTRY,
    ColumnWise,
    Weighting,
)

NAN = float("nan")


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


@pytest.fixture(params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


def gramian_of(num_tasks: int, seed: int = 0) -> Tensor:
    jacobian = random_jacobian(num_tasks, seed)
    return jacobian @ jacobian.T


def advance(
    row: Row, weighting: Weighting, steps: int, num_tasks: int = 3, seed: int = 0
) -> Tensor:
    """The answers of some steps, stacked; what is random in the method is drawn."""
    found = [
        step(
            row,
            weighting,
            random_jacobian(num_tasks, seed + t),
            random_losses(num_tasks, seed + t),
            None,
        )
        for t in range(steps)
    ]
    return torch.stack(found)


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit; the reference up to LAPACK, whose sums depend on the alignment of its memory."""
    exact = ops.describe()["backend"] == "native"
    rtol, atol = (0.0, 0.0) if exact else (1e-11, 1e-14)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True)


def assert_same_state(found: Any, expected: Any) -> None:
    """State dicts, with the dicts and lists of tensors in them."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same_state(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same_state(ours, theirs)
    elif isinstance(expected, Tensor):
        assert_same(found, expected)
    else:
        assert found == expected


# Every row


def test_table_has_every_method() -> None:
    assert {type(row.make(2)) for row in ROWS} == set(REGISTRY.values())


def test_shape_dtype_and_status(row: Row) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for num_tasks in (1, 2, 5):
            if num_tasks < row.least:
                continue
            jacobian = torch.eye(num_tasks, dtype=dtype, requires_grad=True)
            losses = torch.ones(num_tasks, dtype=dtype, requires_grad=True)
            weighting = row.make(num_tasks)
            answer = step(row, weighting, jacobian, losses, None)
            columns = isinstance(weighting, ColumnWise)
            assert answer.shape == (num_tasks * weighting.num_batches,)
            assert answer.dtype == (dtype if columns else torch.float64)
            assert not answer.requires_grad
            assert weighting.status == "ok"


@pytest.mark.parametrize("row", PLAIN, ids=str)
def test_strided_gramian(row: Row) -> None:
    gramian, losses = gramian_of(4), random_losses(4, 0)
    padded = torch.zeros(4, 8, dtype=torch.float64)
    padded[:, ::2] = gramian
    spread = torch.zeros(8, dtype=torch.float64)
    spread[::2] = losses
    order = random_orders(4, 0)
    found = call(row.make(4), padded[:, ::2], spread[::2], order.T.contiguous().T)
    assert_same(found, call(row.make(4), gramian, losses, order))


def test_single_task(row: Row) -> None:
    if row.least > 1:
        return
    for norm in (1e-20, 2.0, 1e18):
        if norm != 2.0 and not row.scale_free:
            continue
        weighting = row.make(1)
        jacobian = torch.tensor([[norm]], dtype=torch.float64)
        answer = step(row, weighting, jacobian, torch.ones(1).double(), None)
        if isinstance(weighting, ColumnWise):
            answer = answer / norm
        expected = torch.tensor(row.alone, dtype=torch.float64)
        torch.testing.assert_close(answer.sum(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("row", [row for row in ROWS if row.scale_free], ids=str)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    scale=st.floats(1e-20, 1e18),
    num_tasks=st.sampled_from([2, 3, 8]),
    seed=st.integers(0, 2**31),
    conflict=st.sampled_from([0.0, 0.9]),
)
def test_scale_changes_nothing(
    row: Row, scale: float, num_tasks: int, seed: int, conflict: float
) -> None:
    if num_tasks < row.least:
        return
    jacobian = random_jacobian(num_tasks, seed, conflict)
    order, losses = random_orders(num_tasks, seed), random_losses(num_tasks, seed)
    small, large = row.make(num_tasks), row.make(num_tasks)
    for t in range(2):
        expected = step(row, small, jacobian, losses + t, order)
        found = step(row, large, scale * jacobian, losses + t, order)
        if isinstance(large, ColumnWise):
            found = found / scale
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert small.status == large.status


def test_power_of_two_scale_is_exact(row: Row) -> None:
    if not row.scale_free:
        return
    jacobian, losses, order = random_jacobian(5, 0), random_losses(5, 0), random_orders(5, 0)
    expected = step(row, row.make(5), jacobian, losses, order)
    for exponent in (-120, -1, 3, 100):
        weighting = row.make(5)
        found = step(row, weighting, jacobian * 2.0**exponent, losses, order)
        if isinstance(weighting, ColumnWise):
            found = found / 2.0**exponent
        assert_same(found, expected)


def test_renaming_tasks_renames_weights(row: Row) -> None:
    if not row.symmetric:
        return
    for num_tasks in (2, 3, 8):
        if num_tasks < row.least:
            continue
        jacobian, losses = random_jacobian(num_tasks, 0), random_losses(num_tasks, 0)
        order = random_orders(num_tasks, 0)
        old = random_orders(num_tasks, 1)[0]  # old[a]: the task now called a
        new = old.argsort()
        straight, other = row.make(num_tasks), row.make(num_tasks)
        for t in range(3):
            expected = step(row, straight, jacobian, losses + t, order)
            found = step(row, other, jacobian[old], losses[old] + t, new[order[old]])
            wanted = renamed(other, expected, old)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_nonfinite_gradient(row: Row, bad: float) -> None:
    weighting = row.make(3)
    advance(row, weighting, 2)
    before = weighting.state_dict()
    jacobian = random_jacobian(3, 0)
    jacobian[0, 2] = bad
    answer = step(row, weighting, jacobian, torch.ones(3).double(), None)
    if isinstance(weighting, ColumnWise):
        assert answer.isfinite().sum() >= answer.numel() - 1  # in the other columns
        return
    if not weighting.needs_task_grads:
        assert answer.isfinite().all()
        return
    assert answer.isnan().all()
    assert weighting.status == "non-finite"
    assert_same_state(weighting.state_dict(), before)


def test_nonfinite_losses(row: Row) -> None:
    weighting = row.make(3)
    for seed in range(2):
        before = weighting.state_dict()
        losses = torch.tensor([1.0, NAN, 2.0])
        if weighting.needs_losses:
            weights = step(row, weighting, random_jacobian(3, 0), losses.double(), None)
            assert weights.isnan().all()
            assert weighting.status == "non-finite"
            assert_same_state(weighting.state_dict(), before)
        advance(row, weighting, 1, seed=seed)


def test_state_dict_resumes_bit_for_bit(row: Row) -> None:
    weighting = row.make(3)
    advance(row, weighting, 4)
    file = io.BytesIO()
    torch.save(weighting.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert_same_state(state, weighting.state_dict())
    resumed = row.make(3)
    advance(row, resumed, 1, seed=50)  # a state of its own, to be replaced
    resumed.load_state_dict(state)
    assert_same_state(resumed.state_dict(), state)
    assert_same(advance(row, resumed, 4, seed=9), advance(row, weighting, 4, seed=9))


def test_fresh_state_dict_makes_fresh(row: Row) -> None:
    torch.manual_seed(3)
    expected = advance(row, row.make(3), 3)
    weighting = row.make(3)
    advance(row, weighting, 2, seed=8)
    weighting.load_state_dict(row.make(3).state_dict())
    torch.manual_seed(3)
    assert_same(advance(row, weighting, 3), expected)


def test_state_dict_is_a_copy(row: Row) -> None:
    weighting = row.make(3)
    advance(row, weighting, 2)
    state = weighting.state_dict()
    kept = copy.deepcopy(state)
    resumed = row.make(3)
    resumed.load_state_dict(state)
    advance(row, weighting, 2)
    advance(row, resumed, 2)
    assert_same_state(state, kept)


def test_wrong_state_dict_changes_nothing(row: Row) -> None:
    weighting = row.make(3)
    advance(row, weighting, 2)
    state = weighting.state_dict()
    wrong: list[Any] = [{}, {**state, "method": "other"}, {**state, "extra": torch.zeros(1)}, None]
    for key in state:
        if key != "method":
            # The random counter, or the whole vector, may be missing: it is fresh then.
            if {key} not in ({"rng"}, {part for part, _ in weighting.state_layout}):
                wrong.append({k: v for k, v in state.items() if k != key})
            if isinstance(state[key], Tensor):
                wrong.append({**state, key: state[key].reshape(-1)[:0]})
                wrong.append({**state, key: state[key].to(torch.float16)})
            wrong.append({**state, key: 3})
    for bad in wrong:
        if isinstance(bad, dict) and bad.keys() == {"method"} and bad["method"] == weighting.name:
            continue  # a fresh state: allowed
        with pytest.raises((ValueError, TypeError), match=r"state_dict.*: expected .*, found "):
            weighting.load_state_dict(bad)
        assert_same_state(weighting.state_dict(), state)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_copies_are_independent(row: Row, clone: Callable[[Weighting], Weighting]) -> None:
    weighting = row.make(3)
    advance(row, weighting, 3)
    first, second = clone(weighting), clone(weighting)
    assert repr(first) == repr(weighting)
    expected = advance(row, weighting, 3, seed=5)
    assert_same(advance(row, first, 3, seed=5), expected)
    assert_same(advance(row, second, 3, seed=5), expected)


def test_reset_starts_anew(row: Row) -> None:
    weighting = row.make(3)
    torch.manual_seed(1)
    expected = advance(row, weighting, 3)
    weighting.reset()
    assert weighting.status == "ok"
    assert_same_state(weighting.state_dict(), row.make(3).state_dict())
    torch.manual_seed(1)
    assert_same(advance(row, weighting, 3), expected)
    weighting.reset()
    step(row, weighting, random_jacobian(3, 0), torch.ones(3).double(), None)  # it forgets K too


def test_manual_seed_reproduces(row: Row) -> None:
    runs = []
    for seed in (11, 11, 12):
        torch.manual_seed(seed)
        runs.append(advance(row, row.make(8), 6, num_tasks=8))
    assert_same(runs[0], runs[1])
    if row.drawn:
        assert bool((runs[0] != runs[2]).any())
    else:
        assert_same(runs[0], runs[2])


def test_repr_rebuilds(row: Row) -> None:
    weighting = row.make(3)
    text = repr(weighting)
    rebuilt = eval(text, {method.__name__: method for method in REGISTRY.values()})
    assert repr(rebuilt) == text


def test_class_says_what_it_is(row: Row) -> None:
    method = type(row.make(2))
    text = inspect.getdoc(method) or ""
    assert REGISTRY[method.name] is method
    assert method.family in ("constant", "gramian", "loss", "column", "buffer")
    assert "Shapes:" in text
    assert "egenerate" in text
    assert "fail" in text
    if method.family != "constant":
        assert method.paper.split(", ")[-1] in text
        for option in inspect.signature(method).parameters:
            assert f"    {option}: " in text


@pytest.mark.parametrize("row", PLAIN, ids=str)
def test_wrong_input_is_named(row: Row) -> None:
    weighting = row.make(3)
    advance(row, weighting, 1)
    before = weighting.state_dict()
    gramian, losses = gramian_of(3), torch.ones(3)
    wrong: list[tuple[str, type[Exception], dict[str, Any]]] = [
        ("gramian", TypeError, {"gramian": [[1.0]]}),
        ("gramian", ValueError, {"gramian": gramian[0]}),
        ("gramian", ValueError, {"gramian": gramian[:2]}),
        ("gramian", ValueError, {"gramian": gramian[:0, :0]}),
        ("gramian", ValueError, {"gramian": gramian.long()}),
        ("gramian", ValueError, {"gramian": gramian.to(torch.complex128)}),
        ("losses", TypeError, {"losses": [1.0, 1.0, 1.0]}),
        ("losses", ValueError, {"losses": losses[:2]}),
        ("losses", ValueError, {"losses": losses[:, None]}),
        ("losses", ValueError, {"losses": losses.long()}),
        ("shape", TypeError, {"shape": losses}),
    ]
    if weighting.needs_gramian:
        wrong.append(("gramian", ValueError, {"gramian": None}))
    else:
        missing = "losses" if weighting.needs_losses else "gramian"
        wrong.append((missing, ValueError, {"gramian": None, "losses": None}))
    if weighting.needs_losses:
        wrong.append(("losses", ValueError, {"losses": None}))
    if "order" in weighting.inputs:
        order = random_orders(3, 0)
        wrong += [
            ("order", TypeError, {"order": [0, 1, 2]}),
            ("order", ValueError, {"order": order[:2]}),
            ("order", ValueError, {"order": order.double()}),
            ("order", ValueError, {"order": torch.zeros(3, 3, dtype=torch.int64)}),
            ("order", ValueError, {"order": order + 1}),
        ]
    else:
        wrong.append(("order", TypeError, {"order": random_orders(3, 0)}))
    for name, error, arguments in wrong:
        with pytest.raises(error, match=rf"^{name}: .*expected .*, found"):
            weighting(**{"gramian": gramian, "losses": losses, **arguments})
        assert_same_state(weighting.state_dict(), before)
