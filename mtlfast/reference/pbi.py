"""PBI in plain torch (Zhang and Li, MOEA/D, IEEE Transactions on Evolutionary Computation 2007)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import scaffold
from mtlfast.reference.losses import door, normalized, orthogonal_part
from mtlfast.reference.scaffold import Problem


@door
def solve(problem: Problem, losses: Tensor) -> tuple[Tensor, int]:
    """Weights of PBI: along the preference, plus theta times the unit vector away from its ray.

    Options: ``theta``. Inputs: the preference, or None for equal ones. On the ray the second part
    is zero.
    """
    (theta,) = problem.options
    preference = problem.inputs
    if preference is None:
        preference = torch.ones_like(losses)
    along, _ = normalized(preference)
    found, _ = normalized(losses)
    away = orthogonal_part(found, along)
    length = float(away.norm())
    return along + (theta / length if length > 0 else 0.0) * away, scaffold.OK
