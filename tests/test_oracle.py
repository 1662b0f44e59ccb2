"""Every method against certified answers, through the Gramian, on both backends and on fibers."""

from __future__ import annotations

import pytest
import torch
from cases import EVERYWHERE, ROWS, Row, backend, call, oracle
from torch import Tensor

from mtlfast import ops

CONDITIONS = [
    "random",
    "collinear",
    "conflict",
    "zerorow",
    "duprows",
    "tiny",
    "huge",
    "antipar",
    "kgtp",
    "imbal",
]
NEAR_SINGULAR = ("collinear", "antipar", "kgtp", "imbal")


REGULAR = ("random", "conflict", "tiny", "huge")


def direction_error(jacobian: Tensor, weights: Tensor, expected: Tensor, floor: float) -> float:
    """Error of ``Jᵀw`` relative to its length, or to ``floor`` times the longest gradient."""
    difference = float(((weights - expected) @ jacobian).norm())
    longest = float(jacobian.norm(dim=1).max())
    return difference / max(float((expected @ jacobian).norm()), floor * longest, 1e-300)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("row", [row for row in ROWS if row.answer], ids=str)
def test_direction(row: Row, name: str, dtype: torch.dtype, condition: str) -> None:
    data = oracle()
    answer = data["answers"].tolist().index(row.answer)
    keys = [key for key in data["keys"].tolist() if f"_{condition}_" in key]
    assert len(keys) == 21
    errors = {}
    for key in keys:
        jacobian = torch.from_numpy(data[f"{key}/J"])  # [K, P] float32
        num_tasks = len(jacobian)
        expected = torch.from_numpy(data[f"{key}/answers"][answer])  # NaN: no answer exists
        degenerate = bool(data[f"{key}/degenerate"][answer])
        if num_tasks < row.least or (expected.isnan().any() and not degenerate):
            continue
        order = torch.from_numpy(data[f"{key}/perms"]).long()
        with backend(name):
            gramian = ops.gramian([[gradient] for gradient in jacobian.to(dtype)])
            weighting = row.make(num_tasks)
            for _ in range(row.steps):
                weights = call(weighting, gramian, None, order) / row.factor(num_tasks)
        assert weights.isfinite().all(), key
        jacobian = jacobian.double()
        combined = weights @ jacobian
        if row.opposes_none:
            longest2 = float(jacobian.square().sum(1).max())
            assert float((jacobian @ combined).min()) >= -1e-9 * longest2, key
        if degenerate:
            # With zero gradients left out of the solve there may be a proper answer.
            assert weighting.status == "degenerate" or condition == "zerorow", key
            if row.bound < float("inf"):
                longest = row.bound * float(jacobian.mean(0).norm())
                assert float(combined.norm()) <= longest * (1 + 1e-9), key
        else:
            assert weighting.status == "ok" or condition not in REGULAR, key
            errors[key] = direction_error(jacobian, weights, expected, row.floor)
    assert errors or condition == "zerorow"
    allowed = 1e-6 if condition in NEAR_SINGULAR else 1e-9
    assert {key: error for key, error in errors.items() if not error <= allowed} == {}


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("row", [row for row in ROWS if row.stream], ids=str)
def test_stream(row: Row, name: str, num_tasks: int) -> None:
    data = oracle()
    losses = torch.from_numpy(data[f"K{num_tasks}/losses"])
    norms = torch.from_numpy(data[f"K{num_tasks}/norms"])
    expected = torch.from_numpy(data[f"K{num_tasks}/{row.stream}"])
    expected = expected.view(-1, num_tasks)  # [12, K], or one step
    weighting = row.make(num_tasks)
    with backend(name):
        found = []
        for t in range(len(expected)):
            found.append(call(weighting, norms[t].square().diag(), row.seen(losses[t]), None))
            row.after(weighting)
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-12)
