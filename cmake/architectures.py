"""Chooses the GPU architectures to compile for, and tells CMake as CUBINS=75;80 and PTX=80.

Arguments: what ``nvcc --list-gpu-code`` prints, torch's architectures, and the wish: of the form
"8.0;9.0+PTX", "80 90" or "sm_90". An empty one stands for those that both nvcc and torch know.
"""

from __future__ import annotations

import re
import sys

OLDEST = 75
# Where torch names none, as a CPU build does.
USUAL = (75, 80, 86, 89, 90, 100, 120)


def numbers(text: str) -> list[int]:
    """The plain architectures in a list such as "sm_75 sm_90a compute_120"."""
    return sorted({int(found) for found in re.findall(r"(?:sm|compute)_(\d+)\b", text)})


def wish(text: str, nvcc: list[int]) -> tuple[list[int], int | None]:
    """What a person asked for; exits with one sentence where it cannot be had."""
    chosen: set[int] = set()
    ptx = None
    for word in re.split(r"[;,\s]+", text.strip(";, \t\n")):
        match = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)(\+PTX)?", word)
        if match is None:
            sys.exit(
                "MTLFAST_CUDA_ARCHS or TORCH_CUDA_ARCH_LIST: expected architectures like 8.0, 90 "
                f"or 12.0+PTX, found '{word}'"
            )
        arch = int(match[1] + match[2])
        if arch < OLDEST or arch not in nvcc:
            known = ", ".join(str(number) for number in nvcc if number >= OLDEST)
            sys.exit(
                "MTLFAST_CUDA_ARCHS or TORCH_CUDA_ARCH_LIST: expected architectures that this nvcc "
                f"and the kernels know ({known}), found '{word}'"
            )
        chosen.add(arch)
        if match[3]:
            ptx = max(arch, ptx or 0)
    return sorted(chosen), ptx


def choose(nvcc_says: str, torch_says: str, wanted: str) -> tuple[list[int], int | None]:
    """The architectures of the machine code, and that of the PTX."""
    nvcc = numbers(nvcc_says)
    if wanted.strip():
        return wish(wanted, nvcc)
    torch = numbers(torch_says)
    both = [arch for arch in torch or USUAL if arch in nvcc and arch >= OLDEST]
    if not both:
        sys.exit(
            f"nvcc compiles for {nvcc} and torch for {torch}, with nothing in common from "
            f"{OLDEST} on; install the CUDA toolkit that torch was built with, or set "
            "MTLFAST_CUDA_ARCHS"
        )
    return both, max(both)


if __name__ == "__main__":
    cubins, ptx = choose(*sys.argv[1:4])
    print(f"CUBINS={';'.join(map(str, cubins))}")
    print(f"PTX={ptx or ''}")
