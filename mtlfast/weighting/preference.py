"""A preference: one number per task, an option of several methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast.weighting import checks
from mtlfast.weighting.base import Call


def checked(preference: object) -> list[float] | None:
    """``preference`` as numbers of at least 0, not all 0; None stays None."""
    if preference is None:
        return None
    values: object = preference.tolist() if isinstance(preference, Tensor) else preference
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"preference: expected K numbers or None, found {type(values).__name__}")
    numbers = [checks.number(f"preference[{i}]", value, 0) for i, value in enumerate(values)]
    if not any(numbers):
        raise ValueError(f"preference: expected a number above 0 among them, found {numbers}")
    return numbers


def inputs(preference: list[float] | None, call: Call) -> Tensor | None:
    """The preference ``[K]`` as a solver takes it.

    Raises:
        ValueError: K is not the number of its entries.
    """
    if preference is None:
        return None
    if len(preference) != call.num_tasks:
        raise ValueError(
            f"preference: expected one number for each of the {call.num_tasks} tasks, "
            f"found {len(preference)}"
        )
    return torch.tensor(preference, dtype=torch.float64, device=call.device)
