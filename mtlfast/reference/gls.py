"""GLS in plain torch (Chennupati et al., CVPR workshops 2019, arXiv 1904.08492)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.losses import door, positive
from mtlfast.reference.scaffold import Problem


@door
def solve(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of GLS, the geometric mean over K L_i.

    A task whose loss is not positive leaves the mean and gets weight 0 (degenerate).
    """
    del problem
    members = positive(losses)
    logs = losses[members].log()
    weights = torch.zeros_like(losses)
    # exp(709) is finite, exp(710) is not.
    weights[members] = (logs.mean() - logs).clamp(max=709.0).exp() / len(logs)
    return weights, scaffold.OK if bool(members.all()) else scaffold.DEGENERATE
