"""Kernels compiled at run time, one at a time, by the NVRTC that CuPy brings.

CuPy serves as the door to NVRTC only: it allocates nothing on the device and loads nothing there.

Environment:
    MTLFAST_CACHE_DIR: where compiled kernels are kept; default: ``mtlfast`` in ``XDG_CACHE_HOME``,
        else in ``~/.cache``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from mtlfast.kernels import text

OLDEST = (12, 1)
"""The first version whose kernels take more than 4 KiB of parameters."""

INSTALL = "pip install 'mtlfast[cupy]' (or 'mtlfast[cupy12]' for a driver of CUDA 12)"
_CHECKSUM_BYTES = 32


@functools.cache
def _probe() -> tuple[Any, str]:
    """CuPy's NVRTC and its version, or None and what is wrong."""
    try:
        nvrtc = importlib.import_module("cupy.cuda").nvrtc
        found = tuple(nvrtc.getVersion())
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            return None, f"CuPy is installed and cannot be loaded ({error})"
        return None, "CuPy is not installed"
    except Exception as error:  # a library that is missing is reported in several ways
        return None, f"CuPy is installed and its NVRTC cannot be loaded ({_first_line(error)})"
    version = ".".join(map(str, found))
    if found < OLDEST:
        return None, f"CuPy's NVRTC is {version}, older than {OLDEST[0]}.{OLDEST[1]}"
    return nvrtc, version


def version() -> str | None:
    """The version of CuPy's NVRTC; None where it cannot be used."""
    nvrtc, found = _probe()
    return found if nvrtc is not None else None


def missing() -> str | None:
    """Why CuPy's NVRTC cannot be used; None where it can."""
    nvrtc, found = _probe()
    return None if nvrtc is not None else found


def image(name: str, capability: int) -> bytes:
    """One kernel for a device, from the cache or compiled now.

    Args:
        name: as in ``csrc/kernels/instances.h``.
        capability: ten times the device's compute capability.

    Returns:
        What ``cuModuleLoadData`` takes: machine code, or PTX for a device newer than this NVRTC.

    Raises:
        KeyError: there is no such kernel.
        RuntimeError: NVRTC refuses the text; its log is in the message.
        ImportError: CuPy's NVRTC cannot be used.
    """
    nvrtc, found = _probe()
    if nvrtc is None:
        raise ImportError(f"{found}; {INSTALL}")
    known = [int(arch) for arch in nvrtc.getSupportedArchs()]
    older = [arch for arch in known if arch < capability]
    exact = capability in known or not older
    target = f"sm_{capability}" if exact else f"compute_{max(older)}"
    options = ["-std=c++17", f"-arch={target}", *text.options(name)]
    key = repr((text.digest(), found, options))
    path = cache_folder() / f"{name}-{target}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    kept = _read(path)
    if kept is not None:
        return kept
    compiled = _compile(nvrtc, name, [*options, f"-I{text.root()}"], exact)
    _write(path, compiled)
    return compiled


def _compile(nvrtc: Any, name: str, options: list[str], machine_code: bool) -> bytes:
    program = nvrtc.createProgram('#include "kernels/instances.h"\n', f"{name}.cu", [], [])
    try:
        try:
            nvrtc.compileProgram(program, tuple(options))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise RuntimeError(f"NVRTC could not compile {name} ({error}):\n{log}") from error
        if machine_code:
            return bytes(nvrtc.getCUBIN(program))
        ptx = nvrtc.getPTX(program)
        ptx = ptx.encode() if isinstance(ptx, str) else bytes(ptx)
        return ptx if ptx.endswith(b"\0") else ptx + b"\0"
    finally:
        nvrtc.destroyProgram(program)


# ---- The cache: a checksum, then the image. ------------------------------------------------------


def cache_folder() -> Path:
    """Where compiled kernels are kept; it need not exist."""
    named = os.environ.get("MTLFAST_CACHE_DIR")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "mtlfast"
    except RuntimeError:  # an account without a home
        return Path(tempfile.gettempdir()) / f"mtlfast-{os.getuid()}"


def _read(path: Path) -> bytes | None:
    """The image, or None where there is none or its file is damaged."""
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    checksum, compiled = kept[:_CHECKSUM_BYTES], kept[_CHECKSUM_BYTES:]
    return compiled if checksum == hashlib.sha256(compiled).digest() else None


def _write(path: Path, compiled: bytes) -> None:
    """Keeps an image. Whoever reads at the same time sees all of it or nothing."""
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(compiled).digest() + compiled)
        Path(part).replace(path)
    except OSError as error:
        if part is not None:
            with contextlib.suppress(OSError):
                Path(part).unlink()
        warnings.warn(
            f"mtlfast cannot keep the kernels that it compiles ({_first_line(error)}), and will "
            "compile them again in the next process; set MTLFAST_CACHE_DIR to a folder for them",
            RuntimeWarning,
            stacklevel=2,
        )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
