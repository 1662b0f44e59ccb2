"""Checks of what holds one number per task: options, inputs of a call, observations."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mtlfast.weighting import checks

Numbers = Sequence[float] | Tensor
"""One number per task, as an option."""

Scalars = Tensor | Sequence[Tensor | float] | Mapping[str, Tensor | float]
"""K scalars that were measured: a tensor ``[K]``, a list, a tuple, or a dict of names."""


def numbers(
    key: str, value: object, low: float = -math.inf, *, open_low: bool = False
) -> list[float]:
    """``value``, a sequence or a 1-D tensor, as finite floats of at least (above) ``low``."""
    found: object = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise TypeError(f"{key}: expected K numbers, found {type(value).__name__}")
    if len(found) == 0:
        raise ValueError(f"{key}: expected one number per task, found none")
    return [
        checks.number(f"{key}[{i}]", entry, low, open_low=open_low) for i, entry in enumerate(found)
    ]


def optional(
    key: str, value: object, low: float = -math.inf, *, open_low: bool = False
) -> list[float] | None:
    """As :func:`numbers`, or None."""
    return None if value is None else numbers(key, value, low, open_low=open_low)


def preference(value: object) -> list[float] | None:
    """``value`` as numbers of at least 0, not all of them 0; or None."""
    found = optional("preference", value, 0)
    if found is not None and not any(found):
        raise ValueError(f"preference: expected a number above 0 among them, found {found}")
    return found


def vector(
    key: str, values: list[float] | None, num_tasks: int, device: torch.device
) -> Tensor | None:
    """Checked numbers of an option as ``[K]`` float64 on the device of a call, to be read; or None.

    One assigned to the weighting since, such as a preference drawn anew for a step, may be any
    sequence or tensor.
    """
    if values is None:
        return None
    found = values if type(values) is list else numbers(key, values)
    if len(found) != num_tasks:
        raise ValueError(
            f"{key}: expected one number for each of the {num_tasks} tasks, found {len(found)}"
        )
    if is_compiling():  # a graph has its own constants
        return torch.tensor(found, dtype=torch.float64, device=device)
    return _tensor(tuple(found), device)


@functools.lru_cache(maxsize=256)
def _tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Made once: a call is shorter than making a tensor of a list is worth."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def given(key: str, value: object, num_tasks: int, device: torch.device) -> Tensor:
    """An input of a call as ``[K]`` float64 on its device."""
    checks.floats(key, "[K]", value)
    assert isinstance(value, Tensor)  # floats has made sure
    if value.shape != (num_tasks,):
        raise ValueError(f"{key}: expected shape [{num_tasks}], found {list(value.shape)}")
    return value.detach().to(device, torch.float64).contiguous()


def scalars(key: str, values: object) -> Tensor:
    """K measured scalars as ``[K]`` float64, detached, on the device that they are on."""
    if isinstance(values, Tensor):
        checks.floats(key, "[K]", values)
        if values.dim() != 1 or len(values) == 0:
            raise ValueError(f"{key}: expected shape [K], found {list(values.shape)}")
        return values.detach().to(torch.float64).contiguous()
    found: object = tuple(values.values()) if isinstance(values, Mapping) else values
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise TypeError(
            f"{key}: expected K scalars in a list, a tuple, a dict or a tensor, "
            f"found {type(values).__name__}"
        )
    if len(found) == 0:
        raise ValueError(f"{key}: expected at least one scalar, found none")
    entries = []
    for i, entry in enumerate(found):
        if isinstance(entry, Tensor):
            checks.floats(f"{key}[{i}]", "of one number", entry)
            if entry.numel() != 1:
                raise ValueError(f"{key}[{i}]: expected a scalar, found {list(entry.shape)}")
            entries.append(entry.detach().to(torch.float64).reshape(()))
        elif isinstance(entry, bool) or not isinstance(entry, (int, float)):
            raise TypeError(f"{key}[{i}]: expected a scalar, found {type(entry).__name__}")
        else:
            entries.append(torch.tensor(entry, dtype=torch.float64))
    device = next((x.device for x in entries if x.device.type != "cpu"), entries[0].device)
    return torch.stack([entry.to(device) for entry in entries])
