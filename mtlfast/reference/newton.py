"""The root w > 0 of ``G w = w^-q`` in plain torch, for Nash-MTL (q = 1) and FairGrad (q = 1/alpha).

With the cosines C and ``v = n w`` it reads ``C v = z`` and ``log z + q log v = (q - 1) log n``;
both v and z are unknowns of Newton's step. See ``csrc/solvers/newton.h``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import EPSILON, Problem

_MAX_ITERATIONS = 200
_REACH = 4.0  # largest relative change of a step
_TOLERANCE = 1e-8  # of the last step; what is left is of its square
_LOOSE_TOLERANCE = 0.1
_HUGE = torch.finfo(torch.float64).max
_NOISE = 1024 * EPSILON  # of |J'w|^2, relative to (sum w_i n_i)^2


def fair_weights(
    problem: Problem, exponent: float, factor: float, max_norm: float
) -> tuple[Tensor, int]:
    """The root times ``factor``, shortened where ``|J'w|`` exceeds ``max_norm``.

    Where there is none (degenerate), the last one, which is the state ``[K]``, or ``factor / n_i``
    before there was one (zeros), shortened likewise. Zero gradients have weight 0.

    Args:
        problem: the call.
        exponent: q > 0.
        factor: a multiple of the root, above 0.
        max_norm: may be infinite.

    Returns:
        Weights ``[K]`` and status.
    """
    assert problem.state is not None
    norms = problem.gramian.diagonal().clamp(min=0).sqrt()
    alive = norms > 0
    weights = torch.zeros_like(norms)
    unit = torch.ones((), dtype=torch.float64)
    values, length, status = _solve(problem.gramian[alive][:, alive], norms[alive], exponent)
    if status == scaffold.DEGENERATE:
        weights[alive] = factor / (problem.scale * norms[alive])
        if bool(problem.state.any()):
            weights = problem.state.clone()
        scaled = problem.scale * weights
        length = math.sqrt(max(float(scaled @ problem.gramian @ scaled), 0.0))
    else:
        # s^2 G w = w^-q: the root goes with s to the power -2 / (1 + q), |J'w| with one more.
        weights[alive] = values / norms[alive]
        scale = torch.tensor(problem.scale, dtype=torch.float64)
        unit = factor * scale ** (-2 / (exponent + 1))
        length *= factor * float(scale ** ((exponent - 1) / (exponent + 1)))
    if length > max_norm:
        unit = unit * (max_norm / length)
    weights = (weights * unit.clamp(max=_HUGE)).clamp(max=_HUGE)
    if status == scaffold.OK:
        problem.state.copy_(weights)
    return weights, status


def _solve(gramian: Tensor, norms: Tensor, exponent: float) -> tuple[Tensor, float, int]:
    """v, ``|J'w|`` and the status for nonzero gradients, ``[A, A]`` and ``[A]``."""
    if len(norms) == 0:
        return norms, 0.0, scaffold.DEGENERATE
    cosines = (gramian / norms / norms[:, None]).clamp(-1, 1).fill_diagonal_(1.0)
    # Equal v at the length that would be right if the sum of the unit gradients were the answer.
    total = max(float(cosines.sum()), 1e-3 * len(norms))
    values = torch.full_like(norms, math.sqrt(len(norms) / total))
    log_slacks = -values.log()
    # Whether a root exists does not depend on q, and q = 1 does not see the lengths.
    tolerance = _TOLERANCE if exponent == 1 else _LOOSE_TOLERANCE
    values, log_slacks, status = _iterate(
        cosines, torch.zeros_like(norms), 1.0, values, log_slacks, tolerance
    )
    if exponent != 1 and status == scaffold.OK:
        targets = (exponent - 1) * norms.log()
        values, log_slacks, status = _iterate(
            cosines, targets, exponent, values, log_slacks, _TOLERANCE
        )
    return values, math.sqrt(float(values @ log_slacks.exp())), status


def _iterate(
    cosines: Tensor,
    targets: Tensor,
    exponent: float,
    values: Tensor,
    log_slacks: Tensor,
    tolerance: float,
) -> tuple[Tensor, Tensor, int]:
    """Newton's steps from ``values`` and ``log_slacks``: where they end, and the status."""
    last_change = math.inf
    for _ in range(_MAX_ITERATIONS):
        products = cosines @ values
        spread = float(values.sum())
        if exponent == 1 and not float(values @ products) > _NOISE * spread * spread:
            return values, log_slacks, scaffold.DEGENERATE
        residuals = targets - log_slacks - exponent * values.log()
        slacks = log_slacks.exp()
        matrix = cosines + (exponent * slacks / values).diag()
        steps, _ = torch.linalg.solve_ex(matrix, slacks * (1 + residuals) - products)
        steps = steps / values
        slack_steps = residuals - exponent * steps
        change = max(float(steps.abs().max()), float(residuals.abs().max()))
        longest = max(change, float(slack_steps.abs().max()))
        if not math.isfinite(longest):
            break
        fraction = min(1.0, _REACH / max(longest, _TOLERANCE))
        steps, slack_steps = fraction * steps, fraction * slack_steps
        values = values * torch.where(steps < 0, steps.exp(), 1 + steps)
        log_slacks = log_slacks + torch.where(
            slack_steps < 0, slack_steps, slack_steps.clamp(min=0).log1p()
        )
        # Where a small step does not halve, it is rounding.
        if change <= tolerance or 0.5 * last_change <= change < 0.05:
            return values, log_slacks, scaffold.OK
        last_change = change
    return values, log_slacks, scaffold.NOT_CONVERGED
