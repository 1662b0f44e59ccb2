"""FairGrad in plain torch (Ban and Ji, ICML 2024, arXiv 2402.15638)."""

from __future__ import annotations

from torch import Tensor

from mtlfast.reference import newton, scaffold
from mtlfast.reference.scaffold import Problem


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of FairGrad: the root of ``G w = w^(-1 / alpha)``, shortened to ``max_norm``.

    Options: ``alpha``, ``sum`` (1: times K), ``max_norm``, may be infinite. State ``[K]``: the
    weights of the last root, zeros before there was one; where no root exists they are the answer
    (degenerate).
    """
    alpha, total, max_norm = problem.options
    return newton.fair_weights(problem, 1 / alpha, problem.num_tasks if total else 1.0, max_norm)
