"""Small problems that the reference answers, too: what ``mtlfast doctor`` tries on a GPU."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from mtlfast import ops, reference
from mtlfast.weighting import REGISTRY, Weighting, get

SIZES = (3, 1030, 0, 17)
"""Of the tensors: shorter than a vector, longer than a block, empty, and odd."""

TASKS = (3, 5, 12, 20)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = 1e-6  # of the Gramian, to the norms; of weights, to their length


def run(device: torch.device) -> str:
    """Computes Gramians, combinations and weights on a device and compares them with the reference.

    Args:
        device: where the task gradients are.

    Returns:
        "ok", or what was wrong first.
    """
    generator = torch.Generator().manual_seed(0)
    for num_tasks in TASKS:
        for dtype in DTYPES:
            rows = [
                [torch.randn(size, generator=generator).to(dtype) for size in SIZES]
                for _ in range(num_tasks)
            ]
            for sums in ("float32", "float64"):  # small problems would see the latter only
                with ops.use_sums(sums):
                    wrong = _compare_kernels(rows, device)
                if wrong:
                    return f"{num_tasks} tasks of {dtype}, summed in {sums}: {wrong}"
        gramian = reference.gramian(rows)
        for name in sorted(REGISTRY):
            wrong = _compare_weights(name, gramian, device)
            if wrong:
                return f"{num_tasks} tasks: {wrong}"
    return "ok"


def _compare_kernels(rows: list[list[Tensor]], device: torch.device) -> str:
    """What is wrong with the Gramian or the combination; "" if nothing."""
    there = [[gradient.to(device) for gradient in row] for row in rows]
    expected = reference.gramian(rows)
    norms = expected.diagonal().sqrt()
    error = float(((ops.gramian(there).cpu() - expected) / (norms * norms[:, None])).abs().max())
    if not error <= TOLERANCE:  # NaN too
        return f"the Gramian is wrong by {error:.1e}"
    weights = torch.linspace(-1, 2, len(rows), dtype=torch.float64)
    combined = ops.combine(there, weights.to(device))
    for found, known in zip(combined, reference.combine(rows, weights), strict=True):
        assert found is not None  # every task reaches every tensor
        assert known is not None
        # Sums are float64 in any order, and rounded once.
        if not torch.allclose(found.cpu(), known, torch.finfo(known.dtype).eps, 1e-13):
            return "the combination is wrong"
    return ""


def _compare_weights(name: str, gramian: Tensor, device: torch.device) -> str:
    """What is wrong with a method's weights; "" if nothing, or if it has none for this."""
    method = REGISTRY[name]
    wraps_another = "weighting" in inspect.signature(method).parameters
    if not method.needs_gramian or method.family != "gramian" or wraps_another:
        return ""
    with ops.use_backend("reference"):
        expected = _weights(get(name), gramian)
    found = _weights(get(name), gramian.to(device)).cpu()
    error = float((found - expected).norm() / expected.norm())
    return (
        "" if error <= TOLERANCE else f"the weights of {method.__name__} are wrong by {error:.1e}"
    )


def _weights(weighting: Weighting, gramian: Tensor) -> Tensor:
    num_tasks = len(gramian)
    inputs = {}
    if "order" in weighting.inputs:  # else drawn
        inputs["order"] = torch.arange(num_tasks).repeat(num_tasks, 1).to(gramian.device)
    losses = torch.linspace(1, 2, num_tasks, dtype=torch.float64, device=gramian.device)
    return weighting(gramian, losses if weighting.needs_losses else None, **inputs)
