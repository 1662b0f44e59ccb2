"""How much memory there is for task gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

SHARE = 0.8
"""Of the free memory, what task gradients may take: a step makes other tensors as well."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device now; None where that is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    found = [size for size in (_of_machine(), _of_container()) if size is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kibibytes) * 1024 for kibibytes in found), None)


def _of_container() -> int | None:
    """What the limit of a control group (version 2) leaves; None where there is none."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return None
    # Pages of files that nobody uses are given back when they are needed.
    idle = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, int(limit) - used + idle)


def by_device(params: Sequence[Tensor]) -> dict[torch.device, int]:
    """Bytes of the parameters on each device."""
    found: dict[torch.device, int] = {}
    for param in params:
        found[param.device] = found.get(param.device, 0) + param.nbytes
    return found


def lacking(needed: Mapping[torch.device, int]) -> tuple[int, int] | None:
    """What is needed and what is there, on the first device where it does not fit; None: all fits.

    Args:
        needed: bytes for each device.
    """
    for device, count in needed.items():
        there = free(device)
        if there is not None and count > SHARE * there:
            return count, there
    return None


def in_words(count: float) -> str:
    """A number of bytes."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
