"""What the memory of this machine can do: the floor that the kernels are held against.

A read sum and a triad with non-temporal stores, compiled for this CPU and run by torch's own OpenMP
threads over arrays far larger than the cache. Without a compiler torch does both, slower. On a GPU
it is a copy within its memory.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

COUNT = 2048 * 16384  # floats per array: 128 MiB; a multiple of bandwidth.cpp's kBlock

SOURCE = Path(__file__).with_name("bandwidth.cpp")


class Bandwidth:
    """Measures, in bytes per second. ``source`` says what ran."""

    def __init__(self) -> None:
        self.a, self.b, self.c = (torch.ones(COUNT) for _ in range(3))
        self.source = "g++ -O3 -march=native" if self._library else "torch (no compiler)"

    def read(self) -> float:
        """A sum over one array: one read per element."""
        library = self._library
        if library is None:
            return self._rate(1, self.b.sum)
        b, size = ctypes.c_void_p(self.b.data_ptr()), ctypes.c_long(COUNT)
        return self._rate(1, lambda: library.read_sum(b, size))

    def triad(self) -> float:
        """``a = b + s c``: two reads and one write per element."""
        library = self._library
        if library is None:
            return self._rate(3, lambda: torch.add(self.b, self.c, alpha=0.5, out=self.a))
        a, b, c = (ctypes.c_void_p(x.data_ptr()) for x in (self.a, self.b, self.c))
        size = ctypes.c_long(COUNT)
        return self._rate(3, lambda: library.triad(a, b, c, ctypes.c_float(0.5), size))

    def best(self) -> float:
        """The better of the two, now."""
        return max(self.read(), self.triad())

    @staticmethod
    def _rate(arrays: int, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return arrays * COUNT * 4 / (time.perf_counter() - start)

    @cached_property
    def _library(self) -> ctypes.CDLL | None:
        with tempfile.TemporaryDirectory() as folder:
            item, library = Path(folder, "bandwidth.o"), Path(folder, "bandwidth.so")
            compile_ = ["g++", "-O3", "-march=native", "-fopenmp", "-fPIC", "-c", str(SOURCE)]
            # Linked without OpenMP's runtime: the one that torch has loaded answers, so that both
            # use the same threads.
            link = ["g++", "-shared", str(item), "-o", str(library)]
            try:
                subprocess.run([*compile_, "-o", str(item)], check=True, capture_output=True)
                subprocess.run(link, check=True, capture_output=True)
                return ctypes.CDLL(str(library))
            except (OSError, subprocess.CalledProcessError):
                return None


class CopyBandwidth:
    """Measures a GPU's, in bytes per second, from idle to idle.

    Args:
        device: Whose memory.
        count: Floats of either array; together 2 GiB by default.
    """

    source = "copy_"

    def __init__(self, device: torch.device, count: int = 8 * COUNT) -> None:
        self.a, self.b = (torch.ones(count, device=device) for _ in range(2))

    def best(self) -> float:
        """``a = b``: one read and one write per element."""
        self._wait()
        start = time.perf_counter()
        self.a.copy_(self.b)
        self._wait()
        return 2 * self.a.nbytes / (time.perf_counter() - start)

    def read(self) -> float:
        """The same: a GPU reads no faster than it copies."""
        return self.best()

    def _wait(self) -> None:
        if self.a.device.type == "cuda":
            torch.cuda.synchronize(self.a.device)


if __name__ == "__main__":
    torch.set_num_threads(2)
    memory = Bandwidth()
    for name, measure in (("read", memory.read), ("triad", memory.triad)):
        rates = sorted(measure() / 1e9 for _ in range(31))
        print(f"{name}: median {rates[15]:.1f}, best {rates[-1]:.1f} GB/s, by {memory.source}")
