"""FAMO in plain torch (Liu et al., NeurIPS 2023, arXiv 2306.03792)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.losses import adam, door, softmax
from mtlfast.reference.scaffold import Problem

_SHIFT = 1e-8


@door
def solve(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of FAMO, after the update by losses that were still waiting for their observation.

    Options: ``lr``, ``decay``, ``observing`` (1: these losses are those after the step). Inputs:
    the lowest losses, or None for zeros. State ``[2 + 4 K]``: updates, whether losses wait, then K
    each of logits, first moments, second moments, losses that wait. A task at or below its lowest
    loss is left out: weight 0, its logit stays (degenerate).
    """
    lr, decay, observing = problem.options
    assert problem.state is not None
    updates, waits = problem.state[:2]
    logits, first, second, waiting = problem.state[2:].view(4, problem.num_tasks)
    lowest = problem.inputs if problem.inputs is not None else torch.zeros_like(logits)
    before, now = waiting - lowest, losses - lowest

    if waits:
        known = (before > 0) & (now > 0)
        shares = logits.softmax(0)
        known_share = shares[known].sum()
        drops = torch.where(known, (before + _SHIFT).log() - (now + _SHIFT).log(), 0.0)
        if known_share > 0:
            updates += 1
            slope = shares * (drops - shares @ drops / known_share) + decay * logits
            logits -= lr * adam(slope, first, second, updates, known)
        waits.zero_()

    above = now > 0
    weights = softmax(logits - (now + _SHIFT).log(), above)
    if not observing:
        waits.fill_(1.0)
        waiting.copy_(losses)
    return weights, scaffold.OK if bool(above.all()) else scaffold.DEGENERATE
