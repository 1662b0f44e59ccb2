"""GradNorm in plain torch (Chen et al., ICML 2018, arXiv 1711.02257)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.scaffold import Problem

_FLOOR = 1e-6  # smallest weight beside the others' order of 1


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of GradNorm before this call's update, which goes to ``state``.

    Options: ``alpha``, ``lr``, ``sgd`` (0: relative Adam), ``softmax`` (0: the state holds weights
    with sum K, 1: logits). State ``[2 + 4 K]``: updates done, started, then K each of weights or
    logits, initial losses, first moments, second moments. Where no weighted norm is positive,
    nothing is updated (degenerate).
    """
    alpha, lr, sgd, softmax = problem.options
    losses, state, num_tasks = problem.losses, problem.state, problem.num_tasks
    if losses is None or state is None:
        return torch.full((num_tasks,), math.nan, dtype=torch.float64), scaffold.NON_FINITE
    values, initial, first, second = state[2:].view(4, num_tasks)
    if state[1] == 0:
        state[1] = 1.0
        values.fill_(0.0 if softmax else 1.0)
    initial.copy_(torch.where(initial == 0, losses, initial))  # a loss of zero has no rate yet
    weights = num_tasks * values.softmax(0) if softmax else values.clone()

    norms = problem.gramian.diagonal().clamp(min=0).sqrt()
    weighted = weights * norms
    if not weighted.mean() > 0:
        return weights, scaffold.DEGENERATE
    rates = torch.where(initial != 0, losses / initial, 1.0)
    mean_rate = rates.mean()
    usable = bool(mean_rate.isfinite()) and bool(mean_rate > 0)
    relative = (rates / mean_rate).clamp(min=0) if usable else torch.ones_like(rates)
    target = weighted.mean() * relative**alpha
    gap = weighted - target
    sign = torch.where(gap.abs() <= 1e-12 * target, 0.0, gap.sign())

    slope = sign * norms * (problem.scale if sgd else 1 / norms.mean())  # d sum|gap| / d weights
    if softmax:
        slope = weights * (slope - (weights * slope).mean())  # d / d logits
    state[0] += 1
    if sgd:
        step = slope
    else:
        first.copy_(0.9 * first + 0.1 * slope)
        second.copy_(0.999 * second + 0.001 * slope**2)
        step = (first / (1 - 0.9 ** state[0])) / (second / (1 - 0.999 ** state[0])).sqrt()
        step = torch.where(second > 0, step, 0.0)
        if not softmax:
            step = step * values
    moved = values - lr * step
    if softmax:
        values.copy_(moved.clamp(min=moved.max() + math.log(_FLOOR)))
    else:
        moved = moved.clamp(min=_FLOOR)
        values.copy_(num_tasks * moved / moved.sum())
    return weights, scaffold.OK
