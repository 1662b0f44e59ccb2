"""What the reference solvers of the spectral methods share: eigenpairs of a Gramian and of cosines.

Both start from the eigenpairs of the cosine matrix, whose entries are all of one size, so that
short gradients keep their digits. An eigenvalue that is rounding counts as zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtlfast.reference.scaffold import EPSILON

_NOISE = 4 * EPSILON  # of an eigenvalue of the cosines, or of a component, relative to K


def eigenpairs(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues ``[R]`` of a Gramian ``[A, A]`` on its rank R, and eigenvectors ``[A, R]``.

    Its diagonal is positive.
    """
    norms = gramian.diagonal().sqrt()
    values, vectors = _cosine_eigenpairs(gramian)
    factor = norms[:, None] * vectors * values.sqrt()  # factor @ factor.T is the Gramian
    left, lengths, _ = torch.linalg.svd(factor, full_matrices=False)
    return lengths.square(), left


def common_cosines(gramian: Tensor, target: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Coefficients of unit gradients whose sum has cosines with them in proportion to ``target``.

    Args:
        gramian: ``[A, A]`` with a positive diagonal; its cosine matrix is C.
        target: ``[A]``.

    Returns:
        The coefficients ``x = C⁺ target`` ``[A]``, what they reach, ``C x`` ``[A]``, and whether C
        has full rank, so that this is the target itself.
    """
    values, vectors = _cosine_eigenpairs(gramian)
    components = vectors.T @ target
    noise = _NOISE * len(target) * float(target.norm())
    components = torch.where(components.abs() > noise, components, 0.0)
    return (
        vectors @ (components / values),
        vectors @ components,
        len(values) == len(target),
    )


def _cosine_eigenpairs(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[R]`` of the cosine matrix above its rounding, and eigenvectors ``[A, R]``."""
    norms = gramian.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(gramian / norms / norms[:, None])
    kept = values > _NOISE * len(values) * float(values[-1])
    return values[kept], vectors[:, kept]
