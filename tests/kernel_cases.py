"""Lists of task gradients for the tests of the kernels, and what must hold of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from cases import backend
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mtlfast import ops

Rows = list[list[Tensor | None]]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TASKS = (1, 2, 3, 5, 7, 8, 16, 40, 64, 65)
ISAS = ops.supported_isas()
ENGINES = ("reference", *ISAS)

# Around every vector, unrolled step, tile and chunk, and one that several threads share.
SIZES = (0, 1, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1023, 1025, 4095, 4096, 4097, 20000, 10, 0)


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Runs the body on the reference, or on one instruction set with no way back to it."""
    if name == "reference":
        with backend("reference"):
            yield
    else:
        with backend("native"), ops.use_isa(name):
            yield


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_rows(
    num_tasks: int,
    sizes: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    missing: float = 0.0,
    scale: float = 1.0,
    integers: bool = False,
) -> Rows:
    """K lists of normal random vectors, or of integers in [-3, 3], whose sums are exact."""
    generator = torch.Generator().manual_seed(seed)

    def vector(size: int) -> Tensor | None:
        if float(torch.rand((), generator=generator)) < missing:
            return None
        if integers:
            return torch.randint(-3, 4, (size,), generator=generator).to(dtype)
        return (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)

    return [[vector(size) for size in sizes] for _ in range(num_tasks)]


def flatten(rows: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """The Jacobian ``[K, P]`` in float64, with zeros for None."""
    blocks = [torch.zeros(len(rows), 0, dtype=torch.float64)]
    for block in zip(*rows, strict=True):
        like = next((gradient for gradient in block if gradient is not None), None)
        if like is not None:
            blocks.append(
                torch.stack(
                    [torch.zeros_like(like).double() if g is None else g.double() for g in block]
                ).reshape(len(rows), -1)
            )
    return torch.cat(blocks, 1)


def assert_same(found: object, expected: object) -> None:
    """Equal in every bit that counts: -0 is 0, any NaN is NaN."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def assert_gramian(found: Tensor, rows: Sequence[Sequence[Tensor | None]], error: float) -> None:
    """Compares with a float64 product; the error of ``G[i, j]`` is relative to ``|g_i| |g_j|``."""
    jacobian = flatten(rows)
    # `sum` adds pairwise; a matrix product would bring as much rounding as the kernels do.
    expected = torch.stack([(row * jacobian).sum(1) for row in jacobian])
    norms = jacobian.norm(dim=1)
    norms = torch.where(norms > 0, norms, 1.0)
    assert found.dtype == torch.float64
    assert_same(found, found.T)
    torch.testing.assert_close(
        found / norms / norms[:, None], expected / norms / norms[:, None], rtol=0, atol=error
    )


def weighted_sum(rows: Sequence[Sequence[Tensor | None]], weights: Tensor) -> list[Tensor | None]:
    """``Σ_k w_k g_k`` task by task in float64, and torch's cast to the gradients' dtype."""
    combined: list[Tensor | None] = []
    for block in zip(*rows, strict=True):
        total: Tensor | None = None
        dtype = torch.float64
        for weight, gradient in zip(weights.tolist(), block, strict=True):
            if gradient is not None:
                total = torch.zeros(gradient.shape).double() if total is None else total
                dtype = gradient.dtype
                if weight != 0:
                    total = total + weight * gradient.double()
        combined.append(None if total is None else total.to(dtype))
    return combined


# Wrong inputs

ONES = torch.ones(3)
TWO = float64(1, 2)


def lists_with(bad: object) -> list[list[Any]]:
    """Two tasks and four tensors; the last entry of the second task is the bad one."""
    return [[ONES, None, ONES, ONES], [ONES, ONES, None, bad]]


def calls(rows: Any, weights: Any) -> list[Callable[[], object]]:
    params: list[Tensor] = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    return [
        lambda: ops.gramian(rows()),
        lambda: ops.combine(rows(), weights),
        lambda: ops.combine_(params, rows(), weights),
    ]


class Wrapper(Tensor):
    """A subclass with a dispatch of its own, and no memory."""

    @staticmethod
    def __new__(cls) -> Wrapper:
        wrapper: Wrapper = torch.Tensor._make_wrapper_subclass(cls, (3,))
        return wrapper

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError("a kernel called back")


def fake(size: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    with FakeTensorMode():
        return torch.ones(size, dtype=dtype)


def freed() -> Tensor:
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(0)
    return tensor


NO_MEMORY: list[Callable[[], Tensor]] = [fake, Wrapper, freed]
