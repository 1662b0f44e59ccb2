"""A place to go back to, so that all contestants begin there."""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["State"]


class State:
    """Parameters, buffers, the optimizer's state and random numbers, to go back to.

    Args:
        optimizer: the plain one.
        model: whose buffers belong to it; None: none are known.
        device: whose random numbers belong to it, beside the CPU's.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module | None, device: torch.device
    ) -> None:
        self.optimizer = optimizer
        found: list[Tensor] = [p for g in self.optimizer.param_groups for p in g["params"]]
        if model is not None:
            found += [*model.parameters(), *model.buffers()]
        self.tensors = [(t, t.detach().clone()) for t in {id(t): t for t in found}.values()]
        self.inner = copy.deepcopy(self.optimizer.state_dict())
        self.random = (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002
        self.cuda = torch.cuda.get_rng_state_all() if device.type == "cuda" else []

    @torch.no_grad()
    def restore(self) -> None:
        """Goes back; gradients are cleared."""
        for tensor, value in self.tensors:
            tensor.copy_(value)
        self.optimizer.load_state_dict(copy.deepcopy(self.inner))
        self.optimizer.zero_grad(set_to_none=True)
        torch.set_rng_state(self.random[0])
        random.setstate(self.random[1])
        np.random.set_state(self.random[2])  # noqa: NPY002
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
