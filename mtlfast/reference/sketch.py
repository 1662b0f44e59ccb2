"""Sketches of task gradients in plain torch, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_BUCKETS = 1024
MOST_NUMBERS = 2**60

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_GROUP = 64  # elements that share a hash
_INCREMENT = 0x9E3779B97F4A7C15


def sketch_(sketch: Tensor, norm: Tensor, grads: Sequence[Tensor], first: int, seed: int) -> None:
    """See :func:`mtlfast.sketch_ops.sketch_`."""
    _check(sketch, norm, grads, first)
    num_buckets = len(sketch)
    with torch.no_grad():
        squares = torch.zeros((), dtype=torch.float64, device=norm.device)
        for grad in grads:
            elements = grad.detach().reshape(-1)
            squares += elements.double().square().sum()
            numbers = torch.arange(first, first + len(elements), device=sketch.device)
            signed = elements.float() * draw_signs(seed, numbers)
            # One turn around the sketch after the other: a bucket takes them in this order.
            bucket = first % num_buckets
            while len(signed) > 0:
                count = min(len(signed), num_buckets - bucket)
                sketch[bucket : bucket + count] += signed[:count]
                signed, bucket = signed[count:], 0
            first += len(elements)
        norm += squares


def draw_signs(seed: int, numbers: Tensor) -> Tensor:
    """The signs of elements.

    Args:
        seed: 64-bit integer.
        numbers: int64, any shape: of elements among all columns.

    Returns:
        float32, 1 or -1, of the shape of ``numbers``: bit ``e % 64`` of term ``e // 64`` of the
        splitmix64 sequence whose state is the hash of the seed.
    """
    key = _mixed(torch.tensor(seed))
    terms = _mixed(key.to(numbers.device) + (numbers // _GROUP) * _signed(_INCREMENT))
    return 1.0 - 2.0 * ((terms >> (numbers % _GROUP)) & 1).float()


def _mixed(x: Tensor) -> Tensor:
    """A step of splitmix64; int64 stands for the 64 bits."""
    x = x + _signed(_INCREMENT)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, count: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


def _check(sketch: Tensor, norm: Tensor, grads: Sequence[Tensor], first: int) -> None:
    """The native code's checks, with its messages."""
    for t, grad in enumerate(grads):
        name = f"grads[{t}]"
        if not isinstance(grad, Tensor):
            raise TypeError(f"{name}: expected a tensor, found {type(grad).__name__}")
        if grad.dtype not in _DTYPES:
            raise TypeError(
                f"{name}: expected float32, float64, bfloat16 or float16, found {grad.dtype}"
            )
        _check_place(name, grad, grads[0].device)
    device = grads[0].device if grads else sketch.device
    count = sketch.numel()
    fits = sketch.dim() == 1 and count >= LEAST_BUCKETS and count & (count - 1) == 0
    shape = f"[S], S a power of two from {LEAST_BUCKETS} on,"
    _check_sum("sketch", sketch, shape, fits, torch.float32, device)
    fits = norm.dim() <= 1 and norm.numel() == 1
    _check_sum("norm", norm, "[] or [1]", fits, torch.float64, device)
    if not 0 <= first <= MOST_NUMBERS - sum(grad.numel() for grad in grads):
        raise ValueError(
            f"first: expected a number from 0 on, with the elements at most 2^60, found {first}"
        )


def _check_place(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, found layout {tensor.layout}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, found {tensor.device}")


def _check_sum(
    name: str, total: Tensor, shape: str, fits: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """Whether a tensor can be added to in place."""
    _check_place(name, total, device)
    if not fits or total.dtype != dtype or not total.is_contiguous() or total.is_neg():
        raise ValueError(
            f"{name}: expected a contiguous tensor {shape} of {dtype}, found {list(total.shape)} "
            f"of {total.dtype}" + ("" if total.is_contiguous() else ", not contiguous")
        )
    found = ""
    if total.requires_grad and torch.is_grad_enabled():
        found = "one that requires grad"
    elif total.is_inference() and not torch.is_inference_mode_enabled():
        found = "an inference tensor"
    if found:
        raise ValueError(f"{name}: expected a tensor to add to in place, found {found}")
