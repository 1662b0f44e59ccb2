"""Small models of every kind that an engine has to serve."""

from __future__ import annotations

from collections.abc import Callable

import torch
from models import ConvNet, Embedded, Mlp, MultiTask, Tied
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Trunk(MultiTask):
    """Any module before the heads; it takes ``[8, 5]`` (``[8, 3, 5]``) and returns ``[8, 4]``."""

    def __init__(
        self,
        trunk: nn.Module,
        *,
        sequence: bool = False,
        num_tasks: int = 3,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(num_tasks, 4)
        self.trunk = trunk
        self.shape = (8, 3, 5) if sequence else (8, 5)
        self.to(dtype)

    def inputs(self, generator: torch.Generator) -> Tensor:
        dtype = next(self.trunk.parameters()).dtype
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)

    def hidden(self, x: Tensor) -> Tensor:
        found: Tensor = self.trunk(x)
        return found


class LastState(nn.Module):
    """A recurrent network's last output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(x)[0]
        return outputs[:, -1]


class Twice(nn.Module):
    """The same layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(5, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(torch.tanh(self.layer(self.first(x))))
        return found


class Checkpointed(nn.Module):
    """Two of three layers are computed again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Linear(5, 6)
        self.inside = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        found: Tensor = checkpoint(self.inside, hidden, use_reentrant=self.reentrant)
        return found


class AllInside(nn.Module):
    """A reentrant checkpoint around the whole trunk, as it is done: the data need a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.inside, x.requires_grad_(), use_reentrant=True)
        return found


class Partly(MultiTask):
    """Task 0 does not reach the second layer, task 2 not the first one's side branch."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.first, self.side, self.second = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 4)
        self.double()

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(8, 5, generator=generator, dtype=torch.float64)

    def hidden_and_losses(self, step: int = 0) -> tuple[Tensor, list[Tensor]]:
        generator = torch.Generator().manual_seed(step)
        x = self.inputs(generator)
        hidden = torch.tanh(self.first(x))
        beside = torch.tanh(self.side(x))
        seen = [hidden + beside, self.second(hidden) * beside, self.second(hidden)]
        targets = torch.randn(3, 8, 2, generator=generator, dtype=torch.float64)
        return hidden, [
            (head(z) - target).square().mean()
            for head, z, target in zip(self.heads, seen, targets, strict=True)
        ]


MODELS: dict[str, Callable[[], MultiTask]] = {
    "frozen": Mlp,
    "tied": Tied,
    "twice": lambda: Trunk(Twice()),
    "partly": Partly,
    "embedding": Embedded,
    "convolutions": ConvNet,
    "batch_norm": lambda: Trunk(
        nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))
    ),
    "layer_norm": lambda: Trunk(
        nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4))
    ),
    "attention": lambda: Trunk(
        nn.Sequential(
            nn.Linear(5, 4),
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
            nn.Flatten(),
            nn.Linear(12, 4),
        ),
        sequence=True,
    ),
    "dropout": lambda: Trunk(
        nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 4))
    ),
    "in_place": lambda: Trunk(
        nn.Sequential(
            nn.Linear(5, 16), nn.ReLU(inplace=True), nn.Linear(16, 4), nn.ReLU(inplace=True)
        )
    ),
    "lstm": lambda: Trunk(LastState(nn.LSTM(5, 4, 2, batch_first=True)), sequence=True),
    "gru": lambda: Trunk(LastState(nn.GRU(5, 4, batch_first=True)), sequence=True),
    "checkpoint": lambda: Trunk(Checkpointed(reentrant=False)),
    "reentrant": lambda: Trunk(Checkpointed(reentrant=True)),
    "reentrant_all": lambda: Trunk(AllInside()),
}
