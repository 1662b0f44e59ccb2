"""How much memory there is for task gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

SHARE = 0.8
"""Of the free memory, what task gradients may take: a step makes other tensors as well."""

_MEMINFO = Path("/proc/meminfo")


def free(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device now; None where that is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kibibytes) * 1024 for kibibytes in found), None)


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
