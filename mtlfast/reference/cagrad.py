"""CAGrad in plain torch (Liu et al., NeurIPS 2021, arXiv 2110.14048).

The Gramian is factored once (an eigendecomposition of the cosine matrix), after which the solve is
plain geometry on K short vectors: least squares on the affine hull of a support, Wolfe's rule for
who joins and leaves it, and one scalar equation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import EPSILON, Problem

_MEAN_NOISE = 8 * EPSILON  # of |g0|^2, relative to (sum n_i / K)^2
_NOISE = 4.8e-7  # of |g_w|, relative to sum w_i n_i


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of CAGrad: 1/K + rho w* / |g_w|, where g_w = sum w*_i g_i and rho = c |g0|.

    Options: ``c``, ``rescale`` (0: none, 1: / (1 + c^2), 2: / (1 + c)), ``sum`` (1: times K). Tasks
    with a zero gradient count in the mean g0 only. Where g0 = 0 or g_w = 0 the answer is g0 itself
    (degenerate).
    """
    c, rescale, total = problem.options
    num_tasks = problem.num_tasks
    factor = {0: 1.0, 1: 1 / (1 + c * c), 2: 1 / (1 + c)}[int(rescale)]
    if total:
        factor *= num_tasks
    weights = torch.full((num_tasks,), factor / num_tasks, dtype=torch.float64)

    norms = problem.gramian.diagonal().clamp(min=0).sqrt()
    mean_norm2 = float(problem.gramian.mean())
    if not (bool(norms.any()) and mean_norm2 > _MEAN_NOISE * float(norms.mean()) ** 2):
        return weights, scaffold.DEGENERATE
    if c == 0:
        return weights, scaffold.OK
    alive = norms > 0
    vectors = _factor(problem.gramian[alive][:, alive])  # [A, A]: row i stands for g_i
    mean = vectors.sum(0) / num_tasks
    rho = c * math.sqrt(mean_norm2)

    # |g_w(tau)| = rho tau, between a |g_w| that is all rounding and the longest gradient
    lowest = _NOISE * float(vectors.norm(dim=1).min()) / rho
    low, high = 0.0, 1.001 * float(norms.max()) / rho
    tau = 1 / c
    support = [int((vectors @ mean).argmin())]
    dual = torch.zeros(len(vectors), dtype=torch.float64)
    dual[support] = 1.0
    status = scaffold.NOT_CONVERGED
    for _ in range(128):
        support, dual = _simplex_point(vectors, tau * mean, support, dual)
        nearest = _hull_weights(vectors[support], torch.zeros_like(mean)) @ vectors[support]
        drift = (dual @ vectors - nearest) / tau
        room = rho * rho - float(drift @ drift)
        if float(nearest @ nearest) < room * tau * tau:
            if tau <= lowest:
                return weights, scaffold.DEGENERATE
            high = tau
        else:
            low = tau
        proposal = math.sqrt(float(nearest @ nearest) / room) if room > 0 else math.inf
        if min(abs(proposal - tau), high - low) <= 4 * EPSILON * tau:
            status = scaffold.OK
            break
        proposal = max(proposal, lowest)
        tau = proposal if low < proposal < high else math.sqrt(max(low, lowest) * high)

    length = float((dual @ vectors).norm())
    if not length > _NOISE * float(dual @ norms[alive]):
        return weights, scaffold.DEGENERATE
    weights[alive] += factor * rho / length * dual
    return weights, status


def _factor(gramian: Tensor) -> Tensor:
    """Rows whose inner products are the Gramian ``[A, A]``; its diagonal is positive.

    The cosine matrix is decomposed, not the Gramian, so that short gradients keep their digits.
    """
    norms = gramian.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(gramian / norms / norms[:, None])
    rows: Tensor = norms[:, None] * vectors * values.clamp(min=0).sqrt()
    return rows


def _hull_weights(points: Tensor, shift: Tensor) -> Tensor:
    """Weights ``[S]`` with sum 1, of any sign, that minimise the norm of ``w @ points + shift``."""
    anchor = int(points.norm(dim=1).argmin())
    others = [i for i in range(len(points)) if i != anchor]
    weights = torch.ones(len(points), dtype=torch.float64)
    if others:
        differences = (points[others] - points[anchor]).T
        lengths = differences.norm(dim=0).clamp(min=1e-300)
        fit = torch.linalg.lstsq(
            differences / lengths, -(points[anchor] + shift)[:, None], driver="gelsd"
        )
        weights[others] = fit.solution[:, 0] / lengths
        weights[anchor] = 1 - weights[others].sum()
    return weights


def _simplex_point(
    vectors: Tensor, shift: Tensor, support: list[int], weights: Tensor
) -> tuple[list[int], Tensor]:
    """Minimises the norm of ``w @ vectors + shift`` over the simplex, from a feasible point.

    Args:
        vectors: ``[A, D]``.
        shift: ``[D]``.
        support: tasks with a weight that may be positive.
        weights: ``[A]``, in the simplex, zero off the support.

    Returns:
        The support and the weights ``[A]`` of the minimiser.
    """
    norms = vectors.norm(dim=1)
    support, weights = _settle(vectors, shift, support, weights)
    refused: list[int] = []
    for _ in range(8 * len(vectors) + 64):
        point = weights @ vectors
        heights = vectors @ (point + shift)
        level = float(weights @ heights)
        spread = float(weights @ norms)
        rounding = 16 * EPSILON * (norms + spread) * (spread + float(shift.norm()))
        violation = (level - heights) / rounding
        violation[support + refused] = 0.0
        worst = int(violation.argmax())
        if not float(violation[worst]) > 1:
            break
        before = support
        support, weights = _settle(vectors, shift, [*support, worst], weights)
        # Leaving at once, and alone, means that only rounding made it look useful.
        refused = [*refused, worst] if support == before else []
    return support, weights


def _settle(
    vectors: Tensor, shift: Tensor, support: list[int], weights: Tensor
) -> tuple[list[int], Tensor]:
    """Moves to the minimiser on the support's hull; whoever would go negative leaves."""
    support = list(support)
    while True:
        target = torch.zeros_like(weights)
        target[support] = _hull_weights(vectors[support], shift)
        blocking = [i for i in support if target[i] <= 0]
        if not blocking:
            return support, target
        ways = weights[blocking] / (weights[blocking] - target[blocking]).clamp(min=1e-300)
        first = blocking[int(ways.argmin())]
        weights = (weights + ways.min() * (target - weights)).clamp(min=0)
        weights[first] = 0.0
        support.remove(first)
