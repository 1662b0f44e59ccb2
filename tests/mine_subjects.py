"""Models for the tests of ``mtlfast bench mine``: small, and with all that has to be put back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtlfast.bench.mine.subject import Subject
from mtlfast.bench.setting import Setting

QUICK = Setting(quick=True, budget=0.1, passes=1, threads=1)


class Net(nn.Module):
    """Two shared layers with BatchNorm between, and two heads that disagree; float64."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in ("near", "far")})
        self.heads["far"].load_state_dict(self.heads["near"].state_dict())
        self.double()

    def forward(self) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of a random batch, and the features."""
        x = torch.randn(8, 5, dtype=torch.float64)
        z = self.trunk(x)
        near = (self.heads["near"](z)[:, 0] - x[:, 0]).square().mean()
        far = (self.heads["far"](z)[:, 0] + 3 * x[:, 0]).square().mean()
        return {"near": near, "far": far}, z


def net_subject(momentum: float = 0.9) -> tuple[Net, Subject]:
    torch.manual_seed(3)
    net = Net()
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum)
    return net, Subject("train:make", (net, sgd, net.forward))


def tiny(losses: Callable[[nn.Parameter], Any], **options: Any) -> Subject:
    """Losses of two shared numbers."""
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    return Subject("train:make", (torch.optim.SGD([w], lr=1e-9), lambda: losses(w)), **options)


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}
