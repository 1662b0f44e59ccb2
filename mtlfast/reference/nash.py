"""Nash-MTL in plain torch (Navon et al., ICML 2022, arXiv 2202.01017)."""

from __future__ import annotations

from torch import Tensor

from mtlfast.reference import newton, scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of Nash-MTL: the root of ``G a = 1 / a``, shortened to ``max_norm``.

    Options: ``max_norm``, may be infinite. State ``[K]``: the weights of the last root, zeros
    before there was one; where no root exists they are the answer (degenerate).
    """
    (max_norm,) = problem.options
    return newton.fair_weights(problem, 1.0, 1.0, max_norm)
