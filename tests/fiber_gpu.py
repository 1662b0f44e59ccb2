"""A GPU made of fibers: CPU tensors go through the launch code and every kernel, on the CPU.

``tests/shim`` has the driver's entry points; it is compiled once, with all of ``csrc/kernels``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlfast import ops

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "tests" / "shim"
GROUPS = (
    "GRAMIAN",
    "TILES",
    "TILES_16",
    "TILES_EXACT",
    "TILES_EXACT_16",
    "COMBINE",
    "COLUMNS",
    "SKETCH",
    "SOLVE",
    "STEP",
)
ORDERS = ("forward", "reverse", "shuffled")
"""Of the threads between two barriers, and of the blocks."""

FLAGS = ("-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas")


def _native() -> Any:
    assert ops._native is not None, "the shim needs the native extension"
    return ops._native.cuda


@functools.cache
def library() -> ctypes.CDLL:
    """The shim, compiled unless this very text was compiled before."""
    sources = sorted(
        path
        for folder in (SHIM, ROOT / "csrc/kernels", ROOT / "csrc/solvers")
        for path in folder.iterdir()
    )
    text = b"".join(path.name.encode() + path.read_bytes() for path in sources)
    digest = hashlib.sha256(text + repr((FLAGS, GROUPS)).encode()).hexdigest()[:12]
    target = ROOT / "build" / f"shim-{digest}" / "libshim.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the same test run may be at it
        if not target.exists():
            _compile(target)
    return ctypes.CDLL(str(target))


def _compile(target: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    folder = target.parent
    base = [compiler, *FLAGS, f"-I{ROOT / 'csrc'}", f"-I{SHIM}", "-c"]
    jobs = [[str(SHIM / f"{name}.cpp"), "-o", f"{name}.o"] for name in ("scheduler", "driver")]
    jobs += [
        [str(SHIM / "kernels.cpp"), f"-DMTLFAST_GROUP_{group}", "-o", f"{group}.o"]
        for group in GROUPS
    ]
    running = [subprocess.Popen([*base, *job], cwd=folder) for job in jobs]
    assert [process.wait() for process in running] == [0] * len(jobs)
    part = folder / "part.so"  # an interrupted link leaves no library
    objects = [job[-1] for job in jobs]
    subprocess.run([compiler, "-shared", "-o", str(part), *objects], cwd=folder, check=True)
    part.rename(target)


@contextlib.contextmanager
def fibers(
    order: str = "forward",
    seed: int = 0,
    sums: str = "auto",
    *,
    multiprocessors: int = 3,
    shared_bytes: int = 227 * 1024,
) -> Iterator[None]:
    """Inside the block CPU tensors are those of a GPU made of fibers.

    Args:
        order: of the threads, one of :data:`ORDERS`.
        seed: of the shuffled order.
        sums: what the Gramian's products are added in: "float32", "float64", or "auto" by size.
        multiprocessors: of the GPU: few, so that small cases have several chunks for each block.
        shared_bytes: of a block at most.
    """
    shim = library()
    shim.shim_device(multiprocessors, shared_bytes)
    shim.shim_order(ORDERS.index(order), seed)
    native = _native()
    native.simulate(shim._name)
    native.force_sums(sums)
    try:
        yield
    finally:
        native.force_sums("auto")
        native.simulate("")


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Inside the block CPU tensors are the CPU's again; changes nothing outside :func:`fibers`."""
    native = _native()
    if not native.simulated():
        yield
        return
    native.simulate("")
    try:
        yield
    finally:
        native.simulate(library()._name)


def launches() -> dict[str, int]:
    """How often each kernel was launched in this :func:`fibers` block."""
    return dict(_native().launch_counts())


def barriers() -> list[tuple[str, int, int]]:
    """The barriers met since the last call: file, line, and how often a thread came by at most."""
    text = ctypes.create_string_buffer(1 << 16)
    assert library().shim_sites(text, len(text)) == 0
    found = [line.rsplit(":", 2) for line in text.value.decode().splitlines()]
    return [(file, int(line), int(visits)) for file, line, visits in found]


@contextlib.contextmanager
def without_barrier(file: str, line: int, visit: int = -1) -> Iterator[None]:
    """Inside the block threads run past the barrier at a place: at one visit, or (-1) always."""
    shim = library()
    shim.shim_skip(file.encode(), line, ctypes.c_long(visit))
    try:
        yield
    finally:
        shim.shim_skip(b"", 0, ctypes.c_long(-1))
