"""IMTL-G in plain torch (Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold, spectral
from mtlfast.reference.scaffold import EPSILON, Problem

_CANCELLED = 16 * EPSILON  # of the sum, relative to K times that of the sizes


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of IMTL-G: sum 1, and an update with the same projection on every gradient.

    Tasks with a zero gradient get 0. Dependent gradients give the most equal projections there are,
    and where the sum is rounding the answer is 1 / |g_i| over its sum (both degenerate).
    """
    return impartial(problem.gramian, torch.ones(problem.num_tasks, dtype=torch.float64))


def impartial(gramian: Tensor, ratios: Tensor) -> tuple[Tensor, int]:
    """What each ``g_i`` gets when IMTL-G weighs the gradients ``ratios_i g_i``, and a status.

    Args:
        gramian: ``[K, K]``, of the ``g_i``.
        ratios: ``[K]``, positive.
    """
    weights = torch.zeros_like(ratios)
    alive = gramian.diagonal() > 0
    if not bool(alive.any()):
        return weights, scaffold.DEGENERATE
    gramian, ratios = gramian[alive][:, alive], ratios[alive]
    norms = gramian.diagonal().sqrt()
    coefficients, reached, full_rank = spectral.common_cosines(gramian, torch.ones_like(norms))
    status = scaffold.OK if full_rank else scaffold.DEGENERATE
    chosen = coefficients / norms
    if not bool(reached.any()) or _cancels(chosen / ratios):
        chosen, status = 1 / norms, scaffold.DEGENERATE
    weights[alive] = chosen / (chosen / ratios).sum()
    return weights, status


def _cancels(shares: Tensor) -> bool:
    return not shares.sum().abs() > _CANCELLED * len(shares) * shares.abs().sum()
