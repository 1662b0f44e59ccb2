"""The trimmed mean: robust against a few tasks with wild gradients."""

from __future__ import annotations

from torch import Tensor

from mtlfast import column_ops
from mtlfast.ops import TaskGrads
from mtlfast.weighting import checks
from mtlfast.weighting.column_wise import ColumnWise


class TrimmedMean(ColumnWise):
    """Averages every column of the Jacobian without its largest and smallest entries.

    Of the K entries of each column the ``trim_number`` largest and as many smallest are left out;
    d is the mean of the others. With K odd and ``trim_number = (K - 1) / 2`` it is the median.

    Shapes: task gradients ``[K, P]``, ``K > 2 trim_number`` -> combined gradient ``[P]``; there are
    no task weights. A task that does not reach a tensor counts as zeros there. No state.

    TorchJD's is the same but for NaN, which it sorts last and so leaves out without a word; here it
    comes through, and only Inf is left out like any large number. The paper trims a share of
    machines that compute the same gradient; here the rows are tasks.

    Degenerate: never. Equal entries are as good as each other, and with ``trim_number=0`` it is the
    mean. Use it where a few of many tasks may have gradients that are wrong rather than different.
    It fails where the tasks differ by nature: what a single task needs is the first to be trimmed,
    and the update may oppose it.

    Args:
        trim_number: how many entries to leave out at either end of a column, at least 0.

    Raises:
        TypeError, ValueError: ``trim_number`` is no such number; at a call, K is too small.

    Reference: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", ICML 2018, arXiv 1803.01498.
    """

    name = "trimmed_mean"
    paper = (
        "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, 2018, "
        "arXiv 1803.01498"
    )

    def __init__(self, trim_number: int) -> None:
        self.trim_number = checks.count("trim_number", trim_number, 0)

    def combine(
        self,
        task_grads: TaskGrads,
        weights: Tensor | None = None,
        out: list[Tensor | None] | None = None,
        **inputs: Tensor | None,
    ) -> list[Tensor | None]:
        """The combined gradient, as :func:`mtlfast.column_ops.trimmed_mean`."""
        del weights
        self.check_inputs(inputs)
        return column_ops.trimmed_mean(task_grads, self.trim_number, out=out)

    def combine_(
        self,
        params: list[Tensor],
        task_grads: TaskGrads,
        weights: Tensor | None = None,
        *,
        accumulate: bool = False,
        **inputs: Tensor | None,
    ) -> None:
        """Writes the combined gradient to ``p.grad``."""
        del weights
        self.check_inputs(inputs)
        column_ops.trimmed_mean_(params, task_grads, self.trim_number, accumulate=accumulate)
