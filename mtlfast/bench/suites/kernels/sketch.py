"""Folding a gradient into a sketch, against a read of as many bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from mtlfast import sketch_ops
from mtlfast.bench import workloads
from mtlfast.bench.case import Case, Samples, Variant, timed
from mtlfast.bench.rows import Row
from mtlfast.bench.setting import Setting
from mtlfast.bench.suites.kernels.balance import Sized, floor_around, thread_counts

__all__ = ["FIGURES", "Sketch", "cases"]

FIGURES = {
    "kernels/sketch": "a gradient into a sketch of S numbers over a read of the gradient",
    "kernels/sketch-time": "its time",
}
SIZES = (1024, 65536)


class Sketch(Sized):
    """One gradient, into sketches of every size."""

    figure = "kernels/sketch"
    rounds = 40

    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Each size between two measurements of the memory's reads."""
        grads = self.gradients()[0]
        norm = torch.zeros(1, dtype=torch.float64, device=self.device)
        calls = {
            f"S = {size}": timed(
                partial(
                    sketch_ops.sketch_, torch.zeros(size, device=self.device), norm, grads, 0, 1
                ),
                self.device,
            )
            for size in SIZES
        }
        return floor_around(setting.memory.read, calls)

    def rows(self, samples: Samples) -> list[Row]:
        """The ratio and the time of each size."""
        found: list[Row] = []
        for size in SIZES:
            name, labels = f"S = {size}", {**self.labels, "S": size}
            found += [
                self.over_floor(name, samples, self.bytes_of(1), name, labels=labels),
                self.duration(name, samples, "kernels/sketch-time", name, labels=labels),
            ]
        return found


def cases(setting: Setting) -> Sequence[Case]:
    """By dtype and threads; bfloat16 beside float32."""
    dtypes = [setting.dtype]
    if setting.dtype == torch.float32:
        dtypes.append(torch.bfloat16)
    return [
        Sketch(setting, 1, total, dtype=dtype, threads=threads)
        for total in setting.choose_params(workloads.LARGE)
        for dtype in dtypes
        for threads in thread_counts(setting)
    ]
