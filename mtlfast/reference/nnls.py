"""Non-negative least squares, on which the references of MGDA, UPGrad, DualProj and PCD stand.

The native solvers work on the Gramian. Here the gradients themselves are rebuilt, up to a rotation,
as K short vectors, and every method is a least-squares problem on those.
"""

from __future__ import annotations

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


def solve(matrix: Tensor, target: Tensor) -> tuple[Tensor, bool]:
    """Minimises ``|matrix @ x - target|`` over ``x >= 0`` (Lawson and Hanson 1974, chapter 23).

    Args:
        matrix: ``[D, A]``, without columns of zeros.
        target: ``[D]``.

    Returns:
        ``x`` ``[A]``, and whether it was reached within the cap on rounds.
    """
    lengths = matrix.norm(dim=0)
    x = torch.zeros(matrix.shape[1], dtype=torch.float64)
    x, support = _settle(matrix, target, x, _guess(matrix, target))
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


def _guess(matrix: Tensor, target: Tensor) -> list[int]:
    """Columns that are likely to be positive: all that are on the wrong side change sides at once.

    That is right after a few rounds as a rule, and may go in circles; any start gives the minimum.
    """
    chosen = matrix.T @ target > 0
    for _ in range(10):
        support = chosen.nonzero()[:, 0].tolist()
        if not support:
            break
        x = _fit(matrix, target, support)
        descent = matrix.T @ (target - matrix @ x)
        sides = torch.where(chosen, x, descent) > 1e-12
        if bool((sides == chosen).all()):
            break
        chosen = sides
    return chosen.nonzero()[:, 0].tolist()


def _settle(
    matrix: Tensor, target: Tensor, x: Tensor, support: list[int]
) -> tuple[Tensor, list[int]]:
    """From a feasible ``x`` to the minimum on the support; whoever would go negative leaves."""
    while support:
        best = _fit(matrix, target, support)
        blocking = best[support] <= 0
        if not bool(blocking.any()):
            return best, support
        ways = torch.where(best > 0, 1.0, x / (x - best).clamp(min=1e-300))[support]
        step = float(ways.min())
        leaving = (blocking & (ways <= step)).tolist()
        x = (x + step * (best - x)).clamp(min=0)
        x[[i for i, leaves in zip(support, leaving, strict=True) if leaves]] = 0.0
        support = [i for i, leaves in zip(support, leaving, strict=True) if not leaves]
    return torch.zeros_like(x), support


def _fit(matrix: Tensor, target: Tensor, support: list[int]) -> Tensor:
    """``x`` ``[A]`` of any sign, zero off the support, that minimises the residual."""
    columns = matrix[:, support]
    lengths = columns.norm(dim=0)
    fit = torch.linalg.lstsq(columns / lengths, target[:, None], rcond=_DEPENDENT, driver="gelsd")
    x = torch.zeros(matrix.shape[1], dtype=torch.float64)
    x[support] = fit.solution[:, 0] / lengths
    return x
