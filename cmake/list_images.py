"""Writes images.json: which architectures and kernels the compiled files hold.

Arguments: the target, nvcc's version, and the files: <group>.sm_<N>.cubin, <group>.compute_<N>.ptx.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def kernels(image: Path) -> list[str]:
    """The names of the kernels in machine code or PTX, in order."""
    data = image.read_bytes()
    pattern = (
        rb"\.entry (mtlfast_\w+)" if image.suffix == ".ptx" else rb"\0\.text\.(mtlfast_\w+)(?=\0)"
    )
    return sorted({name.decode() for name in re.findall(pattern, data)})


def main(target: Path, nvcc: str, images: list[Path]) -> None:
    """Exits with one sentence where two architectures of a group differ in their kernels."""
    groups: dict[str, list[str]] = {}
    cubins: set[int] = set()
    ptx: int | None = None
    for image in images:
        group, kind, number = re.fullmatch(r"(\w+)\.(sm|compute)_(\d+)\.\w+", image.name).groups()
        names = kernels(image)
        if not names or groups.setdefault(group, names) != names:
            sys.exit(f"{image}: expected the kernels {groups[group]}, found {names}")
        if kind == "sm":
            cubins.add(int(number))
        else:
            ptx = int(number)
    listed = {"nvcc": nvcc, "cubins": sorted(cubins), "ptx": ptx, "kernels": groups}
    target.write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [Path(name) for name in sys.argv[3:]])
