"""gramian, combine and aggregate with torch, NumPy and other DLPack arrays."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cases import (
    BACKENDS,
    ROWS,
    Row,
    backend,
    batches,
    direction,
    random_jacobian,
    random_losses,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_same
from torch import Tensor
from torch.utils.dlpack import from_dlpack

import mtlfast
from mtlfast import CAGrad, Constant, GradNorm, PCGrad, ops

NAN = float("nan")


class FakeCupy:
    """An array with DLPack and nothing else; it refuses NumPy, as CuPy does."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed")


FakeCupy.__module__ = "fake_cupy.core"


@pytest.fixture(autouse=True)
def _fake_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("fake_cupy")
    module.from_dlpack = lambda x: FakeCupy(from_dlpack(x))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_cupy", module)


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


KINDS = ("torch", "numpy", "read-only", "dlpack")


def as_kind(kind: str, tensor: Tensor) -> Any:
    """The same numbers, and the same memory, as another kind of array."""
    if kind == "torch":
        return tensor
    if kind == "dlpack":
        return FakeCupy(tensor)
    array = tensor.numpy()
    if kind == "read-only":
        array = array.view()
        array.flags.writeable = False
    return array


def as_torch(kind: str, array: Any) -> Tensor:
    """The answer as a tensor, if it is of the kind that it should be."""
    types = {"torch": Tensor, "dlpack": FakeCupy}
    assert type(array) is types.get(kind, np.ndarray)
    if kind == "dlpack":
        array = from_dlpack(array)
    tensor: Tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
    return tensor


