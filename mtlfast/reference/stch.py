"""STCH in plain torch (Lin et al., ICML 2024, arXiv 2402.19078)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.losses import door, positive, softmax
from mtlfast.reference.scaffold import Problem

_HUGE = torch.finfo(torch.float64).max


@door
def solve(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of STCH, ``lambda softmax(lambda f / mu)`` on each f.

    Options: ``mu``, ``logarithmic`` (0: f = L, 1: f = log L; a task whose loss is not positive then
    gets weight 0, degenerate). Inputs: the preference lambda, or None for 1 / K.
    """
    mu, logarithmic = problem.options
    preference = problem.inputs
    if preference is None:
        preference = torch.full_like(losses, 1 / problem.num_tasks)
    members = positive(losses) | (not logarithmic)
    heights = losses.log() if logarithmic else losses
    heights = (preference * heights / mu).clamp(-0.5 * _HUGE, 0.5 * _HUGE)
    weights = preference * softmax(heights, members)
    if logarithmic:
        weights = torch.where(weights != 0, (weights / losses).clamp(max=_HUGE), 0.0)
    return weights, scaffold.OK if bool(members.all()) else scaffold.DEGENERATE
