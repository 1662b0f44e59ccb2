"""The same kernels in Triton, on a GPU: what is won by writing them in CUDA."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from mtlfast.bench import methods
from mtlfast.bench.peers.base import Into, Modes, Peer
from mtlfast.weighting import REGISTRY

__all__ = ["PEER", "Triton"]

PROGRAMS = 4  # for each multiprocessor
BROADCAST = 8  # tasks whose products fit the registers


class Triton(Peer):
    """Two passes over the gradients, with our solver in between; takes part on a GPU alone."""

    name = "Triton"
    package = "triton"

    def balances(self, method: str, into: Into) -> Modes:
        """Products by tensor cores, or plain ones; tables and buffers are made beforehand."""
        device = into.params[0].device
        if device.type != "cuda" or REGISTRY[method].family != "gramian":
            return {}
        kernels = importlib.import_module("mtlfast.bench.peers.triton_kernels")
        properties = torch.cuda.get_device_properties(device)
        out = [torch.empty_like(grad) for grad in into.task_grads[0]]
        programs = PROGRAMS * properties.multi_processor_count
        pair = kernels.TritonBalance(into.task_grads, out, programs)

        def mode(variant: str) -> tuple[Callable[[], object], Callable[[], object]]:
            weighting = methods.make(method)

            def call() -> None:
                pair.combine(weighting(pair.gramian(variant)))
                into.write(out)

            return into.clear, call

        found = {"tensor cores": mode("dot")}
        if len(into.task_grads) <= BROADCAST:
            found["plain products"] = mode("broadcast")
        return found


PEER = Triton()
