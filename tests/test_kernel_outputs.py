"""Wrong weights, outputs and parameters: an error from both backends, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend
from kernel_cases import NO_MEMORY, ONES, TWO, Rows, assert_same, calls, fake, float64, lists_with
from torch import Tensor

from mtlfast import ops

WRONG_WEIGHTS: list[tuple[Any, type[Exception]]] = [
    ([1.0, 2.0], TypeError),
    (None, TypeError),
    (TWO.float(), ValueError),
    (TWO.long(), ValueError),
    (TWO[:1], ValueError),
    (float64(1, 2, 3), ValueError),
    (TWO[None], ValueError),
    (torch.tensor(1.0).double(), ValueError),
]


@pytest.mark.parametrize(("weights", "error"), WRONG_WEIGHTS, ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_weights(name: str, weights: Any, error: type[Exception]) -> None:
    for function in calls(lambda: lists_with(ONES), weights)[1:]:
        with backend(name), pytest.raises(error, match=r"^weights: expected "):
            function()


@pytest.mark.parametrize(
    "make",
    [lambda: TWO.to("meta"), lambda: TWO.to_sparse(), lambda: fake(2, torch.float64)],
)
def test_weights_without_memory(make: Callable[[], Tensor]) -> None:
    for function in calls(lambda: lists_with(ONES), make())[1:]:
        with (
            backend("native"),
            pytest.raises((TypeError, ValueError), match=r"^weights: expected "),
        ):
            function()


@pytest.mark.parametrize("name", BACKENDS)
def test_weights_of_any_layout(name: str) -> None:
    apart = torch.full((6,), 9.0).double()[1::3].copy_(TWO)
    negative = torch.complex(torch.zeros(2).double(), -TWO).conj().imag
    graph = TWO.clone().requires_grad_()
    alone = torch.complex(torch.zeros(1).double(), -float64(2)).conj().imag
    with backend(name):
        for weights in (apart, negative, graph):
            found = ops.combine([[ONES], [10 * ONES]], weights)
            assert_same(found, [21 * ONES])
            assert found[0] is not None
            assert not found[0].requires_grad
        assert_same(ops.combine([[ONES]], alone), [2 * ONES])


# Outputs


def overlapping() -> Tensor:
    return torch.zeros(1).expand(3)


def leaf() -> Tensor:
    return torch.zeros(3, requires_grad=True)


def from_inference() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(3)


WRONG_OUT: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: None, TypeError, "expected a tensor, found NoneType"),
    (lambda: 5, TypeError, "expected a tensor, found int"),
    (lambda: torch.zeros(2), ValueError, r"expected .*\[3\].* found .*\[2\]"),
    (lambda: torch.zeros(1, 3), ValueError, r"expected .*\[3\].* found .*\[1, 3\]"),
    (lambda: torch.zeros(3).double(), ValueError, "expected .* found "),
    (lambda: torch.zeros(3).to("meta"), ValueError, "expected .* found .*meta"),
    (overlapping, ValueError, "expected .* found .*overlap"),
    (leaf, ValueError, "expected .* found .*requires grad"),
    (from_inference, ValueError, "expected .* found an inference tensor"),
]


@pytest.mark.parametrize(("make", "error", "match"), WRONG_OUT)
@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_out(name: str, make: Callable[[], Any], error: type[Exception], match: str) -> None:
    first, unreached = torch.full((3,), 7.0), torch.full((3,), 8.0)
    version = first._version
    rows: Rows = [[ONES, None, ONES], [ONES, None, None]]
    with backend(name), pytest.raises(error, match=r"^out\[2\]: " + match):
        ops.combine(rows, TWO, [first, unreached, make()])
    assert_same([first, unreached], [torch.full((3,), 7.0), torch.full((3,), 8.0)])
    assert first._version == version


@pytest.mark.parametrize("make", NO_MEMORY)
def test_out_without_memory(make: Callable[[], Tensor]) -> None:
    first = torch.full((3,), 7.0)
    with backend("native"):
        with pytest.raises((TypeError, ValueError), match=r"^out\[1\]: expected a "):
            ops.combine([[ONES, ONES]], float64(1), [first, make()])
        with pytest.raises((TypeError, ValueError), match=r"^params\[1\]: expected a "):
            ops.combine_([first, make()], [[ONES, ONES]], float64(1))
    assert_same(first, torch.full((3,), 7.0))
    assert first.grad is None


@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_numbers_of_outputs(name: str) -> None:
    with backend(name):
        for count in (0, 1, 3):
            targets = [torch.zeros(3) for _ in range(count)]
            match = rf"expected 2 entries, as in task_grads\[0\], found {count}"
            with pytest.raises(ValueError, match="^out: " + match):
                ops.combine([[ONES, ONES]], float64(1), [*targets])
            with pytest.raises(ValueError, match="^params: " + match):
                ops.combine_(targets, [[ONES, ONES]], float64(1))
        wrong: Any
        for wrong in ((torch.zeros(3), torch.zeros(3)), torch.zeros(2, 3), 5):
            with pytest.raises(TypeError, match=r"^out: expected a list"):
                ops.combine([[ONES, ONES]], float64(1), wrong)
            with pytest.raises(TypeError, match=r"^params: expected a list"):
                ops.combine_(wrong, [[ONES, ONES]], float64(1))
