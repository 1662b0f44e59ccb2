"""The doors to sketches: a task gradient of P elements, folded into S numbers with random signs.

As in :mod:`mtlfast.ops`, native or reference. The inner product of two sketches under one seed is
that of the gradients in the mean over the seeds, with an error of about ``|g_i| |g_j| / sqrt(S)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast import ops, reference


def sketch_(sketch: Tensor, norm: Tensor, grads: list[Tensor], first: int, seed: int) -> None:
    """Adds gradients to a sketch and to a squared norm, in one pass over their elements.

    Element number ``e`` among all P columns goes to ``sketch[e % S]``, plus or minus by a sign that
    depends on ``seed`` and ``e`` alone. The elements of a tensor are numbered in the order of their
    indices, last index fastest, whatever its layout; those of a list one tensor after another. So
    tensors may come one by one, in any order, as gradients appear; a tensor that a task does not
    reach is left out. Only sketches under the same seed and numbering can be compared.

    A bucket adds the elements of a call in the order of their numbers, in float32: the same bits on
    the CPU, on a GPU and in the reference, for any number of threads, and where a list is split.

    Args:
        sketch: ``[S]`` float32, contiguous; S is a power of two, 1024 or more.
        norm: ``[]`` or ``[1]`` float64. The squares are added in float64; bitwise the same for any
            number of threads.
        grads: tensors of any shapes, float32, float64, bfloat16 or float16, on the sketch's device.
            Those that are not contiguous are copied for the call. An element too large for float32
            is Inf in the sketch. NaN and Inf come through, in both.
        first: the number of the first element, from 0 on; with the elements at most 2^60.
        seed: a 64-bit integer, from -2^63 to 2^63 - 1.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape, dtype or device, or is out of
            its range. Nothing has changed then.
    """
    for name, tensor in (("sketch", sketch), ("norm", norm)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    if not isinstance(grads, (list, tuple)):
        raise TypeError(f"grads: expected a list of tensors, found {type(grads).__name__}")
    for name, number in (("first", first), ("seed", seed)):
        if not isinstance(number, int):
            raise TypeError(f"{name}: expected an integer, found {type(number).__name__}")
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"{name}: expected an integer of 64 bits, found {number}")
    native = ops.route([grads])
    if native is None:
        reference.sketch_(sketch, norm, grads, first, seed)
    else:
        native.sketch(sketch, norm, grads, first, seed)


def sketched_gramian(sketches: Tensor, norms: Tensor) -> Tensor:
    """The Gramian that sketches stand for: the norms as counted, the cosines of the sketches.

    ``G[i, j] = sqrt(n_i n_j) s_i·s_j / (|s_i| |s_j|)``, positive semidefinite up to rounding.

    Args:
        sketches: ``[K, S]`` float32, of :func:`sketch_` under one seed and numbering.
        norms: ``[K]`` float64, the squared norms.

    Returns:
        ``[K, K]`` float64 on the sketches' device, without a synchronisation; ``G[i, i]`` is
        ``norms[i]``. A sketch of zeros gives zeros beside its norm; one that is not finite NaN.

    Raises:
        TypeError, ValueError: an argument is no such tensor.
    """
    for name, tensor, dim, dtype in (
        ("sketches", sketches, 2, torch.float32),
        ("norms", norms, 1, torch.float64),
    ):
        shape = "[K, S]" if dim == 2 else "[K]"
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor {shape}, found {type(tensor).__name__}")
        if tensor.dim() != dim or tensor.dtype != dtype:
            raise ValueError(
                f"{name}: expected {shape} of {dtype}, found {list(tensor.shape)} of {tensor.dtype}"
            )
    if len(norms) != len(sketches) or norms.device != sketches.device:
        raise ValueError(
            f"norms: expected [{len(sketches)}] on {sketches.device}, as sketches, found "
            f"{list(norms.shape)} on {norms.device}"
        )
    inner = ops.gramian([[row] for row in sketches.detach().unbind()])
    squares = inner.diagonal()
    # Of the sketch's length; a sketch of zeros has no direction.
    scale = torch.where(squares == 0, 0.0, (norms.detach() / squares).sqrt())
    gramian = inner * (scale * scale[:, None])  # symmetric in every bit
    gramian.diagonal().copy_(norms.detach() + 0.0 * squares)
    return gramian
