"""The names of all kernels, from the preprocessor and from compiled images."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"


@functools.cache
def in_text() -> dict[str, list[str]]:
    """By group: what ``MTLFAST_KERNEL`` is called with in ``csrc/kernels/instances.h``."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    instances = CSRC / "kernels" / "instances.h"
    found = {}
    for group in re.findall(r"^#if defined\(MTLFAST_GROUP_(\w+)\)", instances.read_text(), re.M):
        text = subprocess.run(
            [
                *(*compiler.split(), "-E", "-P", "-x", "c++", f"-DMTLFAST_GROUP_{group}"),
                *("-DMTLFAST_FIBERS", "-DMTLFAST_KERNEL(name, ...)=<<name>>", str(instances)),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found[group] = sorted(re.findall(r"<<(\w+)>>", text.replace(" ", "")))
    return found


def in_machine_code(image: bytes) -> list[str]:
    """The kernels of a cubin: each has a section of its own."""
    return sorted({name.decode() for name in re.findall(rb"\0\.text\.(mtlfast_\w+)(?=\0)", image)})
