"""The doors to what is computed column by column; as in :mod:`mtlfast.ops`, native or reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mtlfast import ops, reference
from mtlfast.operators import tracing
from mtlfast.ops import TaskGrads


def graddrop(
    task_grads: TaskGrads,
    *,
    leak: Tensor | None = None,
    uniform: Tensor | None = None,
    rng: Tensor | None = None,
    out: list[Tensor | None] | None = None,
) -> list[Tensor | None]:
    """Keeps one sign of every column of the Jacobian, in one pass over its elements.

    The positive entries are kept where ``P > U``, with P their share of ``Σ_k |g_k|``, else the
    negative ones. Sums are float64. A column that holds NaN or Inf gives NaN.

    Args:
        task_grads: as for :func:`mtlfast.ops.gramian`; P columns that some task reaches.
        leak: ``[K]`` float64 in [0, 1]: how much of a task's entry is kept in any case; None: none.
        uniform: ``[P]``, any float dtype: U for each column, the tensors one after another and each
            in the order of its elements. None: drawn from ``rng``, in the order of the memory.
        rng: ``[2]`` int64 (seed, counter) on the gradients' device; a call that draws adds 1 to the
            counter, there and without a synchronisation.
        out: as for :func:`mtlfast.ops.combine`.

    Returns:
        T tensors; None where no task reaches the tensor. ``out`` where it was given.

    Raises:
        TypeError, ValueError: as :func:`mtlfast.ops.combine`, or ``leak``, ``uniform`` or ``rng``
            does not fit or is on another device. Nothing has changed then.
    """
    lists = ops.rows(task_grads)
    check_list("out", out)
    given = _uniform(uniform, lists)
    if is_compiling() and tracing.rows_are_traced(lists):
        return tracing.graddrop(lists, leak, given, rng, out)
    native = ops.route(lists)
    if native is None:
        return reference.graddrop(lists, leak, given, rng, out)
    dropped: list[Tensor | None] = native.graddrop(lists, leak, given, rng, out)
    return dropped


def graddrop_(
    params: list[Tensor],
    task_grads: TaskGrads,
    *,
    leak: Tensor | None = None,
    uniform: Tensor | None = None,
    rng: Tensor | None = None,
    accumulate: bool = False,
) -> None:
    """Writes what :func:`graddrop` computes into ``p.grad``, as :func:`mtlfast.ops.combine_`."""
    lists = ops.rows(task_grads)
    check_list("params", params)
    given = _uniform(uniform, lists)
    native = ops.route(lists)
    if native is None:
        reference.graddrop_(params, lists, leak, given, rng, accumulate=accumulate)
    else:
        native.graddrop_into_grad(params, lists, leak, given, rng, accumulate)


def trimmed_mean(
    task_grads: TaskGrads, trim_number: int, *, out: list[Tensor | None] | None = None
) -> list[Tensor | None]:
    """The mean of every column without its largest and smallest entries, in one pass.

    Sums are float64, of the entries that are kept only. A column that holds NaN gives NaN; Inf is
    larger than any number. A task that does not reach a tensor counts as zeros there.

    Args:
        task_grads: as for :func:`mtlfast.ops.gramian`.
        trim_number: how many entries to leave out at either end, less than K / 2.
        out: as for :func:`mtlfast.ops.combine`.

    Returns:
        T tensors; None where no task reaches the tensor. ``out`` where it was given.

    Raises:
        TypeError, ValueError: as :func:`mtlfast.ops.combine`, or ``trim_number`` is too large for
            K tasks.
    """
    lists = ops.rows(task_grads)
    check_list("out", out)
    if is_compiling() and tracing.rows_are_traced(lists):
        return tracing.trimmed_mean(lists, trim_number, out)
    native = ops.route(lists)
    if native is None:
        return reference.trimmed_mean(lists, trim_number, out)
    trimmed: list[Tensor | None] = native.trimmed_mean(lists, trim_number, out)
    return trimmed


def trimmed_mean_(
    params: list[Tensor], task_grads: TaskGrads, trim_number: int, *, accumulate: bool = False
) -> None:
    """Writes :func:`trimmed_mean` into ``p.grad``, as :func:`mtlfast.ops.combine_`."""
    lists = ops.rows(task_grads)
    check_list("params", params)
    native = ops.route(lists)
    if native is None:
        reference.trimmed_mean_(params, lists, trim_number, accumulate=accumulate)
    else:
        native.trimmed_mean_into_grad(params, lists, trim_number, accumulate)


def excess(
    task_grads: TaskGrads, squares: list[list[Tensor | None]] | None = None
) -> tuple[Tensor, list[list[Tensor | None]]]:
    """ExcessMTL's sums of squares ``S_k + g_k²`` and ``e_k = Σ_p g_kp² / sqrt(S_kp + 1e-7)``.

    One pass reads gradients and sums, and writes new sums, which stop at their type's largest
    number. ``e`` is summed in float64 and bitwise the same for any number of threads.

    Args:
        task_grads: as for :func:`mtlfast.ops.gramian`.
        squares: K lists of T tensors of the gradients' shapes, float32 or for float64 gradients
            float64, or None for zeros. They are not changed. None: zeros everywhere.

    Returns:
        ``[K]`` float64, the excesses, and the new sums. A task's sums of a tensor that it does not
        reach are the old ones.

    Raises:
        TypeError, ValueError: as :func:`mtlfast.ops.gramian`, or ``squares`` do not fit.
    """
    lists = ops.rows(task_grads)
    check_list("squares", squares)
    native = ops.route(lists)
    if native is None:
        return reference.excess(lists, squares)
    found: tuple[Tensor, list[list[Tensor | None]]] = native.excess(lists, squares)
    return found


def check_list(name: str, tensors: object) -> None:
    """Raises TypeError unless it is a list or None."""
    if tensors is not None and not isinstance(tensors, list):
        raise TypeError(f"{name}: expected a list of tensors, found {type(tensors).__name__}")


def device_of(task_grads: TaskGrads) -> torch.device:
    """Where the task gradients are; the CPU where there are none."""
    tensors = (grad for row in task_grads for grad in row if isinstance(grad, Tensor))
    return next((grad.device for grad in tensors), torch.device("cpu"))


def _uniform(uniform: Tensor | None, task_grads: TaskGrads) -> Tensor | None:
    """As the kernels take it."""
    if uniform is None:
        return None
    if not isinstance(uniform, Tensor):
        raise TypeError(f"uniform: expected a tensor [P], found {type(uniform).__name__}")
    if not uniform.is_floating_point():
        raise ValueError(f"uniform: expected a real floating dtype, found {uniform.dtype}")
    return uniform.detach().to(device_of(task_grads), torch.float64).contiguous()
