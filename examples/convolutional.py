"""A convolutional network with BatchNorm, three heads: balanced at its features, ``features=``.

Told which tensor the heads share, the wrapper compares the tasks' gradients of that tensor instead
of those of the trunk's parameters: each task costs a backward through its head only, and a single
one of the combined gradient goes through the convolutions. That is near the price of plain
training, and an approximation: the weights are those of the features, not of the parameters.

Data: MultiDigits, canvases of 8 x 12 on which two of scikit-learn's bundled handwritten digits
overlap (20,000 for training; the scans of the 4,000 for testing are others). Two heads read a digit
each (cross-entropy, about 2.3 at first), a third one estimates the two-digit number that they
spell, from 0 to 99, by its mean square (about 3,000 at first). Nobody chose the imbalance: it is
that of two kinds of losses, and dividing the number by 100 would take most of it away.
Run time: half a minute.
"""

import time
from collections.abc import Sequence

import common
import torch
from torch import Tensor, nn
from torch.nn import functional

import mtlfast
from mtlfast.jobs import MultiDigits
from mtlfast.jobs.multidigits import Pairs

BATCH = 64


def block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Model(nn.Module):
    """Three convolutions to 64 channels, a shared representation [N, 64 * 4 * 6], three heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            block(1, 32), block(32, 64), nn.MaxPool2d(2), block(64, 64), nn.Flatten()
        )
        sizes = {"left": 10, "right": 10, "number": 1}
        self.heads = nn.ModuleDict({name: nn.Linear(64 * 24, n) for name, n in sizes.items()})

    def forward(self, canvas: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.trunk(canvas.view(-1, 1, 8, 12))
        return z, {name: head(z) for name, head in self.heads.items()}


def number(pairs: Pairs) -> Tensor:
    return 10.0 * pairs.left + pairs.right


def task_losses(outputs: dict[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    return {
        "left": functional.cross_entropy(outputs["left"], pairs.left),
        "right": functional.cross_entropy(outputs["right"], pairs.right),
        "number": functional.mse_loss(outputs["number"][:, 0], number(pairs)),
    }


@torch.no_grad()
def evaluate(model: Model, pairs: Pairs) -> dict[str, float]:
    """Accuracies of the digits, R2 of the number."""
    model.eval()
    _, outputs = model(pairs.canvas)
    target = number(pairs)
    error = (outputs["number"][:, 0] - target).square().mean()
    return {
        "left accuracy": float((outputs["left"].argmax(1) == pairs.left).float().mean()),
        "right accuracy": float((outputs["right"].argmax(1) == pairs.right).float().mean()),
        "number R2": 1 - float(error / target.var()),
    }


def train(job: MultiDigits, args: common.Arguments, balanced: bool) -> common.Run:
    torch.manual_seed(args.seed)
    data = job.training_pairs(args.seed)
    model = Model()
    run = common.Run("NashMTL" if balanced else "equal weighting")
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if balanced:
        optimizer = mtlfast.MultiTaskOptimizer(optimizer, "nash_mtl", engine=args.engine)  # 1: wrap
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, args.steps)
    for _ in range(args.steps):
        rows = torch.randint(len(data.left), (BATCH,))
        batch = Pairs(*(column[rows] for column in data))
        start = time.perf_counter()
        z, outputs = model(batch.canvas)
        losses = task_losses(outputs, batch)  # 2: K scalars, not their sum
        optimizer.zero_grad()
        if isinstance(optimizer, mtlfast.MultiTaskOptimizer):
            optimizer.backward(losses, features=z)  # 3: instead of the plain backward below
        else:
            torch.autograd.backward(list(losses.values()))
        optimizer.step()
        run.saw(time.perf_counter() - start, losses)
        decay.step()
    return run.ended(optimizer, evaluate(model, job.test_pairs))


def main(argv: Sequence[str] | None = None) -> list[common.Run]:
    args = common.arguments(__doc__, 600, "auto", argv)
    job = MultiDigits()
    return common.compare(lambda balanced: train(job, args, balanced))


if __name__ == "__main__":
    main()
