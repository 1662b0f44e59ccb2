"""The text of the CUDA kernels: where it lies, and which part of it holds a kernel."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


@functools.cache
def root() -> Path:
    """The folder with ``kernels/`` and ``solvers/``: of the package, or of its source tree.

    Raises:
        FileNotFoundError: the package was installed without the text.
    """
    for folder in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc"):
        if (folder / "kernels" / "instances.h").exists():
            return folder
    raise FileNotFoundError(
        f"the text of the CUDA kernels was expected in {_PACKAGE / 'csrc'} and is not there; "
        "reinstall mtlfast"
    )


@functools.cache
def digest() -> str:
    """A hash of everything that a kernel may include."""
    sha = hashlib.sha256()
    for path in sorted(root().glob("*/*.h")):
        if path.parent.name in ("kernels", "solvers"):
            text = path.read_bytes()
            sha.update(f"{path.parent.name}/{path.name} {len(text)} ".encode() + text)
    return sha.hexdigest()


@functools.cache
def groups() -> dict[str, str]:
    """The text of each group of ``instances.h``, by the name in its ``MTLFAST_GROUP_`` macro."""
    parts = re.split(
        r"^#if defined\(MTLFAST_GROUP_(\w+)\)$",
        (root() / "kernels" / "instances.h").read_text(),
        flags=re.MULTILINE,
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def groups_of(name: str) -> list[str]:
    """The groups that may define a kernel: those whose text has the second word of its name.

    Raises:
        KeyError: there is none.
    """
    word = re.escape(name.split("_")[1])
    found = [group for group, text in groups().items() if re.search(rf"(\b|_){word}(_|\b)", text)]
    if not found:
        raise KeyError(f"no group of csrc/kernels/instances.h has a kernel {name}")
    return found


def options(name: str) -> list[str]:
    """The compiler's options that define this one kernel and no other."""
    return [
        *(f"-DMTLFAST_GROUP_{group}" for group in groups_of(name)),
        "-DMTLFAST_ONLY",
        f"-DMTLFAST_PICK_{name}=MTLFAST_PICKED",
    ]
