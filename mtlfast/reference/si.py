"""SI, the scale-invariant baseline, in plain torch (Navon et al., ICML 2022, arXiv 2202.01017)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.losses import door, positive
from mtlfast.reference.scaffold import Problem


@door
def solve(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of SI, 1 / L; 0 for a task whose loss is not positive (degenerate)."""
    del problem
    usable = positive(losses)
    weights = torch.where(usable, 1 / losses, 0.0)
    return weights, scaffold.OK if bool(usable.all()) else scaffold.DEGENERATE
