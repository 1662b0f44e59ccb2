"""The kernels that work column by column, against their references and on awkward memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import (
    DTYPES,
    ENGINES,
    ISAS,
    SIZES,
    Rows,
    assert_same,
    engine,
    flatten,
    float64,
    random_rows,
)
from torch import Tensor, nn

from mtlfast import column_ops, reference

Out = list["Tensor | None"]
MANY = (1 << 21) + 777  # columns that are written past the cache


def rng(counter: int = 3) -> Tensor:
    return torch.tensor([-7, counter])


def leaks(num_tasks: int) -> Tensor:
    """``[K]`` of 1, 1/2, 1/4, 1/8 and 0: products with any entry are exact."""
    steps = torch.arange(num_tasks).remainder(5)
    return torch.where(steps < 4, 0.5**steps, 0.0).double()


def calls(num_tasks: int, seed: int = 3) -> list[Callable[..., Out]]:
    """Every kind of call, as a function of the task gradients and ``out``."""
    largest = (num_tasks - 1) // 2
    trims = sorted({0, min(1, largest), min(2, largest), min(3, largest), largest})
    return [
        lambda rows, out=None: column_ops.graddrop(rows, rng=rng(seed), out=out),
        lambda rows, out=None: column_ops.graddrop(
            rows, leak=leaks(num_tasks), rng=rng(seed), out=out
        ),
        *(
            lambda rows, out=None, trim=trim: column_ops.trimmed_mean(rows, trim, out=out)
            for trim in trims
        ),
    ]


def expected(call: Callable[..., Out], rows: Any) -> Out:
    with engine("reference"):
        return call(rows)


@pytest.mark.parametrize("integers", [True, False], ids=["integers", "normal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4, 5, 7, 8, 16, 65])
def test_native_agrees_with_reference(num_tasks: int, dtype: torch.dtype, integers: bool) -> None:
    for missing in (0.0, 0.3):
        rows = random_rows(num_tasks, SIZES, dtype, missing=missing, integers=integers)
        for row in rows:
            row.insert(3, None)  # a tensor that no task reaches
        for i, call in enumerate(calls(num_tasks)):
            wanted = expected(call, rows)
            assert wanted[3] is None
            for isa in ISAS:
                with engine(isa):
                    found = call(rows)
                if integers or i < 2:
                    assert_same(found, wanted)
                else:  # the reference adds up in sorted order
                    size = float(flatten(rows).abs().max())
                    step = torch.finfo(dtype).eps
                    torch.testing.assert_close(found, wanted, rtol=step, atol=1e-15 * size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_given_uniform(name: str, dtype: torch.dtype) -> None:
    """U is taken tensor by tensor, each in the order of its elements, whatever the layout."""
    shapes = ((3, 4, 5, 6), (7,), (0,), (2, 33), (1500,), (1, 1))
    rows = [
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(k)).to(dtype)
            for shape in shapes
        ]
        for k in range(5)
    ]
    flat = flatten(rows)
    uniform = torch.rand(flat.shape[1], generator=torch.Generator().manual_seed(9))
    positive, negative = flat.clamp(min=0).sum(0), flat.clamp(max=0).sum(0)
    kept = torch.where(positive / (positive - negative) > uniform, positive, negative)
    wanted = [
        part.view(shape).to(dtype)
        for part, shape in zip(torch.split(kept, [g.numel() for g in rows[0]]), shapes, strict=True)
    ]
    for row in rows:
        row[0] = row[0].to(memory_format=torch.channels_last)
        row[3] = row[3].T.contiguous().T
    counter = rng()
    with engine(name):
        for given in (uniform, uniform.double(), uniform.repeat_interleave(2)[::2]):
            assert_same(column_ops.graddrop(rows, uniform=given, rng=counter), wanted)
        out: Out = [torch.zeros_like(g).contiguous() for g in rows[0]]
        assert_same(column_ops.graddrop(rows, uniform=uniform, out=out), wanted)
    assert_same(counter, rng())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_every_size(isa: str, dtype: torch.dtype) -> None:
    """Nothing is left out, and nothing beside the output is touched."""
    values = torch.randint(-3, 4, (9, 4200)).to(dtype)
    buffer = torch.full((4300,), 77.0, dtype=dtype)
    untouched = buffer.clone()
    for num_tasks in (1, 2, 3, 4, 5, 7, 8, 9):
        for size in (*range(0, 70, 3), 127, 128, 129, 1023, 1024, 1025, 1060, 2049, 4097):
            start = 5 + size % 7
            out = buffer[start : start + size]
            rows: Rows = [[row[3 : 3 + size]] for row in values[:num_tasks]]
            for call in calls(num_tasks):
                wanted = expected(call, rows)
                with engine(isa):
                    call(rows, [out])
                assert_same([out], wanted)
                out.fill_(77)
                assert_same(buffer, untouched)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_outputs(dtype: torch.dtype) -> None:
    """Past the cache, off the cache line; three blocks of random numbers."""
    values = torch.randint(-3, 4, (5, MANY)).to(dtype)
    buffer = torch.empty(MANY + 64, dtype=dtype)
    rows: Rows = [list(torch.split(v, 1_500_000)) for v in values]
    for call in calls(5):
        wanted = expected(call, rows)
        for isa in ISAS:
            for begin in (0, 5, 13):
                buffer.fill_(99)
                outs: Out = list(torch.split(buffer[begin : begin + MANY], 1_500_000))
                with engine(isa):
                    call(rows, outs)
                assert_same(outs, wanted)
                assert bool((buffer[:begin] == 99).all())
                assert bool((buffer[begin + MANY :] == 99).all())


# What becomes of p.grad


def writers(num_tasks: int) -> list[tuple[Callable[..., Out], Callable[..., None]]]:
    """Calls that return the result, and those that write it to ``p.grad``."""
    leak = leaks(num_tasks)
    return [
        (
            lambda rows: column_ops.graddrop(rows, leak=leak, rng=rng()),
            lambda params, rows, accumulate=False: column_ops.graddrop_(
                params, rows, leak=leak, rng=rng(), accumulate=accumulate
            ),
        ),
        *(
            (
                lambda rows, trim=trim: column_ops.trimmed_mean(rows, trim),
                lambda params, rows, accumulate=False, trim=trim: column_ops.trimmed_mean_(
                    params, rows, trim, accumulate=accumulate
                ),
            )
            for trim in (0, 1, 3)
        ),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_grads_are_created_overwritten_and_added_to(name: str, dtype: torch.dtype) -> None:
    shapes = ((), (5,), (0,), (7, 9), (2, 3, 4, 5), (1500,), (4,))
    rows: Rows = [
        [
            *(torch.randint(-3, 4, shape).to(dtype) for shape in shapes[:-1]),
            None,
        ]
        for _ in range(7)
    ]
    for compute, write in writers(7):
        params: list[Tensor] = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
        with engine(name):
            wanted = compute(rows)
            exact = compute([[None if g is None else g.double() for g in row] for row in rows])
            write(params, rows)
            assert_same([p.grad for p in params], wanted)
            grads = [p.grad for p in params]
            versions = [0 if g is None else g._version for g in grads]
            for grad in grads:
                if grad is not None:
                    grad.fill_(3)
            params[3].grad = torch.full((7, 9), 3, dtype=dtype).T.contiguous().T
            params[1].grad = None
            write(params, rows, accumulate=True)
        for t, (param, grad, value) in enumerate(zip(params, grads, exact, strict=True)):
            # What is added to is float64, so that the sum is rounded once.
            added = None if value is None else (value if t == 1 else value + 3).to(dtype)
            assert_same(param.grad, added)
            if t not in (1, 3, 6):
                assert param.grad is grad
                assert grad is not None
                assert grad._version > versions[t]


@pytest.mark.parametrize("name", ENGINES)
def test_rows_may_be_targets(name: str) -> None:
    values = torch.randint(-3, 4, (7, 5000)).float()
    for compute, write in writers(7):
        with engine(name):
            (wanted,) = compute([[v] for v in values])
            param = nn.Parameter(torch.ones(5000))
            param.grad = values[6].clone()
            write([param], [*([v] for v in values[:6]), [param.grad]])
        assert_same(param.grad, wanted)
    for call in calls(7):
        with engine(name):
            (wanted,) = call([[v] for v in values])
            copies: Rows = [[v.clone()] for v in values]
            call(copies, [copies[4][0]])
        assert_same(copies[4][0], wanted)
        assert_same(copies[3][0], values[3])


@pytest.mark.parametrize("name", ENGINES)
def test_an_error_changes_nothing(name: str) -> None:
    ones = torch.ones(3)
    params: list[Tensor] = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    params[0].grad = torch.full((3,), 7.0)
    out: Out = [torch.full((3,), 7.0), torch.zeros(2)]
    rows: Rows = [[ones, ones] for _ in range(3)]
    counter = rng()
    both: dict[str, Any] = {"rng": counter}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("leak", {**both, "leak": float64(1, 2)}),
        ("leak", {**both, "leak": torch.ones(3)}),
        ("uniform", {**both, "uniform": torch.ones(5)}),
        ("uniform", {**both, "uniform": torch.ones(6, 1)}),
        ("uniform", {**both, "uniform": torch.ones(6).long()}),
        ("uniform", {**both, "uniform": [0.5] * 6}),
        ("rng", {}),
    ]
    with engine(name):
        for argument, options in wrong:
            for call in (
                lambda o=options: column_ops.graddrop(rows, **o),
                lambda o=options: column_ops.graddrop_(params, rows, **o),
            ):
                with pytest.raises((TypeError, ValueError), match=f"^{argument}: expected .*found"):
                    call()
        for trim in (-1, 2, 5):
            match = rf"^trim_number: expected a number in \[0, 1\] for 3 tasks, found {trim}$"
            with pytest.raises(ValueError, match=match):
                column_ops.trimmed_mean(rows, trim)
            with pytest.raises(ValueError, match=match):
                column_ops.trimmed_mean_(params, rows, trim)
        for call in calls(3):
            with pytest.raises(ValueError, match=r"^out\[1\]: expected"):
                call(rows, out)
            with pytest.raises(TypeError, match=r"^out: expected a list"):
                call(rows, tuple(out))
        params[1] = nn.Parameter(torch.ones(2))
        for _, write in writers(3)[:3]:
            with pytest.raises(ValueError, match=r"^params\[1\]: expected"):
                write(params, rows)
        with pytest.raises(ValueError, match=r"^params\[1\]: expected"):
            column_ops.graddrop_(params, rows, rng=counter)
    assert_same(counter, rng())
    assert_same([out[0], params[0].grad], [torch.full((3,), 7.0)] * 2)
    assert params[1].grad is None


@pytest.mark.parametrize("name", ["native", "reference"])
def test_the_backend_that_is_asked_for_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "native" and not ISAS:
        pytest.skip("needs the native extension")
    called: list[str] = []
    functions = ("graddrop", "graddrop_", "trimmed_mean", "trimmed_mean_", "excess")
    for function in functions:
        monkeypatch.setattr(reference, function, lambda *a, f=function, **k: called.append(f))
    rows: Rows = [[torch.ones(3)]]
    with engine("reference" if name == "reference" else ISAS[0]):
        column_ops.graddrop(rows, rng=rng())
        column_ops.graddrop_([torch.ones(3)], rows, rng=rng())
        column_ops.trimmed_mean(rows, 0)
        column_ops.trimmed_mean_([torch.ones(3)], rows, 0)
        column_ops.excess(rows)
    assert called == (list(functions) if name == "reference" else [])
