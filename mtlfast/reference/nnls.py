"""Non-negative least squares, on which the references of MGDA, UPGrad, DualProj and PCD stand.

The native solvers work on the Gramian. Here the gradients themselves are rebuilt, up to a rotation,
as K short vectors, and every method is a least-squares problem on those.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast.reference.scaffold import EPSILON

_DEPENDENT = 1e-8  # unit columns this close to dependent are: no Gramian shows less


def unit_rows(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients as vectors, from their Gramian ``[A, A]`` with a positive diagonal.

    The cosine matrix is decomposed, not the Gramian, so that short gradients keep their digits; an
    eigenvalue that is rounding spans no dimension.

    Returns:
        The norms ``[A]`` and rows of length 1, ``[A, R]``, whose inner products are the cosines.
    """
    norms = gramian.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(gramian / norms / norms[:, None])
    kept = values > 4 * len(values) * EPSILON * values.max()
    rows = vectors[:, kept] * values[kept].sqrt()
    return norms, rows / rows.norm(dim=1, keepdim=True)


def solve(matrix: Tensor, target: Tensor, start: Sequence[int] = ()) -> tuple[Tensor, bool]:
    """Minimises ``|matrix @ x - target|`` over ``x >= 0`` (Lawson and Hanson 1974, chapter 23).

    Args:
        matrix: ``[D, A]``, without columns of zeros.
        target: ``[D]``.
        start: columns that are likely to be positive; any choice gives the same minimum.

    Returns:
        ``x`` ``[A]``, and whether it was reached within the cap on rounds.
    """
    lengths = matrix.norm(dim=0)
    x = torch.zeros(matrix.shape[1], dtype=torch.float64)
    x, support = _settle(matrix, target, x, list(start))
    refused: list[int] = []
    for _ in range(6 * len(x) + 64):
        descent = matrix.T @ (target - matrix @ x) / lengths
        rounding = 16 * EPSILON * (float(target.norm()) + float(x @ lengths))
        descent[support + refused] = 0.0
        entering = int(descent.argmax())
        if not float(descent[entering]) > rounding:
            return x, True
        before = support
        x, support = _settle(matrix, target, x, [*support, entering])
        # Leaving at once, and alone, means that only rounding made it look useful.
        refused = [*refused, entering] if support == before else []
    return x, False


def _settle(
    matrix: Tensor, target: Tensor, x: Tensor, support: list[int]
) -> tuple[Tensor, list[int]]:
    """From a feasible ``x`` to the minimum on the support; whoever would go negative leaves."""
    while support:
        columns = matrix[:, support]
        lengths = columns.norm(dim=0)
        fit = torch.linalg.lstsq(
            columns / lengths, target[:, None], rcond=_DEPENDENT, driver="gelsy"
        )
        best = torch.zeros_like(x)
        best[support] = fit.solution[:, 0] / lengths
        ways = torch.where(best > 0, 1.0, x / (x - best).clamp(min=1e-300))[support]
        if bool((best[support] > 0).all()):
            return best, support
        step = float(ways.min())
        leaving = ((ways <= step) & (best[support] <= 0)).tolist()
        x = (x + step * (best - x)).clamp(min=0)
        x[[i for i, leaves in zip(support, leaving, strict=True) if leaves]] = 0.0
        support = [i for i, leaves in zip(support, leaving, strict=True) if not leaves]
    return torch.zeros_like(x), support
