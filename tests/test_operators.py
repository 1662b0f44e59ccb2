"""The operators behind a graph: what torch demands of one, and what fake kernels know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import BACKENDS, backend, random_jacobian, random_losses, random_orders
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from mtlfast import reference
from mtlfast.operators import fakes
from mtlfast.reference.multi_tensor import likes

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPERATORS = torch.ops.mtlfast

Flat = list["Tensor | None"]


def task_grads(num_tasks: int, dtype: torch.dtype = torch.float32) -> Flat:
    """K rows, one after another: all, some and none of the tasks reach a tensor; one is empty."""
    generator = torch.Generator().manual_seed(num_tasks)
    rows: Flat = []
    for k in range(num_tasks):
        shapes = ((4, 3), (5,), (), (0, 2), (2, 3, 4))
        row: Flat = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        row[1] = row[1] if k % 2 == 0 else None
        row[2] = row[2] if k == num_tasks - 1 else None
        rows += [*row, None]
    return rows


def targets(flat: Flat, num_tasks: int) -> list[Tensor]:
    rows = fakes.split(flat, num_tasks)
    return [torch.empty_like(g) for g in likes(rows) if g is not None]


@pytest.mark.parametrize("num_tasks", [1, 3, 13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gramian(dtype: torch.dtype, num_tasks: int) -> None:
    opcheck(OPERATORS.gramian.default, (task_grads(num_tasks, dtype), num_tasks))


@pytest.mark.parametrize("num_tasks", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_combine(dtype: torch.dtype, num_tasks: int) -> None:
    flat, weights = task_grads(num_tasks, dtype), random_losses(num_tasks, 1)
    opcheck(OPERATORS.combine.default, (flat, num_tasks, weights))
    opcheck(OPERATORS.combine_out.default, (flat, num_tasks, weights, targets(flat, num_tasks)))


def test_requires_grad() -> None:
    flat: Flat = [None if g is None else g.requires_grad_() for g in task_grads(3)]
    weights = random_losses(3, 1).requires_grad_()
    opcheck(OPERATORS.gramian.default, (flat, 3))
    opcheck(OPERATORS.combine.default, (flat, 3, weights))
    results = [OPERATORS.gramian(flat, 3), *OPERATORS.combine(flat, 3, weights)]
    assert not any(result.requires_grad for result in results)


def test_columns() -> None:
    flat = task_grads(4, torch.float64)
    out = targets(flat, 4)
    rng = torch.tensor([7, 3])
    uniform = torch.rand(sum(target.numel() for target in out), dtype=torch.float64)
    leak = torch.rand(4, dtype=torch.float64)
    opcheck(OPERATORS.graddrop_out.default, (flat, 4, None, None, rng, out))
    opcheck(OPERATORS.graddrop_out.default, (flat, 4, leak, uniform, None, out))
    opcheck(OPERATORS.trimmed_mean_out.default, (flat, 4, 1, out))


@pytest.mark.parametrize("name", BACKENDS)
def test_solve(name: str) -> None:
    jacobian = random_jacobian(4, 1)
    gramian, losses = jacobian @ jacobian.T, random_losses(4, 2)
    rng, status = torch.tensor([7, 3]), torch.tensor(1, dtype=torch.int32)
    calls: list[tuple[Any, ...]] = [
        ("cagrad", gramian, [0.4, 0.0, 0.0], None, None, None, None, None, status),
        ("upgrad", gramian, [], None, losses, None, None, None, None),
        ("pcgrad", gramian, [0.0, 0.0], None, None, random_orders(4, 3), None, None, status),
        ("pcgrad", gramian, [0.0, 0.0], None, None, None, rng, None, status),
        (
            "nash_mtl",
            gramian,
            [float("inf")],
            None,
            None,
            None,
            None,
            torch.zeros(4).double(),
            None,
        ),
        ("gls", None, [], losses, None, None, None, None, status),
    ]
    with backend(name):
        for call in calls:
            opcheck(OPERATORS.solve.default, call)


LAYOUTS = {
    "transposed": torch.randn(6, 4).T,
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "strided": torch.randn(6, 8)[:, ::2],
    "expanded": torch.randn(5, 1).expand(5, 3),
    "one": torch.randn(4, 6)[:, 2:3],
    "negated": torch.randn(3, 4, dtype=torch.complex64).conj().imag,
    "negated_dense": torch._neg_view(torch.randn(4, 3).T),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BACKENDS)
def test_layouts(name: str, layout: str) -> None:
    """The fake result is laid out as the kernel's."""
    if (name, layout) == ("reference", "negated_dense"):
        pytest.skip("the reference keeps this layout, the kernels do not")
    first = LAYOUTS[layout]
    flat = [first, torch.randn(first.shape)]
    weights = random_losses(2, 1)
    with backend(name):
        opcheck(OPERATORS.combine.default, (flat, 2, weights))
        (found,) = OPERATORS.combine(flat, 2, weights)
    with FakeTensorMode() as mode:  # opcheck's are copies, negated no more
        (fake,) = OPERATORS.combine(faked(mode, flat), 2, mode.from_tensor(weights))
    assert (fake.shape, fake.stride(), fake.dtype) == (found.shape, found.stride(), found.dtype)


