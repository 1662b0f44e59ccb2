"""What a method is shown of a step, and what its answer means for each gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtlfast import jacobian, scaling
from mtlfast.jacobian import Jacobian, Split, TaskGradients
from mtlfast.jacobian.gradients import device_of
from mtlfast.losses import TaskLosses
from mtlfast.nonfinite import Policy
from mtlfast.ops import TaskGrads
from mtlfast.weighting import Weighting


class Shown(NamedTuple):
    """What there is to weight.

    Attributes:
        losses: ``[K]`` float64.
        gramian: ``[B K, B K]`` float64, of the gradients that are compared; None: nobody asks.
        kept: ``[K]``, which tasks stay; None: all. A dropped one counts as one with a zero gradient
            and the loss that it had before.
    """

    losses: Tensor
    gramian: Tensor | None = None
    kept: Tensor | None = None


def show(
    method: Weighting,
    policy: Policy,
    grads: Jacobian,
    split: Split,
    tasks: TaskLosses,
    losses: Tensor,
) -> Shown:
    """Losses and the Gramian of what is compared, after the policy for NaN and Inf.

    Raises:
        FloatingPointError: NaN or Inf, under the policy "raise".
    """
    if not method.compares_raw and not policy.looks:
        return Shown(losses)
    gramian = scaling.unscaled(grads.gramian(split.compared, losses), tasks.scale)
    if not policy.looks:
        return Shown(losses, gramian)
    squares = losses  # scaled gradients may overflow, which is for the scaler to see
    if tasks.scale is None:
        squares = gramian.diagonal() + grads.squares(split.others, losses)
    kept = policy.kept(tasks.names, squares, losses)
    if kept is None:
        return Shown(losses, gramian)
    rows = kept.repeat(method.num_batches)
    gramian = torch.where(rows & rows[:, None], gramian, 0.0)
    return Shown(policy.losses(losses, kept), gramian, kept)


def show_again(
    policy: Policy, grads: Jacobian, split: Split, tasks: TaskLosses, losses: Tensor
) -> Shown:
    """As :func:`show`, where the weights are known and no Gramian is needed."""
    if not policy.looks:
        return Shown(losses)
    squares = losses
    if tasks.scale is None:
        squares = grads.squares([*split.shared, *split.own], losses)
    kept = policy.kept(tasks.names, squares, losses)
    return Shown(losses) if kept is None else Shown(policy.losses(losses, kept), None, kept)


def transformed(
    method: Weighting,
    rows: TaskGrads,
    shown: Shown,
    shared: list[Tensor],
    params: list[Tensor],
) -> TaskGrads:
    """What a method that reads all task gradients makes of those of the shared parameters.

    A method with buffers knows a parameter by its place among all ``params`` of the optimizer.

    Raises:
        ValueError: the shared parameters lie on several devices.
    """
    devices = {str(device_of(param)) for param in shared}
    if len(devices) > 1:
        raise ValueError(
            f"shared_params: expected parameters on one device for {type(method).__name__}, which "
            f"reads all task gradients at once, found some on {', '.join(sorted(devices))}"
        )
    if shown.kept is not None:
        rows = jacobian.masked(rows, shown.kept.repeat(method.num_batches))
    if not method.keeps_buffers:
        return method.transform(rows, shown.losses)
    known = {id(param): t for t, param in enumerate(params)}
    places = [known[id(param)] for param in shared]
    wide: TaskGradients = [[None] * len(params) for _ in rows]
    for wide_row, row in zip(wide, rows, strict=True):
        for place, grad in zip(places, row, strict=True):
            wide_row[place] = grad
    return [[row[place] for place in places] for row in method.transform(wide, shown.losses)]


def factors(
    method: Weighting, weights: Tensor | None, shown: Shown
) -> tuple[Tensor | None, Tensor]:
    """``[B K]`` factors of shared gradients and of those of single tasks; 0 where dropped.

    What a task owns gets the mean over batches. No factors of shared gradients where columns are
    combined.
    """
    if weights is None:
        own = torch.ones_like(shown.losses)
    elif method.num_batches > 1:
        own = method.own_weights(weights[: len(shown.losses)], shown.losses)
    else:
        own = method.own_weights(weights, shown.losses)
    if method.num_batches > 1:
        own = own.repeat(method.num_batches) / method.num_batches
    if shown.kept is not None:
        rows = shown.kept.repeat(method.num_batches)
        own = torch.where(rows, own, 0.0)
        weights = None if weights is None else torch.where(rows, weights, 0.0)
    return weights, own
