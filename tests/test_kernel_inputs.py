"""What wrong input gets: the same error from both backends, which names the entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import BACKENDS, backend
from kernel_cases import NO_MEMORY, ONES, TWO, Rows, assert_same, calls, float64, lists_with
from torch import Tensor, nn

from mtlfast import ops


class Plain(Tensor):
    """A subclass that is nothing but a name, as ``nn.Parameter`` is."""


WRONG_LISTS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: None, TypeError, "task_grads: expected a sequence of K sequences"),
    (lambda: 5, TypeError, "task_grads: expected a sequence of K sequences"),
    (lambda: "ab", TypeError, "task_grads: expected a sequence of K sequences"),
    (lambda: torch.ones(2, 3), TypeError, "task_grads: expected a sequence of K sequences"),
    (lambda: iter([[ONES]]), TypeError, "task_grads: expected a sequence of K sequences"),
    (lambda: {0: [ONES]}, TypeError, "task_grads: expected a sequence of K sequences"),
    (lambda: {(ONES,)}, TypeError, "task_grads: expected a sequence of K sequences"),
    (list, ValueError, "task_grads: expected at least one task, found none"),
    (lambda: [None, [ONES]], TypeError, r"task_grads\[0\]: expected a sequence of tensors"),
    (lambda: [[ONES], 5], TypeError, r"task_grads\[1\]: expected a sequence of tensors"),
    (lambda: [[ONES], "a"], TypeError, r"task_grads\[1\]: expected a sequence of tensors"),
    (lambda: [[ONES], ONES], TypeError, r"task_grads\[1\]: expected a sequence of tensors"),
    (lambda: [ONES, ONES], TypeError, r"task_grads\[0\]: expected a sequence of tensors"),
    (lambda: [[ONES], iter([ONES])], TypeError, r"task_grads\[1\]: expected a sequence"),
    (
        lambda: [[ONES, ONES], [ONES]],
        ValueError,
        r"task_grads\[1\]: expected 2 entries, as in task_grads\[0\], found 1",
    ),
    (
        lambda: [[], [ONES]],
        ValueError,
        r"task_grads\[1\]: expected 0 entries, as in task_grads\[0\], found 1",
    ),
]

DTYPE = "expected float32, float64, bfloat16 or float16, found "
WRONG_ENTRIES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: "text", TypeError, "expected a tensor or None, found str"),
    (lambda: 1.0, TypeError, "expected a tensor or None, found float"),
    (lambda: np.ones(3, np.float32), TypeError, "expected a tensor or None, found .*ndarray"),
    (lambda: ONES.long(), TypeError, DTYPE),
    (lambda: ONES.bool(), TypeError, DTYPE),
    (lambda: ONES.to(torch.complex64), TypeError, DTYPE),
    (lambda: ONES.to(torch.float8_e4m3fn), TypeError, DTYPE),
    (lambda: ONES.double(), TypeError, "expected .*, as for the other tasks, found "),
    (lambda: ONES.half(), TypeError, "expected .*, as for the other tasks, found "),
    (lambda: ONES[:2], ValueError, r"expected shape \[3\], as for the other tasks, found \[2\]"),
    (lambda: ONES[None], ValueError, r"expected shape \[3\], as .* tasks, found \[1, 3\]"),
    (lambda: ONES.to_sparse(), TypeError, "expected a dense tensor, found layout "),
    (lambda: ONES.to("meta"), ValueError, "expected a tensor on cpu, found meta"),
]


@pytest.mark.parametrize(("make", "error", "match"), WRONG_LISTS)
@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_lists(
    name: str, make: Callable[[], Any], error: type[Exception], match: str
) -> None:
    for function in calls(make, TWO):
        with backend(name), pytest.raises(error, match="^" + match):
            function()


@pytest.mark.parametrize(("make", "error", "match"), WRONG_ENTRIES)
@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_entries(
    name: str, make: Callable[[], Any], error: type[Exception], match: str
) -> None:
    for function in calls(lambda: lists_with(make()), TWO):
        with backend(name), pytest.raises(error, match=r"^task_grads\[1\]\[3\]: " + match):
            function()


@pytest.mark.parametrize("make", NO_MEMORY)
def test_entries_without_memory(make: Callable[[], Tensor]) -> None:
    """What the kernels cannot read is refused; the reference leaves it to torch."""
    for function in calls(lambda: lists_with(make()), TWO):
        with (
            backend("native"),
            pytest.raises((TypeError, ValueError), match=r"^task_grads\[1\]\[3\]: expected a "),
        ):
            function()


def test_functorch_wrappers() -> None:
    def into(out: Tensor) -> Tensor:
        ops.combine([[ONES]], float64(1), [out])
        return out

    def into_grad(param: Tensor) -> Tensor:
        ops.combine_([param], [[ONES]], float64(1))
        return param.sum()

    def weighted(weights: Tensor) -> Tensor:
        return ops.combine([[torch.ones(3)]], weights)[0]  # type: ignore[return-value]

    def inner(x: Tensor) -> Tensor:
        return ops.gramian([[x]]).sum()

    batch = torch.ones(2, 3)
    for function, match in (
        (lambda: torch.vmap(inner)(batch), r"task_grads\[0\]\[0\]"),
        (lambda: torch.func.grad(inner)(ONES), r"task_grads\[0\]\[0\]"),
        (lambda: torch.vmap(into)(batch), r"out\[0\]"),
        (lambda: torch.vmap(into_grad)(batch), r"params\[0\]"),
        (lambda: torch.vmap(weighted)(torch.ones(2, 1).double()), "weights"),
    ):
        with (
            backend("native"),
            pytest.raises(TypeError, match=f"^{match}: expected a plain tensor .*functorch"),
        ):
            function()


@pytest.mark.parametrize("name", BACKENDS)
def test_plain_subclasses_are_tensors(name: str) -> None:
    rows: Rows = [[ONES.as_subclass(Plain), nn.Parameter(ONES.clone())]]
    with backend(name):
        assert_same(ops.gramian(rows), float64(6)[None])
        found = ops.combine(rows, float64(2))
        out: list[Tensor | None] = [torch.zeros(3).as_subclass(Plain), torch.zeros(3)]
        ops.combine(rows, float64(2), out)
        ops.gramian([[torch.zeros(3, requires_grad=True) * 2]])
    for combined in (*found, *out):
        assert combined is not None
        assert_same(combined.as_subclass(Tensor), 2 * ONES)
        assert not combined.requires_grad


@pytest.mark.parametrize("name", BACKENDS)
def test_inference_mode(name: str) -> None:
    with backend(name), torch.inference_mode():
        rows: Rows = [[torch.ones(3)], [torch.ones(3)]]
        assert_same(ops.gramian(rows), torch.full((2, 2), 3.0).double())
        assert_same(ops.combine(rows, TWO, [torch.zeros(3)]), [3 * ONES])
