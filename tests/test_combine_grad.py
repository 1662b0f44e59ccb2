"""``combine_``: what becomes of ``p.grad``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend
from kernel_cases import DTYPES, ENGINES, assert_same, engine, float64
from torch import Tensor, nn

from mtlfast import ops

ONE_TWO = float64(1, 2)


def integers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).to(dtype)


def grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_creates_overwrites_and_accumulates(name: str, dtype: torch.dtype) -> None:
    shapes = ((), (5,), (0,), (7, 9), (2, 3, 4, 5), (1500,))
    params: list[Tensor] = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    rows = [[integers(*s, dtype=dtype, seed=k) for s in shapes] for k in range(2)]
    expected = [one + 2 * two for one, two in zip(*rows, strict=True)]
    with engine(name):
        ops.combine_(params, rows, ONE_TWO)
        assert_same([p.grad for p in params], expected)
        assert not any(grad(p).requires_grad for p in params)
        kept = [(grad(p), grad(p).data_ptr(), grad(p)._version) for p in params]

        ops.combine_(params, rows, ONE_TWO, accumulate=True)
        assert_same([p.grad for p in params], [2 * d for d in expected])
        ops.combine_(params, rows, ONE_TWO, accumulate=False)
        assert_same([p.grad for p in params], expected)
        for param, (before, address, version) in zip(params, kept, strict=True):
            assert param.grad is before
            assert before.data_ptr() == address
            assert before._version >= version + 2

        params[1].grad = params[3].grad = None
        ops.combine_(params, rows, ONE_TWO, accumulate=True)
        factors = [2, 1, 2, 1, 2, 2]
        assert_same(
            [p.grad for p in params], [f * d for f, d in zip(factors, expected, strict=True)]
        )


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", ENGINES)
def test_what_no_task_reaches_is_left_alone(name: str, accumulate: bool) -> None:
    params: list[Tensor] = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    params[1].grad = torch.full((3,), 7.0)
    version = grad(params[1])._version
    ones = torch.ones(3)
    with engine(name):
        ops.combine_(params, [[None, None, ones, None]] * 2, ONE_TWO, accumulate=accumulate)
        assert params[0].grad is params[3].grad is None
        assert_same(params[1].grad, torch.full((3,), 7.0))
        assert grad(params[1])._version == version
        assert_same(params[2].grad, 3 * ones)
        ops.combine_([], [[], []], ONE_TWO, accumulate=accumulate)


@pytest.mark.parametrize("name", ENGINES)
def test_weights_of_zero_make_a_zero_gradient(name: str) -> None:
    """A reached parameter gets zeros, not None: the optimizer's decay and momentum go on."""
    params: list[Tensor] = [nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(40))]
    params[1].grad = torch.full((40,), 7.0)
    rows = [[torch.full((40,), float("nan"))] * 2] * 2
    with engine(name):
        ops.combine_(params, rows, float64(0, 0), accumulate=True)
        assert_same([p.grad for p in params], [torch.zeros(40), torch.full((40,), 7.0)])
        ops.combine_(params, rows, float64(0, 0))
        assert_same([p.grad for p in params], [torch.zeros(40)] * 2)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def turned(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


def every_other(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, -1)[..., ::2]


LAYOUTS: list[Callable[[Tensor], Tensor]] = [torch.clone, channels_last, turned, every_other]


@pytest.mark.parametrize("of_rows", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("of_param", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("name", ENGINES)
def test_layouts(
    name: str, of_param: Callable[[Tensor], Tensor], of_rows: Callable[[Tensor], Tensor]
) -> None:
    param = nn.Parameter(of_param(torch.ones(3, 4, 5, 6)))
    values = integers(2, 3, 4, 5, 6)
    rows = [[of_rows(v)] for v in values]
    expected = values[0] + 2 * values[1]
    with engine(name):
        ops.combine_([param], rows, ONE_TWO)
        assert_same(param.grad, expected)
        if of_param is not every_other:
            assert grad(param).stride() == param.stride()
        for of_grad in LAYOUTS:
            param.grad = of_grad(torch.full_like(expected, 5))
            stride, address = param.grad.stride(), param.grad.data_ptr()
            for accumulate in (True, False):
                version = param.grad._version
                ops.combine_([param], rows, ONE_TWO, accumulate=accumulate)
                assert_same(param.grad, expected + 5 if accumulate else expected)
                assert (param.grad.stride(), param.grad.data_ptr()) == (stride, address)
                assert param.grad._version > version


@pytest.mark.parametrize("name", ENGINES)
def test_a_row_may_be_the_gradient_itself(name: str) -> None:
    """Backward into ``p.grad`` and using it as the last task's gradient saves K - 1 copies."""
    for accumulate, factor in ((False, 1), (True, 2)):
        param = nn.Parameter(torch.ones(5000))
        first, second = integers(2, 5000)
        param.grad = second.clone()
        with engine(name):
            ops.combine_([param], [[first], [param.grad]], float64(1, 1), accumulate=accumulate)
        assert_same(param.grad, first + factor * second)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", ENGINES)
def test_large_gradients(name: str, accumulate: bool) -> None:
    """Past the cache, where stores are streamed; part of it new, part of it there."""
    size = (1 << 21) + 3
    values = integers(2, size)
    params: list[Tensor] = [nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(77))]
    buffer = torch.ones(size + 1)
    params[0].grad = buffer[1:]
    expected = values.sum(0)
    rows = [[v, v[:77]] for v in values]
    with engine(name):
        ops.combine_(params, rows, float64(1, 1), accumulate=accumulate)
    assert torch.equal(grad(params[0]), expected + 1 if accumulate else expected)
    assert torch.equal(grad(params[1]), expected[:77])
    assert buffer[0] == 1


def bad_row(state: dict[str, Any]) -> None:
    state["rows"][1][2] = torch.ones(4)


def bad_weights(state: dict[str, Any]) -> None:
    state["weights"] = ONE_TWO.float()


def bad_param(state: dict[str, Any]) -> None:
    state["params"][2] = nn.Parameter(torch.ones(4))


def no_param(state: dict[str, Any]) -> None:
    state["params"][2] = None


def overlapping_grad(state: dict[str, Any]) -> None:
    state["params"][2].grad = torch.zeros(1).expand(3)


def grad_in_graph(state: dict[str, Any]) -> None:
    state["params"][2].grad = torch.ones(3, requires_grad=True)


def inference_grad(state: dict[str, Any]) -> None:
    with torch.inference_mode():
        state["params"][2].grad = torch.ones(3)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (bad_row, r"task_grads\[1\]\[2\]: "),
        (bad_weights, "weights: "),
        (bad_param, r"params\[2\]: "),
        (no_param, r"params\[2\]: "),
        (overlapping_grad, r"params\[2\]\.grad: "),
        (grad_in_graph, r"params\[2\]\.grad: "),
        (inference_grad, r"params\[2\]\.grad: "),
    ],
)
@pytest.mark.parametrize("name", BACKENDS)
def test_an_error_changes_nothing(
    name: str, spoil: Callable[[dict[str, Any]], None], match: str, accumulate: bool
) -> None:
    params: list[Tensor] = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    params[0].grad = torch.full((3,), 7.0)
    rows = [[torch.ones(3) for _ in range(3)] for _ in range(2)]
    state: dict[str, Any] = {"params": params, "rows": rows, "weights": ONE_TWO}
    spoil(state)
    version = params[0].grad._version
    with backend(name), pytest.raises((TypeError, ValueError), match=match):
        ops.combine_(state["params"], state["rows"], state["weights"], accumulate=accumulate)
    assert_same(params[0].grad, torch.full((3,), 7.0))
    assert params[0].grad._version == version
    assert params[1].grad is None
