"""gradnorm-pytorch 0.2.3: GradNorm with a double backward."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from mtlfast.bench.models import EngineModel
from mtlfast.bench.peers.base import Peer
from mtlfast.bench.steps import STEPS_PER_GRAMIAN, Step, sgd

__all__ = ["PEER", "GradNormPytorch", "last_weight"]


class GradNormPytorch(Peer):
    """Norms of one parameter's gradients: the last weight of the trunk."""

    name = "gradnorm-pytorch"
    package = "gradnorm-pytorch"
    differs: ClassVar[Mapping[str, str]] = {
        "gradnorm": "raises the rates to -alpha, and its own loss adds to the model's gradients"
    }

    def steps(self, method: str, model: EngineModel) -> Mapping[str, Callable[[], Step]]:
        """With the paper's alpha; seldom; and its default, which has no restoring force."""
        if method != "gradnorm":
            return {}
        every = STEPS_PER_GRAMIAN
        seldom = {"restoring_force_alpha": 1.5, "update_every": every}
        return {
            "alpha=1.5": partial(_step, model, {"restoring_force_alpha": 1.5}),
            f"update_every={every}": partial(_step, model, seldom, every),
            "default": partial(_step, model, {}),
        }


def last_weight(model: EngineModel) -> nn.Parameter:
    """The first matrix of the smallest block at the trunk's end."""
    block = list(model.last_blocks.values())[-1]
    return next(param for param in block if param.dim() > 1)


def _step(model: EngineModel, options: dict[str, Any], count: int = 1) -> Step:
    weighter = importlib.import_module("gradnorm_pytorch").GradNormLossWeighter(
        num_losses=len(model.heads), grad_norm_parameters=last_weight(model), **options
    )

    def fill(_: Tensor | None) -> None:
        weighter(model.losses())

    return Step(model, fill, sgd(model), count)


PEER = GradNormPytorch()
