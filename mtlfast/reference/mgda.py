"""MGDA in plain torch (Désidéri 2012; Sener and Koltun, NeurIPS 2018, arXiv 1810.04650)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference import nnls, scaffold
from mtlfast.reference.scaffold import Problem

_NOTHING = 1e-140  # a row this much shorter than the longest is the shortest mixture


@scaffold.door
def solve(problem: Problem) -> tuple[Tensor, int]:
    """Weights of MGDA: w_i / s_i, w in the simplex with the shortest mixture of the g_i / s_i.

    Options: ``lengths`` (0, 1: s_i has the factor n_i), ``values`` (0, 1: the factor L_i). Zero
    gradients share the weight 1. Where the losses cannot divide they are left out (degenerate).
    """
    lengths, values = problem.options
    zero = problem.gramian.diagonal() <= 0
    if bool(zero.any()):
        return zero / zero.double().sum(), scaffold.OK
    norms, rows = nnls.unit_rows(problem.gramian)
    factors = torch.ones_like(norms)  # 1 / s_i
    if lengths:
        factors = 1 / norms / problem.scale
    status = scaffold.OK
    if values:
        assert problem.losses is not None
        divided = factors / problem.losses
        usable = (problem.losses > 0) & divided.isfinite()
        longest = float((norms * divided).max())
        if bool(usable.all()) and 0 < longest < float("inf"):
            factors = divided
        else:
            status = scaffold.DEGENERATE

    # min |w @ normalised| with sum w = 1: the same w, up to its sum, as of this least squares. In
    # units of the shortest row, which d cannot exceed, both parts weigh alike.
    reach = norms * factors / (norms * factors).max()
    unit = reach.min()
    if unit < _NOTHING:
        mixture = torch.zeros_like(factors)
        mixture[reach.argmin()] = 1.0
        return factors * mixture, status
    normalised = rows * reach[:, None]
    matrix = torch.cat((normalised.T / unit, torch.ones(1, len(norms), dtype=torch.float64)))
    target = torch.zeros(len(matrix), dtype=torch.float64)
    target[-1] = 1.0
    mixture, reached = nnls.solve(matrix, target)
    if not reached:
        status = scaffold.NOT_CONVERGED
    return factors * mixture / mixture.sum(), status
