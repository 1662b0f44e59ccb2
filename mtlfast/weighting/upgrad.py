"""UPGrad: every task's share of the update, made to oppose no task."""

from __future__ import annotations

from mtlfast.weighting.dual_cone import DualCone


class UPGrad(DualCone):
    """Projects each task gradient onto the dual cone of all of them, then adds the projections up.

    With preferences p, the projection of ``p_i g_i`` onto ``{d : <g_j, d> >= 0 for all j}`` is
    ``Jᵀv_i`` with ``v_i = argmin |Jᵀv|`` over ``v >= p_i e_i``; the weights are the sum of the v_i.
    Each is a non-negative quadratic programme on the Gramian, solved exactly by an active set, and
    one starts from the support of the other.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64. No state.

    The default preference, 1/K each, is TorchJD's: without conflict the update is the mean of the
    gradients. TorchJD solves another problem, with 1e-4 added to the diagonal of the Gramian over
    its trace: its update is off by 5e-3 on ordinary gradients and by 0.3 on conflicting ones, which
    it still opposes, and where the norm of all gradients is below 1e-2 it is the plain mean.
    Nothing is added here. With two tasks it is PCGrad's update over 2.

    Never degenerate: ``min_i <g_i, d> >= 0`` to 1e-9 of the longest ``|g_i|²``, at every scale of
    the gradients and for zero, equal and opposite ones; 1e-8 where two are opposite to 1e-7, an
    angle that a float64 Gramian cannot tell from zero. A task with a zero gradient has weight p_i.
    Use it where no step may harm a task. It fails where gradients differ much in length: the
    longest still leads, within the cone. It costs K such programmes.

    Args:
        preference: one number for each task, at least 0 and not all 0, a sequence or a 1-D tensor,
            used as they are. Default None: 1/K each.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K is not the number of
            preferences.

    Reference: Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024,
    arXiv 2406.16232.
    """

    name = "upgrad"
    family = "gramian"
    paper = "Jacobian Descent for Multi-Objective Optimization, 2024, arXiv 2406.16232"
