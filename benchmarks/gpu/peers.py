"""What others do with the same gradients: TorchJD, pytorch_optimizer, plain torch."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mtlfast
from benchmarks.gpu.machine import Call
from mtlfast import ops
from mtlfast.weighting import Weighting

METHODS: dict[str, tuple[Callable[[], Weighting], Callable[[Any, int], Any]]] = {
    "PCGrad": (mtlfast.PCGrad, lambda torchjd, _: torchjd.PCGrad()),
    "CAGrad": (lambda: mtlfast.CAGrad(c=0.5), lambda torchjd, _: torchjd.CAGrad(c=0.5)),
    "UPGrad": (mtlfast.UPGrad, lambda torchjd, _: torchjd.UPGrad()),
    "NashMTL": (mtlfast.NashMTL, lambda torchjd, count: torchjd.NashMTL(n_tasks=count)),
    "AlignedMTL": (mtlfast.AlignedMTL, lambda torchjd, _: torchjd.AlignedMTL()),
}
"""Ours and TorchJD's, of the same normalisation."""


class IntoGrad:
    """Balances given gradients into empty ``.grad``, as after ``zero_grad``."""

    def __init__(self, task_grads: list[list[Tensor]]) -> None:
        self.task_grads = task_grads
        self.params = [torch.empty_like(g).requires_grad_() for g in task_grads[0]]
        self.jacobians: list[Tensor] = []

    def clear(self) -> None:
        for param in self.params:
            param.grad = None

    def ours(self, weighting: Weighting) -> Call:
        def call(_: int) -> None:
            self.clear()
            weights = weighting(ops.gramian(self.task_grads))
            ops.combine_(self.params, self.task_grads, weights)

        return call

    def torchjd(self, aggregator: Any, optimized: bool) -> Call:
        """``.jac`` is filled with what its backward would have left there."""
        jac_to_grad = importlib.import_module("torchjd.autojac").jac_to_grad
        if not self.jacobians:
            self.jacobians = [torch.stack(block) for block in zip(*self.task_grads, strict=True)]
        options = {"optimize_gramian_computation": True} if optimized else {}

        def call(_: int) -> None:
            self.clear()
            for param, jacobian in zip(self.params, self.jacobians, strict=True):
                param.jac = jacobian  # type: ignore[attr-defined]
            jac_to_grad(self.params, aggregator, **options)

        return call

    def pytorch_optimizer(self) -> Call:
        """All that its ``pc_backward`` does after each objective's ``backward``."""
        module = importlib.import_module("pytorch_optimizer.optimizer.pcgrad")
        peer = module.PCGrad(torch.optim.SGD(self.params, lr=0.1), reduction="sum")

        def call(_: int) -> None:
            grads, masks, shapes = [], [], []
            for row in self.task_grads:
                for param, grad in zip(self.params, row, strict=True):
                    param.grad = grad
                grad, shape, has_grad = peer.retrieve_grad()
                grads.append(module.flatten_grad(grad))
                masks.append(module.flatten_grad(has_grad))
                shapes.append(shape)
            found = peer.project_conflicting(grads, masks)
            peer.set_grad(module.un_flatten_grad(found, shapes[0]))

        random.seed(0)
        return call

    def result(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.params if p.grad is not None]).double()


def difference(into: IntoGrad, ours: Call, peer: Call) -> float:
    """``|d - d'| / |d|`` of two calls; random orders may explain what there is."""
    ours(0)
    expected = into.result()
    peer(0)
    return float((into.result() - expected).norm() / expected.norm())


def ours(task_grads: list[list[Tensor]], weighting: Weighting, out: list[Tensor]) -> Call:
    """What the others are compared with."""
    results: list[Tensor | None] = list(out)

    def call(_: int) -> None:
        ops.combine(task_grads, weighting(ops.gramian(task_grads)), results)

    return call


def plain(task_grads: list[list[Tensor]], weighting: Weighting) -> Call:
    """One matrix, one product, one more: what a user would write."""

    def call(_: int) -> list[Tensor]:
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in task_grads])
        weights = weighting((jacobian @ jacobian.T).double())
        combined = weights.to(jacobian.dtype) @ jacobian
        return list(torch.split(combined, [g.numel() for g in task_grads[0]]))

    return call


def foreach(task_grads: list[list[Tensor]], weighting: Weighting, out: list[Tensor]) -> Call:
    """By torch's multi-tensor operations: a pass for each pair of tasks."""
    num_tasks = len(task_grads)

    def call(_: int) -> None:
        gramian = torch.empty(num_tasks, num_tasks, dtype=torch.float64, device=out[0].device)
        for i in range(num_tasks):
            for j in range(i, num_tasks):
                products = torch._foreach_mul(task_grads[i], task_grads[j])
                sums = torch.stack([x.sum(dtype=torch.float32) for x in products])
                gramian[i, j] = gramian[j, i] = sums.sum().double()
        weights = weighting(gramian).to(out[0].dtype)
        total = torch._foreach_mul(task_grads[0], weights[0])
        for k in range(1, num_tasks):
            torch._foreach_add_(total, torch._foreach_mul(task_grads[k], weights[k]))
        torch._foreach_copy_(out, total)

    return call
