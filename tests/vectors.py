"""Float64 vectors and their comparison, for tests by hand."""

from __future__ import annotations

import torch
from torch import Tensor


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_near(found: Tensor | None, expected: Tensor, error: float = 1e-13) -> None:
    """Equal up to ``error``, relative or absolute."""
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=error, atol=error)


def assert_same(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
