"""What the kernel that folds gradients into sketches does with awkward and with wrong arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import DTYPES, ENGINES, ISAS, NO_MEMORY, assert_same, engine
from sketches import SEED, SMALL, sign_by_hand, sketched, vectors
from torch import Tensor

from mtlfast import reference, sketch_ops

# ---- awkward tensors -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_layouts(name: str, dtype: torch.dtype) -> None:
    """Elements are numbered by their indices, so that tasks agree whatever their layouts."""
    image = vectors([2 * 3 * 15 * 17], dtype)[0].view(2, 3, 15, 17)
    table = vectors([900], dtype)[0].view(30, 30)
    negative = torch.complex(torch.zeros(70), -torch.arange(70.0)).conj().imag
    odd = [
        image.to(memory_format=torch.channels_last),
        table.T,
        table[::2, 1::3],
        torch.ones(1).to(dtype).expand(40, 3),
        table.view(-1)[1:],
        torch.tensor(3.0).to(dtype),
        negative,
        image.clone().requires_grad_(),
    ]
    with engine(name):
        found = sketched(odd, 5)
        expected = sketched([grad.detach().clone(memory_format=torch.contiguous_format)
                             for grad in odd], 5)  # fmt: skip
    assert_same(found, expected)
    assert not found[0].requires_grad
    assert not found[1].requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_what_is_not_finite_comes_through(name: str, dtype: torch.dtype) -> None:
    for bad, square in ((torch.nan, torch.nan), (torch.inf, torch.inf), (-torch.inf, torch.inf)):
        for at in (0, 70, 199):
            grad = torch.ones(200).to(dtype)
            grad[at] = bad
            with engine(name):
                sketch, norm = sketched([grad], 1000)
            bucket = (1000 + at) % SMALL
            expected = torch.tensor(bad) * sign_by_hand(SEED, 1000 + at)
            assert_same(sketch[bucket], expected)
            assert int(sketch.isfinite().sum()) == SMALL - 1
            assert_same(norm, torch.tensor([square], dtype=torch.float64))


@pytest.mark.parametrize("name", ENGINES)
def test_scales(name: str) -> None:
    """Norms are float64; an element that float32 cannot hold is Inf in the sketch alone."""
    tiny, huge = torch.full((3,), 1e-20), torch.full((3,), 1e30)
    with engine(name):
        for grad in (tiny, huge):
            sketch, norm = sketched([grad])
            assert_same(sketch[:3].abs(), grad)
            assert float(norm) == float(grad.double().square().sum())
        sketch, norm = sketched([torch.full((2,), 1e100, dtype=torch.float64)])
    assert_same(sketch[:2].abs(), torch.full((2,), torch.inf))
    torch.testing.assert_close(float(norm), 2e200)


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_to_add(name: str) -> None:
    for grads in ([], [torch.ones(0)], [torch.ones(0), torch.ones(3, 0).half()]):
        with engine(name):
            sketch, norm = sketched(grads, 5, start=2.0)
        assert_same(sketch, torch.full((SMALL,), 2.0))
        assert float(norm) == 2


@pytest.mark.parametrize("name", ENGINES)
def test_autograd_is_told(name: str) -> None:
    sketch, norm = torch.zeros(SMALL), torch.zeros((), dtype=torch.float64)
    versions = sketch._version, norm._version
    with engine(name):
        sketch_ops.sketch_(sketch, norm, [torch.ones(3)], 0, 0)
    assert sketch._version > versions[0]
    assert norm._version > versions[1]


# ---- errors --------------------------------------------------------------------------------------

ONES = torch.ones(3)


def overlapping() -> Tensor:
    return torch.zeros(1).expand(SMALL)


def from_inference() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(SMALL)


WRONG: list[tuple[dict[str, Callable[[], Any]], type[Exception], str]] = [
    ({"sketch": lambda: [0.0]}, TypeError, "sketch: expected a tensor, found list"),
    ({"sketch": lambda: torch.zeros(512)}, ValueError, r"sketch: expected .* 1024 .*found \[512\]"),
    ({"sketch": lambda: torch.zeros(1500)}, ValueError, "sketch: expected .*power of two.*1500"),
    ({"sketch": lambda: torch.zeros(0)}, ValueError, "sketch: expected .*power of two.*0"),
    ({"sketch": lambda: torch.zeros(2, 1024)}, ValueError, r"sketch: expected .*found \[2, 1024\]"),
    ({"sketch": lambda: torch.zeros(1024).double()}, ValueError, "sketch: expected .*[dD]ouble|64"),
    ({"sketch": lambda: torch.zeros(2048)[::2]}, ValueError, "sketch: expected .*not contiguous"),
    ({"sketch": overlapping}, ValueError, "sketch: expected .*not contiguous"),
    ({"sketch": lambda: torch.zeros(1024, device="meta")}, ValueError, "sketch: expected .*meta"),
    ({"sketch": lambda: torch.zeros(1024, requires_grad=True)}, ValueError, "sketch: .*requires"),
    ({"sketch": from_inference}, ValueError, "sketch: expected .*found an inference tensor"),
    ({"norm": lambda: 0.0}, TypeError, "norm: expected a tensor, found float"),
    ({"norm": lambda: torch.zeros(1)}, ValueError, r"norm: expected .*\[1\] of .*found \[1\] of"),
    ({"norm": lambda: torch.zeros(2).double()}, ValueError, r"norm: expected .*found \[2\]"),
    ({"norm": lambda: torch.zeros(1, 1).double()}, ValueError, r"norm: expected .*found \[1, 1\]"),
    ({"norm": lambda: torch.zeros(1).double().to("meta")}, ValueError, "norm: expected .*meta"),
    ({"norm": lambda: torch.zeros(1).double().requires_grad_()}, ValueError, "norm: .*requires"),
    ({"grads": lambda: torch.ones(3)}, TypeError, "grads: expected a list .*found Tensor"),
    ({"grads": lambda: [ONES, None]}, TypeError, r"grads\[1\]: expected a tensor, found NoneType"),
    ({"grads": lambda: [ONES, ONES.long()]}, TypeError, r"grads\[1\]: expected float32.*found"),
    ({"grads": lambda: [ONES, ONES.to("meta")]}, ValueError, r"grads\[1\]: expected .*meta"),
    ({"grads": lambda: [ONES.to_sparse()]}, TypeError, r"grads\[0\]: expected a dense tensor"),
    ({"first": lambda: -1}, ValueError, "first: expected .*found -1"),
    ({"first": lambda: 2**60 - 2}, ValueError, f"first: expected .*found {2**60 - 2}"),
    ({"first": lambda: 2**63 - 1}, ValueError, f"first: expected .*found {2**63 - 1}"),
    ({"first": lambda: 2**64}, ValueError, f"first: expected .*found {2**64}"),
    ({"first": lambda: 1.0}, TypeError, "first: expected an integer, found float"),
    ({"seed": lambda: 2**63}, ValueError, f"seed: expected .*found {2**63}"),
    ({"seed": lambda: None}, TypeError, "seed: expected an integer, found NoneType"),
]


@pytest.mark.parametrize(("wrong", "error", "match"), WRONG)
@pytest.mark.parametrize("name", ENGINES[:2])
def test_wrong_arguments(
    name: str, wrong: dict[str, Callable[[], Any]], error: type[Exception], match: str
) -> None:
    sketch, norm = torch.full((SMALL,), 7.0), torch.full((1,), 7.0, dtype=torch.float64)
    arguments: dict[str, Any] = {"sketch": sketch, "norm": norm, "grads": [ONES], "first": 0}
    arguments |= {"seed": 0} | {key: make() for key, make in wrong.items()}
    with engine(name), pytest.raises(error, match="^" + match):
        sketch_ops.sketch_(**arguments)
    assert bool((sketch == 7).all())
    assert float(norm) == 7


@pytest.mark.skipif(not ISAS, reason="needs the native extension")
@pytest.mark.parametrize("make", NO_MEMORY)
def test_without_memory(make: Callable[[], Tensor]) -> None:
    with engine(ISAS[0]), pytest.raises((TypeError, ValueError), match=r"^grads\[1\]: expected a "):
        sketched([ONES, make()])


@pytest.mark.parametrize("name", ["native", "reference"])
def test_the_backend_that_is_asked_for_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "native" and not ISAS:
        pytest.skip("needs the native extension")
    called: list[str] = []
    monkeypatch.setattr(reference, "sketch_", lambda *a: called.append("sketch_"))
    with engine("reference" if name == "reference" else ISAS[0]):
        sketch, _ = sketched([ONES])
        assert called == (["sketch_"] if name == "reference" else [])
        assert bool(sketch.any()) == (name == "native")


@pytest.mark.skipif(not ISAS, reason="needs the native extension")
def test_nothing_is_kept() -> None:
    """Neither the tensors of a call nor their memory."""
    memory = np.ones(5000, dtype=np.float32)
    before = sys.getrefcount(memory)
    grad = torch.from_numpy(memory)
    with engine(ISAS[0]):
        sketched([grad, grad[::2]])
        with pytest.raises(TypeError):
            sketched([grad, ONES.long()])
    assert sys.getrefcount(memory) > before
    del grad
    assert sys.getrefcount(memory) == before
