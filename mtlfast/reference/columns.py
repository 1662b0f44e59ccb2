"""What is computed column by column, in plain torch: GradDrop and the trimmed mean."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.multi_tensor import Block, Result, Rows, check, write_grads, write_list

_BLOCK = 1 << 20  # columns that share two keys
_WORD = 2**32 - 1


def graddrop(
    task_grads: Rows,
    leak: Tensor | None,
    uniform: Tensor | None,
    rng: Tensor | None,
    out: list[Tensor | None] | None = None,
) -> list[Tensor | None]:
    """See :func:`mtlfast.column_ops.graddrop`."""
    check(task_grads)
    dropped = write_list(task_grads, out, _dropped(task_grads, leak, uniform, rng))
    _advance(uniform, rng)
    return dropped


def graddrop_(
    params: list[Tensor],
    task_grads: Rows,
    leak: Tensor | None,
    uniform: Tensor | None,
    rng: Tensor | None,
    *,
    accumulate: bool = False,
) -> None:
    """See :func:`mtlfast.column_ops.graddrop_`."""
    check(task_grads)
    write_grads(params, task_grads, accumulate, _dropped(task_grads, leak, uniform, rng))
    _advance(uniform, rng)


def trimmed_mean(
    task_grads: Rows, trim_number: int, out: list[Tensor | None] | None = None
) -> list[Tensor | None]:
    """See :func:`mtlfast.column_ops.trimmed_mean`."""
    check(task_grads)
    return write_list(task_grads, out, _trimmed(task_grads, trim_number))


def trimmed_mean_(
    params: list[Tensor], task_grads: Rows, trim_number: int, *, accumulate: bool = False
) -> None:
    """See :func:`mtlfast.column_ops.trimmed_mean_`."""
    check(task_grads)
    write_grads(params, task_grads, accumulate, _trimmed(task_grads, trim_number))


def draw_uniform(seed: int, counter: int, columns: Tensor) -> Tensor:
    """The chance that GradDrop draws for each column, a pure function of its arguments.

    Args:
        seed: 64-bit integer, from the method's rng.
        counter: number of calls that have drawn from this seed before.
        columns: int64, any shape: numbers of columns among all that some task reaches.

    Returns:
        float64 in (0, 1), odd multiples of 2^-33, of the shape of ``columns``.
    """
    blocks = columns // _BLOCK
    uniform = torch.empty_like(columns, dtype=torch.float64)
    for block in sorted(set(blocks.flatten().tolist())):
        bits = scaffold.random_bits(seed, counter, block, 0)
        x = ((columns - block * _BLOCK + (bits & _WORD)) * 0x9E3779B1) & _WORD
        x = ((x ^ (x >> 15)) + (bits >> 32)) & _WORD
        x = (x * 0x7FEB352D) & _WORD
        x = ((x ^ (x >> 16)) * 0x846CA68B) & _WORD
        signed = torch.where(x > _WORD // 2, x - 2**32, x)
        uniform = torch.where(blocks == block, signed * 2.0**-32 + (0.5 + 2.0**-33), uniform)
    return uniform


def check_trim_number(trim_number: int, num_tasks: int) -> None:
    """Raises ValueError unless it leaves an entry of each column."""
    largest = (num_tasks - 1) // 2
    if not 0 <= trim_number <= largest:
        raise ValueError(
            f"trim_number: expected a number in [0, {largest}] for {num_tasks} tasks, "
            f"found {trim_number}"
        )


def _dropped(
    task_grads: Rows, leak: Tensor | None, uniform: Tensor | None, rng: Tensor | None
) -> Result:
    num_tasks = len(task_grads)
    offsets = _offsets(task_grads)
    if leak is not None and (leak.shape != (num_tasks,) or leak.dtype != torch.float64):
        raise ValueError(
            f"leak: expected [{num_tasks}] of torch.float64, found {list(leak.shape)} of "
            f"{leak.dtype}"
        )
    if uniform is not None and (uniform.shape != (offsets[-1],) or uniform.dtype != torch.float64):
        raise ValueError(
            f"uniform: expected [{offsets[-1]}] of torch.float64, found {list(uniform.shape)} of "
            f"{uniform.dtype}"
        )
    if uniform is None and rng is None:
        raise ValueError("rng: expected [2] where uniform is None, found None")

    def result(t: int, block: Block, like: Tensor) -> Tensor:
        if uniform is not None:
            chance = uniform[offsets[t] : offsets[t + 1]].reshape(like.shape)
        else:
            assert rng is not None
            seed, counter = rng.tolist()
            chance = draw_uniform(seed, counter, offsets[t] + _positions(like))
        positive = negative = torch.zeros_like(like, dtype=torch.float64)
        leaked_positive, leaked_negative = positive, negative
        for k, gradient in enumerate(block):
            if gradient is not None:
                entries = gradient.detach().double()
                positive = positive + entries.clamp(min=0)
                negative = negative + entries.clamp(max=0)
                if leak is not None:
                    leaked_positive = leaked_positive + leak[k] * entries.clamp(min=0)
                    leaked_negative = leaked_negative + leak[k] * entries.clamp(max=0)
        length = positive - negative
        # P > U with P = positive / length, and no division by zero.
        kept = torch.where(
            positive > chance * length, positive + leaked_negative, negative + leaked_positive
        )
        return kept + 0.0 * length  # NaN where an entry is not finite

    return result


def _offsets(task_grads: Rows) -> list[int]:
    """``[T + 1]``: the first column of each tensor among those that some task reaches."""
    offsets = [0]
    for block in zip(*task_grads, strict=True):
        like = next((gradient for gradient in block if gradient is not None), None)
        offsets.append(offsets[-1] + (0 if like is None else like.numel()))
    return offsets


def _positions(like: Tensor) -> Tensor:
    """Where each element lies in memory: columns are counted in that order."""
    dense = torch.empty_like(like).stride() == like.stride() and not like.is_neg()
    stride = like.stride() if dense else torch.empty(like.shape, device="meta").stride()
    return torch.arange(like.numel(), device=like.device).as_strided(like.shape, stride)


def _advance(uniform: Tensor | None, rng: Tensor | None) -> None:
    """The next call draws other numbers."""
    if uniform is None and rng is not None:
        rng[1] += 1


def _trimmed(task_grads: Rows, trim_number: int) -> Result:
    num_tasks = len(task_grads)
    check_trim_number(trim_number, num_tasks)

    def result(t: int, block: Block, like: Tensor) -> Tensor:
        del t
        zeros = torch.zeros_like(like, dtype=torch.float64)
        rows = torch.stack([zeros if g is None else g.detach().double() for g in block])
        kept = rows.sort(dim=0).values[trim_number : num_tasks - trim_number]
        return torch.where(rows.isnan().any(0), torch.nan, kept.mean(0))

    return result
