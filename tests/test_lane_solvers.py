"""Solvers that the lanes of a warp share, on more tasks than lanes, against the host's."""

from __future__ import annotations

import pytest
import torch
from fiber_gpu import ORDERS, fibers, launches
from test_solvers import assert_same, assert_same_direction, jacobians
from torch import Tensor

from mtlfast import ops

pytestmark = pytest.mark.skipif(ops._native is None, reason="needs the native extension")

NUM_TASKS = 37
CASES = {
    "upgrad": ([], 0),
    "dualproj": ([], 0),
    "pcd": ([0.9, 1e-8, 0.02], NUM_TASKS + 1),
    "pcgrad": ([1.0, 0.0], 0),
    "gradvac": ([0.5, 1.0], NUM_TASKS * NUM_TASKS),
    "krum": ([1.0, 5.0, 1.0], 0),
}
"""Options, and the size of the state."""


def solved(name: str, gramian: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options, size = CASES[name]
    state = torch.zeros(size, dtype=torch.float64)
    rng = torch.tensor([3, 5]) if name in ("pcgrad", "gradvac") else None
    status = torch.full((), -1, dtype=torch.int32)
    weights = ops.solve(name, gramian, options=options, rng=rng, state=state, status=status)
    return weights, state, status, torch.empty(0) if rng is None else rng


@pytest.mark.parametrize("name", CASES)
def test_lanes_agree_with_the_host(name: str) -> None:
    for kind, jacobian in jacobians(NUM_TASKS, 1):
        error = 1e-9 if kind in ("plain", "conflict") else 1e-6
        gramian = jacobian @ jacobian.T
        weights, state, status, rng = solved(name, gramian)
        answers = []
        for order in ORDERS:
            with fibers(order):
                answers.append(solved(name, gramian))
                assert sum(launches().values()) == 1
        for found, first in zip(answers[1] + answers[2], answers[0] + answers[0], strict=True):
            assert_same(found, first)  # whichever lane is ahead
        assert_same(answers[0][2], status)
        assert_same(answers[0][3], rng)
        torch.testing.assert_close(answers[0][1], state, rtol=1e-11, atol=1e-11)
        assert_same_direction(answers[0][0], weights, jacobian, error)
