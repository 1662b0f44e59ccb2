"""The kernels of the fused step against torch's own optimizers in float64, one step at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused import OPTIONS, make
from kernel_cases import DTYPES, ENGINES, SIZES, Rows, engine, float64, random_rows, weighted_sum
from torch import Tensor, nn

from mtlfast import fused_ops
from mtlfast.fused import Part, Update

KEYS = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
WIDTHS = {torch.float64: 1e-12, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7}


@pytest.fixture(params=ENGINES)
def each_engine(request: pytest.FixtureRequest) -> Any:
    with engine(request.param):
        yield request.param


def close(found: Tensor, expected: Tensor, in_float32: bool = False) -> None:
    """The same number, but for a rounding that went the other way, or a few in float32."""
    rtol = WIDTHS.get(found.dtype, 2.0**-10)
    if in_float32 and found.dtype is not torch.float64:
        torch.testing.assert_close(
            found, expected.to(found.dtype), rtol=rtol + 1e-6, atol=2.0**-24 + 1e-6
        )
        return
    atol = 2.0**-24 if found.dtype is torch.float16 else 1e-14  # of terms of the order of 1
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=atol)


class Twins:
    """Parameters under an optimizer, and their float64 copies under torch's for-loop."""

    def __init__(self, name: str, rows: Rows, *, started: bool, **more: Any) -> None:
        self.rows = rows
        generator = torch.Generator().manual_seed(1)

        def like(grad: Tensor, low: float = -1.0) -> Tensor:
            noise = torch.rand(grad.shape, generator=generator, dtype=torch.float64)
            return torch.empty_like(grad).copy_(low + (1 - low) * noise)

        blocks = zip(*rows, strict=True)
        given = [next((g for g in block if g is not None), torch.ones(3)) for block in blocks]
        self.params = [nn.Parameter(like(grad)) for grad in given]
        self.copies = [nn.Parameter(p.detach().clone().double()) for p in self.params]
        self.inner = make(name, self.params, **more)
        self.torch = make(name, self.copies, foreach=False)
        if started:
            cls, options = OPTIONS[name]
            keys = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"][: 2 + options.get("amsgrad", False)]
            if cls is torch.optim.SGD:
                keys = ["momentum_buffer"][: "momentum" in options]
            for t, (param, twin) in enumerate(zip(self.params, self.copies, strict=True)):
                state = {key: like(param.detach(), 0.1 if "sq" in key else -1.0) for key in keys}
                self.inner.state[param] = state
                self.torch.state[twin] = {
                    key: value.clone().double() for key, value in state.items()
                }
                if "exp_avg" in keys:
                    state["step"] = torch.tensor(float(t % 5))
                    self.torch.state[twin]["step"] = torch.tensor(float(t % 5))

    def step(self, weights: Tensor, scale: float = 1.0) -> None:
        wide = [[None if g is None else g.double() for g in row] for row in self.rows]
        for twin, grad in zip(self.copies, weighted_sum(wide, weights), strict=True):
            twin.grad = None if grad is None else scale * grad
        self.torch.step()
        reached = [t for t, twin in enumerate(self.copies) if twin.grad is not None]
        params: list[Tensor] = [self.params[t] for t in reached]
        rows = [[row[t] for t in reached] for row in self.rows]
        Update((Part(params, rows, weights),)).apply(self.inner, None)

    def check(self, in_float32: bool = False) -> None:
        for param, twin in zip(self.params, self.copies, strict=True):
            close(param, twin, in_float32)
            assert param.grad is None
            found, expected = self.inner.state[param], self.torch.state[twin]
            assert set(found) == set(expected)
            for key in found:
                assert found[key].dtype == (param.dtype if key in KEYS else torch.float32)
                close(found[key], expected[key], in_float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_is_torchs(each_engine: str, name: str, dtype: torch.dtype) -> None:
    """Every option and type, sizes around every vector and tile, tensors that few tasks reach."""
    for num_tasks, started in ((1, True), (2, False), (5, True)):
        rows = random_rows(num_tasks, SIZES, dtype, missing=0.3 if num_tasks > 1 else 0.0)
        twins = Twins(name, rows, started=started)
        twins.step(torch.linspace(-1, 2, num_tasks, dtype=torch.float64) + 0.1)
        twins.check()


@pytest.mark.parametrize("num_tasks", [3, 4, 8, 9, 13, 40])
def test_any_number_of_tasks(each_engine: str, num_tasks: int) -> None:
    twins = Twins("adamw", random_rows(num_tasks, SIZES, torch.float64), started=True)
    weights = torch.linspace(-1, 2, num_tasks, dtype=torch.float64)
    weights[1] = 0.0
    twins.step(weights)
    twins.check()


@pytest.mark.parametrize("name", ["momentum", "amsgrad"])
def test_all_weights_zero(each_engine: str, name: str) -> None:
    """A gradient of zeros is still a step."""
    twins = Twins(name, random_rows(2, SIZES, torch.float64), started=True)
    twins.step(float64(0, 0))
    twins.check()


def test_a_dropped_task_is_not_read(each_engine: str) -> None:
    rows = random_rows(2, (70, 5), torch.float64)
    assert rows[1][0] is not None
    rows[1][0].fill_(torch.nan)
    twins = Twins("adam", rows, started=True)
    twins.step(float64(0.5, 0))
    assert all(param.isfinite().all() for param in twins.params)
    twins.check()


def test_not_finite_is_as_in_torch(each_engine: str) -> None:
    """NaN and Inf in gradient, parameter and state; an infinite parameter without decay stays."""
    for name in ("sgd", "momentum", "adam", "amsgrad", "adamw"):
        rows = random_rows(1, (40,), torch.float64)
        twins = Twins(name, rows, started=True)
        for tensor, place, value in (
            (rows[0][0], 1, torch.nan),
            (rows[0][0], 2, torch.inf),
            (twins.params[0].data, 3, torch.inf),
            (twins.copies[0].data, 3, torch.inf),
        ):
            assert tensor is not None
            tensor[place] = value
        twins.step(float64(1))
        torch.testing.assert_close(
            twins.params[0], twins.copies[0], rtol=1e-12, atol=0, equal_nan=True
        )
        assert twins.params[0][3].isinf()


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "misaligned", "strided", "neg"])
@pytest.mark.parametrize("which", ["rows", "params", "states", "all"])
def test_any_layout(each_engine: str, layout: str, which: str) -> None:
    """Equal layouts or different ones of gradients, parameters and state."""

    def lay(x: Tensor) -> Tensor:
        if layout == "transposed":
            return torch.empty(x.shape[::-1], dtype=x.dtype).permute(3, 2, 1, 0).copy_(x)
        if layout == "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        if layout == "misaligned":
            return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
        if layout == "strided":
            return torch.empty(*x.shape, 2, dtype=x.dtype)[..., 0].copy_(x)
        return torch._neg_view(-x)

    rows: Rows = [[torch.randn(2, 3, 4, 5).double(), torch.randn(2, 1, 3, 7).double()]] * 2
    if which in ("rows", "all"):
        rows = [[None if g is None else lay(g) for g in row] for row in rows]
    twins = Twins("amsgrad", rows, started=True)
    if which in ("params", "all"):
        for param in twins.params:
            param.data = lay(param.data)
    if which in ("states", "all"):
        for param in twins.params:
            for key in KEYS & set(twins.inner.state[param]):
                twins.inner.state[param][key] = lay(twins.inner.state[param][key])
    twins.step(float64(0.5, 2))
    twins.check()


