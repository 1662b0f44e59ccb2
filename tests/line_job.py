"""A demo job that takes no time."""

import torch
from torch import Tensor, nn

from mtlfast.jobs import Trial


class LineTrial(Trial):
    """Three parabolas in one parameter."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.x = nn.Parameter(torch.randn(2))
        self.optimizer = torch.optim.SGD([self.x], lr=0.01)
        self.shared_parameters = [self.x]

    def draw_batch(self) -> Tensor:
        return torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        values = ((self.x - batch) ** 2).sum(1)
        return dict(zip("abc", values, strict=True))

    def evaluate(self) -> dict[str, float]:
        return {"error": float(self.x.detach().norm())}

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
