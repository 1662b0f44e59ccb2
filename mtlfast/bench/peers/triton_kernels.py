"""The strongest alternative: the same multi-tensor Gramian and combination, written in Triton.

As our kernels, these read every gradient once, whatever the number of tensors: a table in device
memory says where each row of each tensor lies, and which piece of which tensor a chunk is. The
table is built once for each set of gradients and not timed; ours is built in every call.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 8192  # columns


@triton.jit  # type: ignore[untyped-decorator]
def _read(pointers, there, mask, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block; inside a tensor the mask knows rows only, so that loads are 16 bytes wide."""
    if WHOLE:
        return tl.load(pointers, mask=there, other=0.0)
    return tl.load(pointers, mask=there & mask, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _dot(row, there, column, mask, total, WHOLE: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    x = _read(row[:, None] + column[None, :], there[:, None], mask[None, :], WHOLE)
    return tl.dot(x, tl.trans(x), total, input_precision=PRECISION)


@triton.jit  # type: ignore[untyped-decorator]
def _products(row, there, column, mask, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    wide = column[None, None, :]
    inside = mask[None, None, :]
    x = _read(row[:, None, None] + wide, there[:, None, None], inside, WHOLE)
    y = _read(row[None, :, None] + wide, there[None, :, None], inside, WHOLE)
    return x.to(tl.float32) * y.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def gramian_kernel(  # type: ignore[no-untyped-def]
    rows,  # [T, R] int64: addresses, multiples of 16; 0 for the rows that only fill up
    sizes,  # [T] int64
    chunk_tensor,  # [C] int32
    chunk_begin,  # [C] int64
    num_chunks,
    partials,  # [programs, R, R] float32
    like,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program adds up its chunks' part of the Gramian."""
    dtype = like.dtype.element_ty
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    first = (num_chunks.to(tl.int64) * program // programs).to(tl.int32)
    last = (num_chunks.to(tl.int64) * (program + 1) // programs).to(tl.int32)
    r = tl.arange(0, R)
    if DOT:
        total = tl.zeros((R, R), dtype=tl.float32)
    else:
        sums = tl.zeros((R, R, BLOCK), dtype=tl.float32)
    for chunk in range(first, last):
        tensor = tl.load(chunk_tensor + chunk)
        begin = tl.multiple_of(tl.load(chunk_begin + chunk), 16)
        size = tl.load(sizes + tensor)
        address = tl.load(rows + tensor * R + r)
        there = address != 0
        row = tl.multiple_of(address.to(tl.pointer_type(dtype)), [16])
        if begin + CHUNK <= size:
            for offset in range(0, CHUNK, BLOCK):
                column = begin + offset + tl.arange(0, BLOCK)
                if DOT:
                    total = _dot(row, there, column, column < size, total, True, PRECISION)
                else:
                    sums += _products(row, there, column, column < size, True)
        else:
            for offset in range(0, CHUNK, BLOCK):
                column = begin + offset + tl.arange(0, BLOCK)
                if DOT:
                    total = _dot(row, there, column, column < size, total, False, PRECISION)
                else:
                    sums += _products(row, there, column, column < size, False)
    if not DOT:
        total = tl.sum(sums, axis=2)
    place = partials + program * R * R + r[:, None] * R + r[None, :]
    tl.store(place, total)


@triton.jit  # type: ignore[untyped-decorator]
def combine_kernel(  # type: ignore[no-untyped-def]
    rows,
    outs,  # [T] int64
    sizes,
    chunk_tensor,
    chunk_begin,
    num_chunks,
    weights,  # [R] float32
    like,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes ``Σ_k w_k g_k`` of the program's chunks."""
    dtype = like.dtype.element_ty
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    first = (num_chunks.to(tl.int64) * program // programs).to(tl.int32)
    last = (num_chunks.to(tl.int64) * (program + 1) // programs).to(tl.int32)
    r = tl.arange(0, R)
    weight = tl.load(weights + r)[:, None]
    for chunk in range(first, last):
        tensor = tl.load(chunk_tensor + chunk)
        begin = tl.multiple_of(tl.load(chunk_begin + chunk), 16)
        size = tl.load(sizes + tensor)
        address = tl.load(rows + tensor * R + r)
        there = (address != 0)[:, None]
        row = tl.multiple_of(address.to(tl.pointer_type(dtype)), [16])[:, None]
        out = tl.multiple_of(tl.load(outs + tensor).to(tl.pointer_type(dtype)), 16)
        if begin + CHUNK <= size:
            for offset in range(0, CHUNK, BLOCK):
                column = begin + offset + tl.arange(0, BLOCK)
                x = _read(row + column[None, :], there, (column < size)[None, :], True)
                tl.store(out + column, tl.sum(x.to(tl.float32) * weight, axis=0).to(dtype))
        else:
            for offset in range(0, CHUNK, BLOCK):
                column = begin + offset + tl.arange(0, BLOCK)
                mask = column < size
                x = _read(row + column[None, :], there, mask[None, :], False)
                total = tl.sum(x.to(tl.float32) * weight, axis=0)
                tl.store(out + column, total.to(dtype), mask=mask)


class TritonBalance:
    """One set of K rows of T gradients, all of one dtype, and where their combination goes."""

    def __init__(self, task_grads: list[list[Tensor]], out: list[Tensor], programs: int) -> None:
        first = task_grads[0][0]
        self.num_tasks = len(task_grads)
        self.rows_count = max(2, triton.next_power_of_2(self.num_tasks))
        self.wide_count = max(16, self.rows_count)  # what tl.dot asks for
        self.like = first
        self.programs = programs
        self.tables = {
            count: self._table(task_grads, count) for count in {self.rows_count, self.wide_count}
        }
        device = first.device
        self.outs = torch.tensor([x.data_ptr() for x in out], device=device)
        lengths = [g.numel() for g in task_grads[0]]
        self.sizes = torch.tensor(lengths, device=device)
        chunks = [(t, b) for t, size in enumerate(lengths) for b in range(0, size, CHUNK)]
        self.num_chunks = len(chunks)
        self.chunk_tensor = torch.tensor([t for t, _ in chunks], dtype=torch.int32, device=device)
        self.chunk_begin = torch.tensor([b for _, b in chunks], device=device)
        self.weights = torch.zeros(self.rows_count, device=device)
        self.partials: dict[int, Tensor] = {}

    def _table(self, task_grads: list[list[Tensor]], count: int) -> Tensor:
        addresses = [
            [row[t].data_ptr() for row in task_grads] + [0] * (count - self.num_tasks)
            for t in range(len(task_grads[0]))
        ]
        return torch.tensor(addresses, device=self.like.device)

    def gramian(self, variant: str = "dot") -> Tensor:
        """``[K, K]`` float64. Variants: "dot" by tensor cores, "broadcast" by plain products."""
        dot = variant == "dot"
        count = self.wide_count if dot else self.rows_count
        if count not in self.partials:
            shape = (self.programs, count, count)
            self.partials[count] = torch.zeros(shape, device=self.like.device)
        partials = self.partials[count]
        single = self.like.dtype == torch.float32
        gramian_kernel[(self.programs,)](
            self.tables[count],
            self.sizes,
            self.chunk_tensor,
            self.chunk_begin,
            self.num_chunks,
            partials,
            self.like,
            R=count,
            BLOCK=(128 if count > 16 else 256) if dot else max(64, 4096 // count**2),
            CHUNK=CHUNK,
            DOT=dot,
            PRECISION="tf32x3" if single else "ieee",
            num_warps=4 if dot else 8,
        )
        found = partials.sum(0, dtype=torch.float64)
        return found[: self.num_tasks, : self.num_tasks]

    def combine(self, weights: Tensor) -> None:
        """Into the tensors that were given."""
        self.weights[: self.num_tasks].copy_(weights)
        combine_kernel[(self.programs,)](
            self.tables[self.rows_count],
            self.outs,
            self.sizes,
            self.chunk_tensor,
            self.chunk_begin,
            self.num_chunks,
            self.weights,
            self.like,
            R=self.rows_count,
            BLOCK=max(64, 4096 // self.rows_count),
            CHUNK=CHUNK,
            num_warps=4,
        )