def fails(call: Any, flat: Sequence[Tensor | None], *args: Any) -> tuple[type[Exception], str]:
    with pytest.raises((TypeError, ValueError)) as info:
        call(flat, *args)
    return info.type, str(info.value)


def faked(mode: FakeTensorMode, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [faked(mode, entry) for entry in value]
    return mode.from_tensor(value) if isinstance(value, Tensor) else value


A, B = torch.ones(2, 3), torch.ones(5)
W = torch.ones(2, dtype=torch.float64)
WRONG: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "no tasks": (OPERATORS.gramian, ([], 0)),
    "ragged": (OPERATORS.gramian, ([A, B, A], 2)),
    "shape": (OPERATORS.gramian, ([A, B], 2)),
    "dtype": (OPERATORS.gramian, ([A, A.double()], 2)),
    "no floats": (OPERATORS.gramian, ([A.long()], 1)),
    "shape after None": (OPERATORS.combine, ([A, None, None, A, B, A], 3, torch.ones(3).double())),
    "weights": (OPERATORS.combine, ([A, A], 2, torch.ones(3).double())),
    "weights' dtype": (OPERATORS.combine, ([A, A], 2, torch.ones(2))),
    "target": (OPERATORS.combine_out, ([A, A], 2, W, [B])),
    "target's dtype": (OPERATORS.combine_out, ([A, A], 2, W, [A.double()])),
    "target overlaps": (OPERATORS.combine_out, ([A, A], 2, W, [A[:, :1].expand(2, 3)])),
    "one target more": (OPERATORS.combine_out, ([A, A], 2, W, [A.clone(), B])),
    "rng": (OPERATORS.graddrop_out, ([A, A], 2, None, None, None, [A.clone()])),
    "leak": (OPERATORS.graddrop_out, ([A, A], 2, W[:1], None, torch.zeros(2).long(), [A.clone()])),
    "uniform": (OPERATORS.graddrop_out, ([A, A], 2, None, W, None, [A.clone()])),
    "trim_number": (OPERATORS.trimmed_mean_out, ([A, A], 2, 1, [A.clone()])),
}
ABSENT = [None] * 4
WRONG_SOLVES: dict[str, tuple[Any, ...]] = {
    "nothing": (None, [], *ABSENT, None, None),
    "gramian": (torch.ones(2, 3).double(), [], *ABSENT, None, None),
    "empty": (torch.ones(0, 0).double(), [], *ABSENT, None, None),
    "gramian's dtype": (torch.eye(2), [], *ABSENT, None, None),
    "inputs": (torch.eye(2).double(), [], None, torch.ones(3).double(), None, None, None, None),
    "rng": (torch.eye(2).double(), [], *ABSENT[:3], torch.ones(3).long(), None, None),
    "order": (torch.eye(2).double(), [], None, None, torch.ones(2).long(), None, None, None),
    "status": (torch.eye(2).double(), [], *ABSENT, None, torch.zeros(())),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    """What the kernel refuses, the fake kernel refuses as well, by the same kind of error."""
    operator, (flat, *args) = WRONG[case]
    kind, message = fails(operator, flat, *args)
    with FakeTensorMode() as mode:
        fake_kind, fake_message = fails(operator, faked(mode, flat), *faked(mode, args))
    assert fake_kind is kind
    assert fake_message.split(":")[0] == message.split(":")[0]


@pytest.mark.parametrize("case", WRONG_SOLVES)
def test_wrong_solves(case: str) -> None:
    args = WRONG_SOLVES[case]
    kind, message = fails(OPERATORS.solve, "upgrad", *args)  # type: ignore[arg-type]
    with FakeTensorMode() as mode:
        fake_kind, fake_message = fails(OPERATORS.solve, "upgrad", *faked(mode, args))  # type: ignore[arg-type]
    assert fake_kind is kind
    assert fake_message.split(":")[0] == message.split(":")[0]


def test_no_tensor() -> None:
    """No task reaches anything: nothing that a device could be read from."""
    flat = [None] * 4
    torch.testing.assert_close(OPERATORS.gramian(flat, 2), torch.zeros(2, 2).double())
    assert OPERATORS.combine(flat, 2, W) == []
    with FakeTensorMode():
        assert OPERATORS.gramian(flat, 2).shape == (2, 2)


def test_backend_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator runs on the backend that is set when it runs."""
    monkeypatch.setattr(reference, "gramian", lambda rows: torch.full((len(rows),) * 2, 7.0))
    torch.testing.assert_close(OPERATORS.gramian([B, B], 2), torch.full((2, 2), 5.0).double())
    with backend("reference"):
        torch.testing.assert_close(OPERATORS.gramian([B, B], 2), torch.full((2, 2), 7.0))
