"""Where the CUDA kernels come from: compiled with the package, or at run time by CuPy's NVRTC.

Environment, read when the package is imported:
    MTLFAST_CUDA_BACKEND: "auto" (default: compiled where they fit the device, else cupy, else the
        reference), "compiled" or "cupy" (raises where that cannot be), or "none" (the reference).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import torch

from mtlfast.kernels import images, nvrtc

BACKENDS = ("auto", "compiled", "cupy", "none")
OLDEST_DEVICE = 75
_REBUILD = (
    "with a CUDA build of torch and the CUDA toolkit of its version (nvcc), reinstall mtlfast from "
    "its source folder: pip install --no-build-isolation --no-deps --force-reinstall ."
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one device's kernels come from.

    Attributes:
        backend: "compiled", "cupy" or "none".
        reason: why, as a part of a sentence.
        image: gives the image that holds a kernel, by its name; None for "none".
    """

    backend: str
    reason: str
    image: Callable[[str], bytes] | None = None


def check_setting(wanted: str) -> str:
    """Returns a value of MTLFAST_CUDA_BACKEND if it is one.

    Raises:
        ValueError: it is none.
    """
    if wanted not in BACKENDS:
        raise ValueError(
            f"MTLFAST_CUDA_BACKEND: expected one of {', '.join(BACKENDS)}, found {wanted!r}"
        )
    return wanted


_setting = check_setting(os.environ.get("MTLFAST_CUDA_BACKEND") or "auto")


def setting() -> str:
    """What MTLFAST_CUDA_BACKEND asks for."""
    return _setting


def choose(wanted: str, capability: int) -> Source:
    """Decides for a device.

    Args:
        wanted: one of :data:`BACKENDS`.
        capability: ten times the device's compute capability.

    Raises:
        ImportError: "compiled" or "cupy" was asked for and cannot be had.
    """
    if wanted == "none":
        return Source("none", "MTLFAST_CUDA_BACKEND=none turns the CUDA kernels off")
    if capability < OLDEST_DEVICE:
        too_old = f"this GPU has compute capability {_dotted(capability)}, and 7.5 is needed"
        if wanted != "auto":
            raise ImportError(f"MTLFAST_CUDA_BACKEND: '{wanted}' was asked for, but {too_old}")
        return Source("none", too_old)

    compiled = images.find()
    suffix = None if compiled is None else compiled.suffix(capability)
    if compiled is not None and suffix is not None and wanted != "cupy":
        return Source(
            "compiled",
            f"the package has {suffix} from nvcc {compiled.nvcc}",
            functools.partial(compiled.image, capability=capability),
        )
    no_images = (
        "the package was built without CUDA kernels"
        if compiled is None
        else f"the package's CUDA kernels ({compiled.describe()}) are not for compute capability "
        f"{_dotted(capability)}"
    )
    if wanted == "compiled":
        raise ImportError(
            f"MTLFAST_CUDA_BACKEND: 'compiled' was asked for, but {no_images}; {_REBUILD}"
        )
    no_cupy = nvrtc.missing()
    if no_cupy is None:
        return Source(
            "cupy",
            f"CuPy's NVRTC {nvrtc.version()} compiles for sm_{capability}",
            functools.partial(nvrtc.image, capability=capability),
        )
    if wanted == "cupy":
        raise ImportError(
            f"MTLFAST_CUDA_BACKEND: 'cupy' was asked for, but {no_cupy}; {nvrtc.INSTALL}"
        )
    return Source("none", f"{no_images}, and {no_cupy}; {nvrtc.INSTALL}, or {_REBUILD}")


@functools.cache
def source(index: int) -> Source:
    """Where the kernels of ``cuda:index`` come from.

    Raises:
        ImportError: MTLFAST_CUDA_BACKEND asks for what cannot be had.
    """
    if torch.version.hip is not None:
        return Source("none", "this torch is built for ROCm, and the kernels are for CUDA")
    if not torch.cuda.is_available():  # of a tensor that only pretends to be there
        return Source("none", "torch finds no GPU")
    major, minor = torch.cuda.get_device_capability(index)
    return choose(_setting, 10 * major + minor)


def forget() -> None:
    """Decides anew at the next use; meant for tests."""
    source.cache_clear()
    ready.cache_clear()


@functools.cache
def ready(extension: Any, index: int) -> bool:
    """Whether ``cuda:index`` has kernels; if so, the extension knows from now on where to get them.

    Args:
        extension: ``mtlfast._C.cuda``.
        index: the device's number.

    Raises:
        ImportError: as :func:`source`.
    """
    if source(index).image is None:
        return False
    extension.set_compiler(_provide)
    return True


def _provide(name: str, index: int) -> bytes:
    """What the extension calls for a kernel that no image it has loaded holds."""
    image = source(index).image
    return b"" if image is None else image(name)


def current() -> tuple[str, str]:
    """The backend for the current GPU and its reason; "none" where there is no GPU."""
    if _setting == "none":
        found = choose("none", OLDEST_DEVICE)
    else:
        try:
            found = source(torch.cuda.current_device() if torch.cuda.is_available() else 0)
        except ImportError as error:
            return "none", str(error)
    return found.backend, found.reason


def describe() -> dict[str, Any]:
    """What runs on the current GPU, and what there is to choose from.

    Returns:
        "setting"; "backend" and "reason" as :func:`current`; "compiled": the architectures, or
        None; "nvrtc": the version of CuPy's, or None; "nvrtc_missing": why not, or None.
    """
    compiled = images.find()
    backend, reason = current()
    return {
        "setting": _setting,
        "backend": backend,
        "reason": reason,
        "compiled": None if compiled is None else compiled.describe(),
        "nvrtc": nvrtc.version(),
        "nvrtc_missing": nvrtc.missing(),
    }


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"
