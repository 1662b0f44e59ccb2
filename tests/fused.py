"""Options of the optimizers that a fused step knows, and pairs of wrappers with and without it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from models import Mlp, assert_same_params, assert_same_state
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from mtlfast import MultiTaskOptimizer
from mtlfast.weighting import Weighting

Options = tuple[type[torch.optim.Optimizer], dict[str, Any]]

OPTIONS: dict[str, Options] = {
    "sgd": (SGD, {"lr": 0.05}),
    "sgd-decay": (SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "sgd-maximize": (SGD, {"lr": 0.05, "maximize": True, "weight_decay": 0.1}),
    "momentum": (SGD, {"lr": 0.05, "momentum": 0.9}),
    "dampening": (SGD, {"lr": 0.05, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}),
    "nesterov": (SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "momentum-maximize": (SGD, {"lr": 0.01, "momentum": 0.5, "maximize": True}),
    "adam": (Adam, {"lr": 0.02}),
    "adam-decay": (Adam, {"lr": 0.02, "weight_decay": 0.1, "betas": (0.7, 0.9), "eps": 1e-3}),
    "amsgrad": (Adam, {"lr": 0.02, "amsgrad": True, "betas": (0.5, 0.6)}),
    "adam-maximize": (Adam, {"lr": 0.02, "maximize": True, "weight_decay": 0.1}),
    "adamw": (AdamW, {"lr": 0.02, "weight_decay": 0.3}),
    "adamw-amsgrad": (AdamW, {"lr": 0.02, "amsgrad": True, "betas": (0.5, 0.6)}),
    "adamw-maximize": (AdamW, {"lr": 0.02, "weight_decay": 0.3, "maximize": True}),
}


def make(name: str, params: Any, **more: Any) -> torch.optim.Optimizer:
    cls, options = OPTIONS[name]
    return cls(params, **options, **more)


class Pair:
    """The same model twice: with a fused step, and with torch's own after a plain one."""

    def __init__(
        self,
        inner: str | Callable[[Any], torch.optim.Optimizer] = "adamw",
        method: Callable[[], Weighting | str] = lambda: "upgrad",
        *,
        model: Any = None,
        max_grad_norm: float | None = None,
        **options: Any,
    ) -> None:
        self.model: Any = Mlp() if model is None else model
        self.twin: Any = copy.deepcopy(self.model)
        self.norm = max_grad_norm

        def wrap(model: Any, **more: Any) -> MultiTaskOptimizer:
            made = make(inner, model.parameters()) if isinstance(inner, str) else inner(model)
            chosen = {
                key: value(model) if callable(value) else value for key, value in options.items()
            }
            torch.manual_seed(0)
            return MultiTaskOptimizer(made, method(), **chosen, **more)

        self.found = wrap(self.model, fused_step=True, max_grad_norm=max_grad_norm)
        self.expected = wrap(self.twin)

    @property
    def sides(self) -> Sequence[tuple[Any, MultiTaskOptimizer]]:
        return (self.model, self.found), (self.twin, self.expected)

    def clip(self) -> None:
        """What ``max_grad_norm`` does, for the wrapper that writes ``grad``."""
        if self.norm is not None:
            torch.nn.utils.clip_grad_norm_(self.twin.parameters(), self.norm)

    def step(self, index: int) -> None:
        for model, optimizer in self.sides:
            optimizer.zero_grad()
            torch.manual_seed(index)
            optimizer.backward(model.losses(index))
        self.finish()

    def finish(self) -> None:
        self.clip()
        for _, optimizer in self.sides:
            optimizer.step()

    def check(self, rtol: float = 1e-9) -> None:
        """Parameters and everything that a checkpoint holds."""
        assert_same_params(self.model, self.twin, rtol)
        assert_same_state(self.found.state_dict(), self.expected.state_dict(), rtol)
        for ours, theirs in zip(self.state(self.found), self.state(self.expected), strict=True):
            assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)
            assert ours.stride() == theirs.stride()
            assert ours.requires_grad == theirs.requires_grad

    @staticmethod
    def state(optimizer: MultiTaskOptimizer) -> list[Tensor]:
        states = optimizer.inner.state_dict()["state"].values()
        return [x for state in states for x in state.values() if isinstance(x, Tensor)]


def grads(model: nn.Module) -> list[Tensor | None]:
    return [param.grad for param in model.parameters()]


def scaler() -> torch.amp.GradScaler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.amp.GradScaler("cpu", init_scale=4.0)