@pytest.mark.parametrize("scale", [0.25, 0.0])
def test_scale(each_engine: str, scale: float) -> None:
    grads, weights = random_rows(2, (33, 200), torch.float64), float64(1, 2)
    combined = [g for g in weighted_sum(grads, scale * weights + 0.0) if g is not None]
    found, expected, buffers = ([torch.ones_like(g) for g in combined] for _ in range(3))
    more: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "maximize": True}
    more["scale"] = torch.tensor(scale, dtype=torch.float64)
    fused_ops.sgd_(found, grads, weights, buffers, **more)
    for param, buffer, grad in zip(expected, buffers, combined, strict=True):
        close(buffer, 0.9 - grad)
        close(found.pop(0), param - 0.1 * (0.9 - grad))


def test_an_unreached_tensor_is_left_alone(each_engine: str) -> None:
    rows: Rows = [[None, torch.ones(3)], [None, None]]
    params, means, squares, largest = (tensors() for _ in range(4))
    steps = [torch.tensor(4.0), torch.tensor(4.0)]
    state = (means, squares, largest, steps)
    fused_ops.adam_(params, rows, float64(1, 1), *state, lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8)
    for found, expected in zip((params, means, squares, largest), [tensors()] * 4, strict=True):
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
        assert (found[1] != expected[1]).all() or found is largest
    assert [step.item() for step in steps] == [4, 5]


