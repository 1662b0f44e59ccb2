"""IMTL-L: learned scales that bring every loss to 1."""

from __future__ import annotations

from mtlfast.weighting.learned_scales import LearnedScales


class IMTLL(LearnedScales):
    """Learns the log scale ``s_i`` that brings each task's loss to 1.

    The objective is ``sum_i exp(s_i) L_i - s_i``, hence ``w_i = exp(s_i)`` and the slope
    ``exp(s_i) L_i - 1`` for s_i; both settle at ``w_i = 1 / L_i``. A call returns the weights from
    before its own update: the first call gives ``exp(initial)``. It is the half of IMTL that
    balances losses; the other half, IMTL-G, balances gradients.

    Shapes: losses ``[K]`` -> weights ``[K]`` float64; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    In TorchJD and LibMTL s is a parameter in the model's own optimizer: that is
    ``IMTLL(lr=None, num_tasks=K)`` with its ``parameters()`` among those of the optimizer. Each
    call adds to their ``grad``. ``optimizer="sgd"`` takes the plain step ``s <- s - lr * slope``.
    It is twice :class:`~mtlfast.weighting.uw.UW` with the sign of s turned.

    Adam, the default (0.9, 0.999, 1e-8, bias-corrected), sees the slope divided by
    ``max(1, exp(s_i) L_i)``, which keeps it within 1: a loss of 1000 takes as many steps to its
    fixed point as one of 1/1000, 325 at the default lr. ``|s|`` is kept below 50.

    Degenerate (see ``status``): a loss that is not positive cannot be scaled to 1; its s stays as
    it is. NaN or Inf in the losses gives NaN weights and leaves the state alone. Once settled,
    scaling a loss changes nothing in ``w_i L_i``. Use it where losses differ in unit or scale, at
    the price of plain training. It fails where a loss goes to zero: its weight grows without end
    (to ``exp(50)``), and noise of an easy task then rules the step.

    State: number of updates, log scales, Adam's moments; with ``lr=None`` the log scales.

    Args:
        lr: step length of s, above 0; None: an optimizer of the user's moves them. Default 0.025.
        optimizer: "adam" (see above) or "sgd". Default "adam".
        initial: s at the start, in [-50, 50). Default 0.
        num_tasks: K, needed with ``lr=None``. Default None: that of the first call.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021,
    OpenReview IMPnRXEWpvr.
    """

    name = "imtll"
    paper = "Towards Impartial Multi-task Learning, 2021, OpenReview IMPnRXEWpvr"
    scalars = "log_scales"
