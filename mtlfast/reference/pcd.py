"""PCD in plain torch (TMLR 2026, arXiv 2606.29521)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import nnls, scaffold
from mtlfast.reference.scaffold import EPSILON, Problem

_NOISE = 1024 * EPSILON  # of |d|^2, relative to the squared sum of the lengths of its parts
_INFEASIBLE = 1e-12  # of the squared residual, which is 1 / (1 + |d - h_0|^2)


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of PCD: the nearest d to h_0 that fulfils the other tasks' conditions, rescaled.

    Options: ``beta``, ``eps``, ``tau``. Inputs: tau of every task, or None. State ``[1 + K]``:
    calls, moving averages of the squared norms. A primary gradient of zero has weights 0.
    Contradictory conditions are dropped, and a d of zero has weights 0 (both degenerate).
    """
    beta, eps, tau = problem.options
    state, num_tasks = problem.state, problem.num_tasks
    assert state is not None
    squares = problem.gramian.diagonal().clamp(min=0) * problem.scale * problem.scale
    state[0] += 1
    state[1:] = beta * state[1:] + (1 - beta) * squares
    running = (state[1:] / (1 - beta ** state[0]) + eps).sqrt()

    weights = torch.zeros(num_tasks, dtype=torch.float64)
    if not squares[0] > 0:
        return weights, scaffold.OK
    alive = (squares > 0).nonzero()[:, 0]
    norms, rows = nnls.unit_rows(problem.gramian[alive][:, alive])
    lengths = norms * problem.scale / running[alive]  # |h_i|
    taus = torch.full_like(norms, tau) if problem.inputs is None else problem.inputs[alive]
    shares, status = _nearest(rows, lengths, taus)
    if status == scaffold.DEGENERATE:
        weights[0] = 1.0
        return weights, status
    length = float((shares @ rows).norm())
    if not length**2 > _NOISE * float(shares.sum()) ** 2:
        # d keeps every promise: if it is rounding beside its parts, only rounding made it possible.
        weights[0] = float(bool((taus[1:] * lengths[1:] > 0).any()))
        return weights, scaffold.DEGENERATE
    weights[alive] = shares / length * (norms[0] / norms)
    return weights, status


def _nearest(rows: Tensor, lengths: Tensor, taus: Tensor) -> tuple[Tensor, int]:
    """The nearest d to ``lengths[0] * rows[0]`` with ``rows[j] @ d >= taus[j] * lengths[j]``.

    It is the least-distance problem of Lawson and Hanson (chapter 23), which they reduce to
    non-negative least squares: the residual's last entry says whether there is such a d at all.

    Returns:
        ``d`` as coefficients ``[A]`` of the rows, and a status; degenerate: there is no such d.
    """
    shares = torch.zeros_like(lengths)
    shares[0] = lengths[0]
    missing = taus[1:] * lengths[1:] - rows[1:] @ (lengths[0] * rows[0])
    if len(missing) == 0 or not bool((missing > 0).any()):
        return shares, scaffold.OK
    matrix = torch.cat((rows[1:].T, missing[None]))
    target = torch.zeros(len(matrix), dtype=torch.float64)
    target[-1] = 1.0
    multipliers, reached = nnls.solve(matrix, target)
    residual = float(1 - missing @ multipliers)
    if residual <= _INFEASIBLE and bool((taus[1:] * lengths[1:] > 0).any()):
        return shares, scaffold.DEGENERATE
    shares[1:] = multipliers / residual
    return shares, scaffold.OK if reached else scaffold.NOT_CONVERGED
