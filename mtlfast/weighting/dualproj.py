"""DualProj: the mean gradient, made to oppose no task."""

from __future__ import annotations

from mtlfast.weighting.dual_cone import DualCone


class DualProj(DualCone):
    """Projects the mean gradient onto the dual cone of the task gradients.

    With preferences p, ``d = Jᵀv`` is the point of ``{d : <g_i, d> >= 0 for all i}`` nearest to
    ``Jᵀp``: ``v = argmin |Jᵀv|`` over ``v >= p``. It is a non-negative quadratic programme on the
    Gramian, solved exactly by an active set.

    Shapes: gramian ``[K, K]`` -> weights ``[K]`` float64. No state.

    It is the projection of GEM (Gradient Episodic Memory), whose memories are tasks here. GEM's
    official code adds 1e-3 to the diagonal and demands a margin of 0.5 in the multipliers. The
    default preference, 1/K each, is TorchJD's, which adds 1e-4 to the diagonal of the Gramian over
    its trace: its update is off by 2e-3 on ordinary gradients and by 0.4 on conflicting ones, which
    it still opposes, and where the norm of all gradients is below 1e-2 it is the plain mean.
    Nothing is added here.

    Never degenerate: ``min_i <g_i, d> >= 0`` to 1e-9 of the longest ``|g_i|²``, at every scale of
    the gradients and for zero, equal and opposite ones; 1e-8 where two are opposite to 1e-7, an
    angle that a float64 Gramian cannot tell from zero. A task with a zero gradient has weight p_i.
    Use it where the mean is right as long as it harms nobody; it costs one programme where UPGrad
    costs K. It fails where one gradient is far longer than the others: it is most of the mean, and
    the others are merely not opposed.

    Args:
        preference: one number for each task, at least 0 and not all 0, a sequence or a 1-D tensor,
            used as they are. Default None: 1/K each.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K is not the number of
            preferences.

    Reference: Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NIPS 2017,
    arXiv 1706.08840.
    """

    name = "dualproj"
    family = "gramian"
    paper = "Gradient Episodic Memory for Continual Learning, 2017, arXiv 1706.08840"
