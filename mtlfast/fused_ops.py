"""The doors to the fused step: task gradients, parameter and state in one pass over memory.

As in :mod:`mtlfast.ops`, native or reference. The arithmetic is that of ``torch.optim``, in float64
without a rounding in between; what is written is rounded once.
"""

from __future__ import annotations

from torch import Tensor

from mtlfast import ops, reference
from mtlfast.column_ops import check_list, device_of
from mtlfast.ops import TaskGrads


def sgd_(
    params: list[Tensor],
    task_grads: TaskGrads,
    weights: Tensor,
    momentum_buffers: list[Tensor] | None,
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
    scale: Tensor | None = None,
) -> None:
    """A step of ``torch.optim.SGD`` with the gradient ``scale · Jᵀw``, which is not written.

    Args:
        params: T tensors; where no task reaches one, it and its state are left alone.
        task_grads: as for :func:`mtlfast.ops.gramian`, of the parameters' shapes and dtypes.
        weights: ``[K]`` float64 on the gradients' device. A weight of exactly 0 drops its task.
        momentum_buffers: T tensors like the parameters; None for a step without momentum.
        lr: a number, or a tensor with one; it is not read by the host where the gradients are.
        momentum: share of the buffer that is kept.
        dampening: what the share of the gradient falls short of 1.
        weight_decay: times the parameter, added to the gradient.
        nesterov: use the buffer of the step to come.
        maximize: go up instead of down.
        first: the buffers hold nothing yet, and become the gradient.
        scale: float64 scalar on the gradients' device; None: 1.

    Raises:
        TypeError, ValueError: as :func:`mtlfast.ops.combine_`, or a list or ``scale`` does not
            fit. Nothing has changed then.
    """
    lists = ops.rows(task_grads)
    _check(weights, scale, params=params, momentum_buffers=momentum_buffers)
    native = ops.route(lists)
    numbers = (momentum, dampening, weight_decay, nesterov, maximize, first, scale)
    if native is None:
        reference.sgd_(params, lists, weights, momentum_buffers, lr, *numbers)
    else:
        rate = _rate(lr, lists)
        native.fused_sgd(params, lists, weights, momentum_buffers, *rate, *numbers)


def adam_(
    params: list[Tensor],
    task_grads: TaskGrads,
    weights: Tensor,
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor] | None,
    steps: list[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    capturable: bool = False,
    scale: Tensor | None = None,
) -> None:
    """A step of ``torch.optim.Adam`` or ``AdamW`` with the gradient ``scale · Jᵀw``.

    Args:
        params: as for :func:`sgd_`.
        task_grads: as for :func:`sgd_`.
        weights: as for :func:`sgd_`.
        exp_avgs: T tensors like the parameters.
        exp_avg_sqs: T tensors like the parameters.
        max_exp_avg_sqs: T tensors like the parameters; None for a step without amsgrad.
        steps: T scalar tensors, float32 or float64, each the steps of a tensor so far; those of
            the tensors that a task reaches are advanced.
        lr: a number, or a tensor with one; it is not read by the host where the gradients are.
        beta1: share of the mean gradient that is kept.
        beta2: share of the mean square that is kept.
        eps: added to the root.
        weight_decay: as for :func:`sgd_`.
        decoupled: the decay is AdamW's, of the parameter, not of the gradient.
        maximize: go up instead of down.
        capturable: the steps are on the gradients' device, all float32 or all float64, and read
            there; else they are on the CPU.
        scale: as for :func:`sgd_`.

    Raises:
        TypeError, ValueError: as :func:`sgd_`.
    """
    lists = ops.rows(task_grads)
    _check(
        weights,
        scale,
        params=params,
        exp_avgs=exp_avgs,
        exp_avg_sqs=exp_avg_sqs,
        max_exp_avg_sqs=max_exp_avg_sqs,
        steps=steps,
    )
    native = ops.route(lists)
    if native is None:
        reference.adam_(
            params,
            lists,
            weights,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            steps,
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            decoupled,
            maximize,
            scale,
        )
    else:
        native.fused_adam(
            params,
            lists,
            weights,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            steps,
            *_rate(lr, lists),
            beta1,
            beta2,
            eps,
            weight_decay,
            decoupled,
            maximize,
            capturable,
            scale,
        )


def _rate(lr: float | Tensor, task_grads: TaskGrads) -> tuple[float, Tensor | None]:
    """The learning rate as a number, or where the gradients are, in a tensor."""
    if isinstance(lr, Tensor) and lr.device == device_of(task_grads):
        return 0.0, lr.detach()
    return float(lr), None


def _check(weights: object, scale: object, **lists: object) -> None:
    for name, tensor in (("weights", weights), ("scale", scale)):
        if not isinstance(tensor, Tensor) and (tensor is not None or name == "weights"):
            raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    for name, tensors in lists.items():
        check_list(name, tensors)
