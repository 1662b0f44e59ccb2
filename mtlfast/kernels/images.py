"""Kernels that were compiled with the package: one file for each group and architecture."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_LIST = "images.json"  # written by cmake/list_images.py


@dataclasses.dataclass(frozen=True)
class Images:
    """What ``images.json`` says. Architectures are ten times the compute capability."""

    folder: Path
    nvcc: str
    cubins: tuple[int, ...]
    ptx: int | None
    kernels: dict[str, tuple[str, ...]]  # by group

    def suffix(self, capability: int) -> str | None:
        """How the files end that run on a device; None where none does.

        Machine code runs on devices of the same major and the same or a later minor version; PTX on
        every later one, after the driver has compiled it.
        """
        fitting = [
            arch for arch in self.cubins if arch // 10 == capability // 10 and arch <= capability
        ]
        if fitting:
            return f"sm_{max(fitting)}.cubin"
        if self.ptx is not None and self.ptx <= capability:
            return f"compute_{self.ptx}.ptx"
        return None

    def image(self, name: str, capability: int) -> bytes:
        """The file that holds a kernel, for ``cuModuleLoadData``; empty where none does."""
        suffix = self.suffix(capability)
        for group, names in self.kernels.items():
            if name in names and suffix is not None:
                image = (self.folder / f"{group}.{suffix}").read_bytes()
                return image + b"\0" if suffix.endswith(".ptx") else image
        return b""

    def describe(self) -> str:
        """The architectures, in words."""
        words = [f"sm_{arch}" for arch in self.cubins]
        return ", ".join([*words, f"PTX for compute_{self.ptx}"] if self.ptx else words)


@functools.cache
def find(folder: Path = _FOLDER) -> Images | None:
    """The images of this package; None where it was built without them."""
    try:
        listed = json.loads((folder / _LIST).read_text())
    except FileNotFoundError:
        return None
    kernels = {group: tuple(names) for group, names in listed["kernels"].items()}
    return Images(folder, listed["nvcc"], tuple(listed["cubins"]), listed["ptx"], kernels)
