"""What the tests on a device need: a GPU, or the fibers that stand for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fiber_gpu import fibers, launches
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtlfast import ops

Rows = list[list[Tensor | None]]

MOST_ROWS = 8
"""Of the Gramians that tests on fibers ask for, small as their tensors are."""


def why_no_gpu() -> str | None:
    """None where the tests on a GPU can run."""
    if ops._native is None:
        return "the native extension was not built"
    if not torch.cuda.is_available():
        return "there is no GPU: torch.cuda.is_available() is False"
    return None


@contextmanager
def on_device(kind: str) -> Iterator[torch.device]:
    """ "cuda": the current GPU. "fibers": the CPU, whose tensors take the way of CUDA tensors."""
    if kind == "cuda":
        reason = why_no_gpu()
        if reason is not None:
            pytest.skip(reason)
        with ops.use_backend("native"):
            yield torch.device("cuda", torch.cuda.current_device())
            torch.cuda.synchronize()  # an error of a kernel is this test's
        return
    if ops._native is None:
        pytest.skip("the native extension was not built")
    with ops.use_backend("native"), fibers("shuffled", seed=1):
        yield torch.device("cpu")


def skip_beyond(device: torch.device, num_rows: int) -> None:
    """Leaves larger Gramians to a GPU."""
    if device.type == "cpu" and num_rows > MOST_ROWS:
        pytest.skip(f"{num_rows} rows: on a GPU only")


def moved(rows: Sequence[Sequence[Tensor | None]], device: torch.device) -> Rows:
    """The same task gradients on a device; there a copy with the same strides, here themselves."""
    return [[None if g is None else g.to(device) for g in row] for row in rows]


def launched(call: Callable[[], Any]) -> dict[str, int]:
    """How many of our kernels a call launches, by name."""
    before = launches()
    call()
    counts = {name: count - before.get(name, 0) for name, count in launches().items()}
    return {name: count for name, count in counts.items() if count}


# What makes the host wait for the device, or hands it numbers that the host has just made.
_WAITS = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "_unique2",
        "equal",
        "lift_fresh",
    )
)


class _Trap(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where torch would wait for a device, were these tensors on one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        masks = name == "aten::index" and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if name in _WAITS or masks:
            raise RuntimeError(f"called a synchronizing operation: {name}")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_synchronisation(device: torch.device) -> Iterator[None]:
    """Inside the block whatever makes the host wait for the device raises RuntimeError."""
    if device.type != "cuda":
        with _Trap():  # type: ignore[no-untyped-call]
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Net(nn.Module):
    """A trunk of several tensors and, unless all is shared, a head for each task.

    The data lie on the device, and :meth:`next_batch` changes them in place.
    """

    def __init__(
        self, num_tasks: int, device: torch.device, *, depth: int = 2, heads: bool = True
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(num_tasks)

        def weights(*shape: int) -> nn.Parameter:
            return nn.Parameter((0.4 * torch.randn(shape, generator=generator)).to(device))

        self.trunk = nn.ParameterList(weights(6, 6) for _ in range(depth))
        self.biases = nn.ParameterList(weights(6) for _ in range(depth))
        self.heads = nn.ParameterList(weights(6, 1) for _ in range(num_tasks if heads else 0))
        self.num_tasks = num_tasks
        self.x = torch.zeros(8, 6, device=device)
        self.y = torch.zeros(num_tasks, 8, device=device)
        self.next_batch(0)

    def next_batch(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x.copy_(torch.randn(self.x.shape, generator=generator))
        self.y.copy_(torch.randn(self.y.shape, generator=generator))

    def losses(self) -> list[Tensor]:
        """K losses that conflict."""
        x = self.x
        for weight, bias in zip(self.trunk, self.biases, strict=True):
            x = torch.tanh(x @ weight + bias)
        if len(self.heads):
            outs = [(x @ head).squeeze(1) for head in self.heads]
        else:
            outs = [x[:, k % 6] * (1 + k) for k in range(self.num_tasks)]
        return [(out - y).square().mean() for out, y in zip(outs, self.y.unbind(), strict=True)]
