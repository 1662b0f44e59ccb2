"""Gramian, combination and aggregation for other codebases: torch, NumPy and CuPy arrays alike.

Arrays cross by DLPack, without a copy, and the answer comes back in the kind that went in. In a
function that ``torch.compile`` compiles, torch tensors stay in its graph, as operators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from mtlfast import ops
from mtlfast.weighting import ColumnWise, Weighting, checks, get

Array = Any
"""A torch tensor, a NumPy array, or another array with DLPack, such as CuPy's."""


def gramian(task_grads: Sequence[Sequence[Array | None]]) -> Array:
    """Inner products of K task gradients, in one pass over their elements.

    Args:
        task_grads: K sequences of T arrays of any shapes, or None where a task does not reach an
            array. float32, float64, bfloat16 or float16; one dtype and shape per array.

    Returns:
        ``[K, K]`` float64 on the gradients' device. Sums are float64; where many tasks meet long
        arrays, chunks of at most 256 products a lane are float32, for an error of about 1e-7 of
        the norms' product. Bitwise the same for any number of threads. Not differentiable.

    Raises:
        TypeError: an entry is no dense real floating-point array, or dtypes differ across tasks.
        ValueError: no tasks, or numbers, shapes or devices that differ across tasks.
    """
    rows, back = _to_torch(task_grads)
    return back(ops.gramian(rows))


def combine(
    task_grads: Sequence[Sequence[Array | None]],
    weights: Array | Sequence[float],
    out: list[Array | None] | None = None,
) -> list[Array | None]:
    """The weighted sum of K task gradients, ``d = Jᵀw``, in one pass over their elements.

    Sums are float64, rounded to the gradients' dtype as torch rounds. A task whose weight is
    exactly 0 is not read: its NaN or Inf does not come through.

    Args:
        task_grads: as for :func:`gramian`.
        weights: ``[K]`` array or sequence of numbers.
        out: T arrays to write to (None where no task reaches one); they must not be read-only.

    Returns:
        T arrays; None where no task reaches one. ``out`` where it was given.

    Raises:
        TypeError: as for :func:`gramian`, or an entry of ``out`` is no array.
        ValueError: as for :func:`gramian`, or ``weights`` or ``out`` do not fit.
    """
    rows, back = _to_torch(task_grads)
    tensors = (g for row in rows for g in row if isinstance(g, Tensor))
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    factors = _real("weights", weights).detach().to(device, torch.float64)
    if out is None:
        return [None if d is None else back(d) for d in ops.combine(rows, factors)]
    for t, array in enumerate(out):
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise ValueError(f"out[{t}]: expected a writable array, found a read-only one")
    ops.combine(rows, factors, [None if a is None else _tensor(a) for a in out])
    return out


def aggregate(
    J: Array, weighting: Weighting | str, losses: Array | None = None, **inputs: Array
) -> Array:
    """The combined gradient of a Jacobian by a method: ``d = Jᵀ w(J Jᵀ)`` for most.

    Args:
        J: ``[K, P]``, one task gradient per row; float32, float64, bfloat16 or float16. For a
            method that compares B batches (``weighting.num_batches``) ``[B K, P]``, one batch's
            tasks after another's.
        weighting: a method, such as ``mtlfast.PCGrad()``, or its name. A method with a state
            advances it; in a compiled function its first call, which makes the state, compiles
            apart from the others.
        losses: ``[K]``, for the methods that need them.
        **inputs: the method's own inputs, such as ``order`` for PCGrad.

    Returns:
        ``[P]`` in J's dtype, kind of array and device.

    Raises:
        TypeError: J is no real floating-point array.
        ValueError: J is not ``[K, P]`` with K >= 1, or as the method's call raises.
    """
    jacobian = _real("J", J).detach()
    if jacobian.dim() != 2 or jacobian.shape[0] == 0:
        raise ValueError(f"J: expected shape [K, P] with K >= 1, found {list(jacobian.shape)}")
    method = get(weighting)
    if not jacobian.is_floating_point():
        raise TypeError(f"J: expected a real floating-point array, found {jacobian.dtype}")
    batches = method.num_batches
    if len(jacobian) % batches:
        raise ValueError(
            f"J: expected shape [{batches} K, P], the rows of {batches} batches, "
            f"found {list(jacobian.shape)}"
        )
    size = len(jacobian) // batches
    values = None if losses is None else _real("losses", losses).detach()
    if values is None and method.needs_losses:
        raise ValueError(f"losses: {type(method).__name__} expected [K], found None")
    told = torch.zeros(size, dtype=torch.float64, device=jacobian.device)
    if values is not None:
        checks.floats("losses", "[K]", values)
        if values.shape != told.shape:
            raise ValueError(f"losses: expected shape [{size}], found {list(values.shape)}")
        told.copy_(values)
    extras = {name: _tensor(value) for name, value in inputs.items()}
    # A graph is made before anything is changed, and an error of its making leaves no trace.
    before = None if is_dynamo_compiling() else method.snapshot()
    try:
        rows = method.transform([[row] for row in jacobian], told)
        combined = jacobian.new_empty(jacobian.shape[1])
        if isinstance(method, ColumnWise):
            method.combine(rows, None, [combined], **extras)
        else:
            inner = ops.gramian(rows) if method.needs_gramian else None
            weights = method(inner, told if inner is None else values, **extras)
            method.combine(rows, weights, [combined])
    except BaseException:
        if before is not None:
            method.restore(before)
        raise
    return _kind(J)(combined)


def _to_torch(
    task_grads: Sequence[Sequence[Array | None]],
) -> tuple[Sequence[Sequence[Tensor | None]], Callable[[Tensor], Array]]:
    """The rows as tensors, and what turns an answer into the kind that went in."""
    rows = ops.rows(task_grads)
    first = next((g for row in rows for g in row if g is not None), None)
    if not _is_foreign(first):
        return rows, _identity
    return [[None if g is None else _tensor(g) for g in row] for row in rows], _kind(first)


def _real(name: str, array: Array | Sequence[float]) -> Tensor:
    """A tensor of real numbers, or a TypeError that names the argument."""
    try:
        tensor = _tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected an array of real numbers, found {type(array).__name__}"
        ) from error
    if tensor.is_complex():
        raise TypeError(f"{name}: expected an array of real numbers, found {tensor.dtype}")
    return tensor


def _tensor(array: Array) -> Tensor:
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray):
        with warnings.catch_warnings():
            # A read-only array is only read here; torch warns that it could be written to.
            warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
            return torch.from_numpy(array)
    if hasattr(array, "__dlpack__"):
        return torch.utils.dlpack.from_dlpack(array)
    return torch.as_tensor(np.asarray(array))  # by NumPy: Python's floats stay float64


def _is_foreign(array: object) -> bool:
    return not isinstance(array, Tensor) and hasattr(array, "__dlpack__")


def _kind(array: Array) -> Callable[[Tensor], Array]:
    if not _is_foreign(array):
        return _identity
    if isinstance(array, np.ndarray):
        return _to_numpy
    from_dlpack: Callable[[Tensor], Array] = __import__(
        type(array).__module__.split(".")[0]
    ).from_dlpack
    return from_dlpack


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.numpy()