def task_grads(num_tasks: int, dtype: torch.dtype) -> list[list[Tensor | None]]:
    """Ragged arrays, with holes and an empty last one."""
    generator = torch.Generator().manual_seed(num_tasks)
    shapes = [(3, 4), (), (17,), (2, 0), (5,), (0,)]
    rows: list[list[Tensor | None]] = [
        [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        for _ in range(num_tasks)
    ]
    rows[-1][2] = None
    for row in rows:
        row[4] = None
    return rows


def flat(rows: list[list[Tensor | None]]) -> Tensor:
    sizes = [0 if x is None else x.numel() for x in rows[0]]
    parts = [
        [torch.zeros(n) if x is None else x.reshape(-1) for x, n in zip(row, sizes, strict=True)]
        for row in rows
    ]
    return torch.stack([torch.cat([x.double() for x in row]) for row in parts])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("num_tasks", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_gramian_and_combine(kind: str, num_tasks: int, dtype: torch.dtype) -> None:
    """Kind in, kind out; the numbers are those of the flat matrix."""
    rows = task_grads(num_tasks + 1, dtype)
    jacobian = flat(rows)
    arrays = [[None if x is None else as_kind(kind, x) for x in row] for row in rows]
    found = as_torch(kind, mtlfast.gramian(arrays))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, jacobian @ jacobian.T, rtol=1e-9, atol=1e-9)

    weights = torch.linspace(-1, 1, num_tasks + 1, dtype=torch.float64)
    expected = (weights @ jacobian).to(dtype)
    for given_weights in (
        weights,
        weights.tolist(),
        tuple(weights.tolist()),
        as_kind(kind, weights),
    ):
        combined = mtlfast.combine(arrays, given_weights)
        assert combined[4] is None
        parts = [as_torch(kind, x) for x in combined if x is not None]
        assert [x.shape for x in parts] == [x.shape for x in rows[0] if x is not None]
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(
            torch.cat([x.reshape(-1) for x in parts]), expected, rtol=eps, atol=eps**2
        )


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_not_copied(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels get lies where the caller's arrays lie; nothing of it is changed."""
    rows = [[torch.full((6,), k + 1.0), torch.full((2, 3), k - 1.0)] for k in range(3)]
    kept = [[x.clone() for x in row] for row in rows]
    seen: list[list[int]] = []

    def spy_on(original: Any) -> Any:
        def spy(rows: Any, *args: Any) -> Any:
            seen.extend([[x.data_ptr() for x in row] for row in rows])
            return original(rows, *args)

        return spy

    for name in ("gramian", "combine"):
        monkeypatch.setattr(ops, name, spy_on(getattr(ops, name)))
    arrays = [[as_kind(kind, x) for x in row] for row in rows]
    places = [[x.data_ptr() for x in row] for row in rows]
    mtlfast.gramian(arrays)
    mtlfast.combine(arrays, [1.0, 2.0, 3.0])
    assert seen == places * 2
    seen.clear()
    jacobian = torch.randn(3, 5)
    mtlfast.aggregate(as_kind(kind, jacobian), "pcgrad")
    assert seen == [[row.data_ptr()] for row in jacobian] * 2
    assert_same(rows, kept)


@pytest.mark.parametrize("kind", ["torch", "numpy", "dlpack"])
def test_out(kind: str) -> None:
    rows = task_grads(3, torch.float32)
    targets = [None if x is None else torch.full_like(x, NAN) for x in rows[0]]
    targets[2] = torch.full((34,), NAN)[::2]  # with gaps
    arrays = [[None if x is None else as_kind(kind, x) for x in row] for row in rows]
    out = [None if x is None else as_kind(kind, x) for x in targets]
    given_out = list(out)
    found = mtlfast.combine(arrays, [1.0, -2.0, 0.5], out)
    assert found is out
    assert all(x is y for x, y in zip(out, given_out, strict=True))
    expected = mtlfast.combine(rows, [1.0, -2.0, 0.5])
    assert_same([x for x in targets if x is not None], [x for x in expected if x is not None])


def test_answers_are_not_differentiable() -> None:
    rows = [[torch.ones(3, requires_grad=True), None], [torch.ones(3, requires_grad=True), None]]
    weights = torch.ones(2, requires_grad=True)
    assert not mtlfast.gramian(rows).requires_grad
    (combined, unreached) = mtlfast.combine(rows, weights)
    assert combined is not None
    assert not combined.requires_grad
    assert unreached is None
    assert not mtlfast.aggregate(torch.ones(2, 3, requires_grad=True), "cagrad").requires_grad


def test_zero_weight_does_not_read() -> None:
    rows = [[np.array([NAN, 1.0, np.inf])], [np.array([1.0, 2.0, 3.0])]]
    (found,) = mtlfast.combine(rows, [0.0, 2.0])
    np.testing.assert_array_equal(found, [2.0, 4.0, 6.0])
    (spread,) = mtlfast.combine(rows, np.array([1.0, 0.0]))
    np.testing.assert_array_equal(spread, [NAN, 1.0, np.inf])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_aggregate(row: Row, kind: str) -> None:
    """The combined gradient over three steps, with the state and the inputs of the method."""
    torch.manual_seed(0)
    found = row.make(4)
    answers = []
    for t in range(3):
        jacobian = batches(found, random_jacobian(4, t))
        losses = as_kind(kind, random_losses(4, t))
        answers.append(mtlfast.aggregate(as_kind(kind, jacobian), found, losses))
        row.after(found)
    torch.manual_seed(0)
    expected = row.make(4)
    for t, answer in enumerate(answers):
        combined = direction(row, expected, random_jacobian(4, t), random_losses(4, t), None)
        torch.testing.assert_close(as_torch(kind, answer), combined, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_aggregate_keeps_the_dtype(dtype: torch.dtype) -> None:
    jacobian = random_jacobian(4, 0).to(dtype)
    exact = mtlfast.aggregate(jacobian.double(), CAGrad(0.4))
    found = mtlfast.aggregate(jacobian, CAGrad(0.4))
    assert found.dtype == dtype
    assert_same(found, exact.to(dtype))


def test_aggregate_takes_strided_and_listed_rows() -> None:
    jacobian = random_jacobian(3, 0)
    expected = mtlfast.aggregate(jacobian, "cagrad")
    wide = torch.zeros(6, 20, dtype=torch.float64)
    wide[::2, ::2] = jacobian
    for given_rows in (jacobian.T.contiguous().T, wide[::2, ::2], jacobian.tolist()):
        found = mtlfast.aggregate(given_rows, "cagrad")
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert mtlfast.aggregate(torch.ones(3, 0), "pcgrad").shape == (0,)
    expanded = np.broadcast_to(np.ones(4), (2, 4))
    np.testing.assert_array_equal(mtlfast.aggregate(expanded, "sum"), [2.0] * 4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6),
    weights=st.lists(st.floats(-10, 10), min_size=2, max_size=2),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_numpy_agrees_with_numpy(
    values: list[float], weights: list[float], dtype: npt.DTypeLike
) -> None:
    jacobian = np.array(values, dtype=dtype).reshape(2, 3)
    rows = [[row[:1], row[1:]] for row in jacobian]
    exact = jacobian.astype(np.float64)
    np.testing.assert_allclose(mtlfast.gramian(rows), exact @ exact.T, rtol=1e-12, atol=1e-9)
    combined: list[Any] = mtlfast.combine(rows, weights)
    found = np.concatenate(combined)
    assert found.dtype == dtype
    scale = float(np.abs(weights) @ np.abs(exact).max(1))
    tolerance = float(np.finfo(dtype).eps) * scale
    np.testing.assert_allclose(found, weights @ exact, rtol=0, atol=tolerance)


X, Y = np.ones(3), torch.ones(3)
MATRIX = np.ones((2, 3))


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (mtlfast.gramian, ([],), ValueError, "task_grads: expected at least one task, found none"),
        (mtlfast.gramian, (3,), TypeError, "task_grads: expected a sequence of K sequences"),
        (mtlfast.gramian, ("ab",), TypeError, "task_grads: expected a sequence of K sequences"),
        (mtlfast.gramian, (torch.ones(2, 3),), TypeError, "task_grads"),
        (mtlfast.gramian, ([3],), TypeError, r"task_grads\[0\]: expected a sequence of tensors"),
        (mtlfast.gramian, ([Y, Y],), TypeError, r"task_grads\[0\]: expected a sequence of tens"),
        (mtlfast.gramian, ([[X], [X, X]],), ValueError, r"task_grads\[1\]: expected 1 .*, found 2"),
        (mtlfast.gramian, ([[Y], ["a"]],), TypeError, r"task_grads\[1\]\[0\]: .*, found str"),
        (mtlfast.gramian, ([[Y, 2.0]],), TypeError, r"task_grads\[0\]\[1\]: .*, found float"),
        (mtlfast.gramian, ([[X], [X[:2]]],), ValueError, r"\[1\]\[0\]: .*\[3\].*, found .*\[2\]"),
        (mtlfast.gramian, ([[Y], [Y.double()]],), TypeError, r"\[1\]\[0\]: expected .*, found"),
        (
            mtlfast.gramian,
            ([[X.astype(int)]],),
            TypeError,
            r"\[0\]\[0\]: expected float32.*, found",
        ),
        (mtlfast.gramian, ([[X + 1j]],), TypeError, r"\[0\]\[0\]: expected float32, .*, found"),
        (
            mtlfast.gramian,
            ([[Y.to_sparse()]],),
            TypeError,
            r"\[0\]\[0\]: expected a dense .*, found",
        ),
        (mtlfast.gramian, ([[Y], [Y.to("meta")]],), ValueError, r"\[1\]\[0\]: .*, found meta"),
        (
            mtlfast.combine,
            ([[X]], [1.0, 2.0]),
            ValueError,
            r"weights: expected .*\[1\].*, found .*2",
        ),
        (mtlfast.combine, ([[X]], [[1.0]]), ValueError, r"weights: expected .*, found .*\[1, 1\]"),
        (mtlfast.combine, ([[X]], 1.0), ValueError, r"weights: expected .*, found"),
        (mtlfast.combine, ([[X]], "a"), TypeError, "weights: expected .*, found str"),
        (mtlfast.combine, ([[X]], None), TypeError, "weights: expected .*, found NoneType"),
        (mtlfast.combine, ([[X]], [1j]), TypeError, "weights: expected .*, found .*complex"),
        (mtlfast.combine, ([[X]], [1.0], []), ValueError, "out: expected 1 entries.*, found 0"),
        (mtlfast.combine, ([[X]], [1.0], [None]), TypeError, r"out\[0\]: .*, found NoneType"),
        (mtlfast.combine, ([[X]], [1.0], [X[:2]]), ValueError, r"out\[0\]: .*\[3\].*, found \[2\]"),
        (
            mtlfast.combine,
            ([[Y]], [1.0], [Y.double()]),
            ValueError,
            r"out\[0\]: expected .*, found",
        ),
        (mtlfast.aggregate, (X, "sum"), ValueError, r"J: expected shape \[K, P\].*, found \[3\]"),
        (mtlfast.aggregate, (MATRIX[:0], "sum"), ValueError, r"J: expected .*, found \[0, 3\]"),
        (mtlfast.aggregate, (MATRIX > 0, "sum"), TypeError, "J: expected .*, found torch.bool"),
        (mtlfast.aggregate, (MATRIX * 1j, "sum"), TypeError, "J: expected .*, found torch.complex"),
        (mtlfast.aggregate, ("abc", "sum"), TypeError, "J: expected .*, found str"),
        (mtlfast.aggregate, (None, "sum"), TypeError, "J: expected .*, found NoneType"),
        (mtlfast.aggregate, (MATRIX, "pcgrd"), ValueError, "weighting: expected .*, found 'pcgrd'"),
        (mtlfast.aggregate, (MATRIX, GradNorm()), ValueError, "losses: .*, found None"),
        (mtlfast.aggregate, (MATRIX, GradNorm(), X), ValueError, r"losses: .*\[2\], found \[3\]"),
        (mtlfast.aggregate, (MATRIX, Constant([1.0])), ValueError, "weights: expected .*, found 1"),
    ],
)
def test_wrong_arguments(
    function: Any, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*arguments)


def test_wrong_inputs_of_the_method() -> None:
    with pytest.raises(ValueError, match=r"^order: expected .*, found"):
        mtlfast.aggregate(MATRIX, PCGrad(), order=np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(TypeError, match=r"^order: CAGrad expected only"):
        mtlfast.aggregate(MATRIX, CAGrad(), order=np.zeros((2, 2), dtype=np.int64))


def test_read_only_out_is_refused() -> None:
    target = np.zeros(3)
    target.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out\[0\]: expected a writable array, found"):
        mtlfast.combine([[X]], [2.0], [target])
    assert not target.any()