def test_float64_steps(each_engine: str) -> None:
    """torch counts in float64 where that is the default type."""
    twins = Twins("adam", random_rows(2, (9, 40), torch.float64), started=True)
    for param in twins.params:
        twins.inner.state[param]["step"] = twins.inner.state[param]["step"].double()
    twins.step(float64(1, 1))
    for param, twin in zip(twins.params, twins.copies, strict=True):
        close(param, twin)
        assert twins.inner.state[param]["step"].dtype == torch.float64


def test_versions_are_counted(each_engine: str) -> None:
    """A graph that has saved a parameter must notice the step."""
    rows = random_rows(1, (8,), torch.float64)
    twins = Twins("adam", rows, started=True)
    param = twins.params[0]
    loss = param.square().sum()
    twins.step(float64(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_any_number_of_threads() -> None:
    """The same bits on one thread and on three."""
    found = []
    for threads in (1, 3):
        twins = Twins("adamw", random_rows(5, (70000, 3, 0, 50001)), started=True)
        torch.set_num_threads(threads)
        try:
            twins.step(float64(1, 2, 3, 0, -1))
        finally:
            torch.set_num_threads(1)
        twins.check()
        found.append(twins.params)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


# Wrong inputs


def tensors(count: int = 2) -> list[Tensor]:
    return [torch.full((3,), float(t + 1)) for t in range(count)]


def expanded() -> list[Tensor]:
    return [torch.ones(3), torch.ones(1).expand(3)]


WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("params", (), TypeError, r"params: expected a list of tensors, found tuple"),
    ("params", tensors(1), ValueError, r"params: expected 2 entries.*found 1"),
    ("params", [torch.ones(3), None], TypeError, r"params\[1\]: expected a tensor"),
    ("params", [torch.ones(3), torch.ones(4)], ValueError, r"params\[1\]: expected"),
    ("params", [torch.ones(3), torch.ones(3).double()], ValueError, r"params\[1\]: expected"),
    ("params", expanded(), ValueError, r"params\[1\]: expected memory of its own"),
    ("exp_avgs", tensors(3), ValueError, r"exp_avgs: expected 2 entries.*found 3"),
    ("exp_avgs", expanded(), ValueError, r"exp_avgs\[1\]: expected memory of its own"),
    ("exp_avg_sqs", [torch.ones(3), 1.0], TypeError, r"exp_avg_sqs\[1\]: expected a tensor"),
    ("max_exp_avg_sqs", [torch.ones(3)] * 3, ValueError, r"max_exp_avg_sqs: expected 2"),
    ("steps", [torch.tensor(0.0)], ValueError, r"steps: expected 2 entries.*found 1"),
    ("steps", [torch.tensor(0.0), 3], TypeError, r"steps\[1\]: expected a tensor, found int"),
    ("steps", [torch.tensor(0.0), torch.tensor(3)], ValueError, r"steps\[1\]: expected one num"),
    ("steps", [torch.tensor(0.0), torch.zeros(2)], ValueError, r"steps\[1\]: expected one num"),
    ("weights", [1.0], TypeError, r"weights: expected a tensor, found list"),
    ("weights", float64(1, 2), ValueError, r"weights: expected \[1\]"),
    ("scale", 1.0, TypeError, r"scale: expected a tensor, found float"),
    ("scale", torch.tensor(1.0), ValueError, r"scale: expected"),
    ("scale", float64(1), ValueError, r"scale: expected"),
]


@pytest.mark.parametrize(("argument", "bad", "error", "message"), WRONG)
def test_wrong_input_changes_nothing(
    each_engine: str, argument: str, bad: Any, error: type[Exception], message: str
) -> None:
    good: dict[str, Any] = {
        "params": tensors(),
        "task_grads": [tensors()],
        "weights": float64(1),
        "exp_avgs": tensors(),
        "exp_avg_sqs": tensors(),
        "max_exp_avg_sqs": tensors(),
        "steps": [torch.tensor(1.0), torch.tensor(2.0)],
        "scale": None,
    }
    given = {**good, argument: bad}
    before = copy.deepcopy(given)
    with pytest.raises(error, match=message):
        fused_ops.adam_(**given, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8)
    torch.testing.assert_close(given, before, rtol=0, atol=0)


def test_wrong_sgd(each_engine: str) -> None:
    calls: list[Callable[[], None]] = [
        lambda: fused_ops.sgd_(tensors(), [tensors()], float64(1), tensors(1), lr=0.1),
        lambda: fused_ops.sgd_(tensors(), [tensors()], float64(1), torch.ones(2), lr=0.1),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="momentum_buffers: expected"):
            call()
