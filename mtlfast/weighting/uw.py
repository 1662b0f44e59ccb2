"""UW: each loss is divided by a learned variance."""

from __future__ import annotations

from mtlfast.weighting.learned_scales import LearnedScales


class UW(LearnedScales):
    """Learns the log variance ``s_i`` of each task's noise along with the model.

    The objective is ``sum_i (exp(-s_i) L_i + s_i) / 2``, hence ``w_i = exp(-s_i) / 2`` and the
    slope ``(1 - exp(-s_i) L_i) / 2`` for s_i; both settle at ``w_i = 1 / (2 L_i)``. A call returns
    the weights from before its own update: the first call gives ``exp(-initial) / 2``.

    Shapes: losses ``[K]`` -> weights ``[K]`` float64; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    In most codes, TorchJD's among them, s is a parameter in the model's own optimizer: that is
    ``UW(lr=None, num_tasks=K)`` with its ``parameters()`` among those of the optimizer. Each call
    adds to their ``grad``. LibMTL starts at ``initial=-0.5``. ``optimizer="sgd"`` takes the plain
    step ``s <- s - lr * slope``.

    Adam, the default (0.9, 0.999, 1e-8, bias-corrected), sees the slope divided by
    ``max(1, exp(-s_i) L_i)``, which keeps it within 1/2. Then a loss of 1000 is as far from its
    fixed point as one of 1/1000: 325 steps at the default lr. On the plain slope Adam takes 4400
    steps for the loss of 1000, whose first slopes fill the second moment, and SGD at lr 0.1 jumps
    43 beyond the fixed point. ``|s|`` is kept below 50.

    Degenerate (see ``status``): a loss that is not positive has no variance; its s stays as it is.
    NaN or Inf in the losses gives NaN weights and leaves the state alone. Once settled, scaling a
    loss changes nothing in ``w_i L_i``. Use it where losses differ in unit or scale, at the price
    of plain training. It fails where a loss goes to zero: its weight grows without end (to
    ``exp(50) / 2``), and noise of an easy task then rules the step.

    State: number of updates, log variances, Adam's moments; with ``lr=None`` the log variances.

    Args:
        lr: step length of s, above 0; None: an optimizer of the user's moves them. Default 0.025.
        optimizer: "adam" (see above) or "sgd". Default "adam".
        initial: s at the start, in [-50, 50). Default 0.
        num_tasks: K, needed with ``lr=None``. Default None: that of the first call.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
    Geometry and Semantics", CVPR 2018, arXiv 1705.07115.
    """

    name = "uw"
    paper = (
        "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, "
        "2018, arXiv 1705.07115"
    )
    scalars = "log_variances"
