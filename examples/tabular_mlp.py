"""A wide MLP on a table, four targets, each in its own unit: the engine "factored".

The task gradient of a Linear layer is a product of output gradients and inputs. Where the layer is
wider than the batch (here 1024 against 64) "factored" leaves it a product: it forms no task
gradient of a weight matrix, holds none, and yet the Gramian and the update are exact.

Data: a table of 20,000 weather readings made up here (and 4,000 for testing): temperature, humidity
and pressure, read by noisy sensors, and eight columns that say nothing. The targets follow from the
true values by textbook formulas of moist air, and stay in their units, as tables have them:
enthalpy in kJ/kg, dew point in degrees, density in kg/m3, and a class of comfort. The variances of
enthalpy and density differ by a factor of 100,000: a real imbalance, and one that scaling every
target to unit variance takes away as well. Run time: about half a minute.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import common
import torch
from torch import Tensor, nn
from torch.nn import functional

import mtlfast

ROWS, TEST_ROWS, BATCH, WIDTH = 20_000, 4_000, 64, 1024
REGRESSIONS = ("enthalpy", "dew_point", "density")


class Table(NamedTuple):
    """Readings [N, 11], three numbers [N, 3] and a class [N] for each."""

    readings: Tensor
    numbers: Tensor
    comfort: Tensor


def weather(seed: int) -> Table:
    """Makes up the table."""
    random = torch.Generator().manual_seed(seed)
    uniform = torch.rand(3, ROWS + TEST_ROWS, generator=random)
    celsius, humidity, hpa = 40 * uniform[0] - 5, 0.1 + 0.9 * uniform[1], 850 + 190 * uniform[2]
    saturated = 6.112 * torch.exp(17.62 * celsius / (243.12 + celsius))  # Magnus: hPa
    vapour = humidity * saturated
    mixing = 0.622 * vapour / (hpa - vapour)  # kg of water per kg of dry air
    logarithm = torch.log(vapour / 6.112)
    dew_point = 243.12 * logarithm / (17.62 - logarithm)
    enthalpy = 1.006 * celsius + mixing * (2501 + 1.86 * celsius)
    density = 100 * (hpa - 0.378 * vapour) / (287.05 * (celsius + 273.15))
    felt = celsius + 5 / 9 * (vapour - 10)  # the humidex
    comfort = torch.bucketize(felt, torch.tensor([5.0, 20.0, 30.0]))
    columns = torch.stack([celsius / 12 - 1.2, 4 * humidity - 2.2, hpa / 55 - 17.2])
    read = columns + 0.05 * torch.randn(columns.shape, generator=random)
    idle = torch.randn(8, ROWS + TEST_ROWS, generator=random)
    numbers = torch.stack([enthalpy, dew_point, density], 1)
    return Table(torch.cat([read, idle]).T.contiguous(), numbers, comfort)


class Model(nn.Module):
    """A trunk 11-1024-1024-1024-1024 and a linear head for every target."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(11, WIDTH), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, 1) for name in REGRESSIONS})
        self.comfort = nn.Linear(WIDTH, 4)

    def forward(self, readings: Tensor) -> dict[str, Tensor]:
        z = self.trunk(readings)
        outputs = {name: head(z)[:, 0] for name, head in self.heads.items()}
        return {**outputs, "comfort": self.comfort(z)}


def task_losses(outputs: dict[str, Tensor], batch: Table) -> dict[str, Tensor]:
    losses = {
        name: functional.mse_loss(outputs[name], target)
        for name, target in zip(REGRESSIONS, batch.numbers.T, strict=True)
    }
    losses["comfort"] = functional.cross_entropy(outputs["comfort"], batch.comfort)
    return losses


@torch.no_grad()
def evaluate(model: Model, test: Table) -> dict[str, float]:
    """R2 of the three numbers and accuracy of the class."""
    outputs = model(test.readings)
    scores = {
        f"{name} R2": 1 - float((outputs[name] - target).square().mean() / target.var())
        for name, target in zip(REGRESSIONS, test.numbers.T, strict=True)
    }
    hits = outputs["comfort"].argmax(1) == test.comfort
    return {**scores, "comfort accuracy": float(hits.float().mean())}


def train(data: Table, args: common.Arguments, balanced: bool) -> common.Run:
    torch.manual_seed(args.seed)
    model = Model()
    run = common.Run("NashMTL" if balanced else "equal weighting")
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if balanced:
        optimizer = mtlfast.MultiTaskOptimizer(optimizer, "nash_mtl", engine=args.engine)  # 1: wrap
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, args.steps)
    for _ in range(args.steps):
        rows = torch.randint(ROWS, (BATCH,))
        batch = Table(*(column[rows] for column in data))
        start = time.perf_counter()
        losses = task_losses(model(batch.readings), batch)  # 2: K scalars, not their sum
        optimizer.zero_grad()
        if isinstance(optimizer, mtlfast.MultiTaskOptimizer):
            optimizer.backward(losses)  # 3: instead of the plain backward below
        else:
            torch.autograd.backward(list(losses.values()))
        optimizer.step()
        run.saw(time.perf_counter() - start, losses)
        decay.step()
    test = Table(*(column[ROWS:] for column in data))
    return run.ended(optimizer, evaluate(model, test))


def make_step() -> tuple[Model, torch.optim.Optimizer, Callable[[], dict[str, Tensor]]]:
    """For ``mtlfast bench mine``: what is trained, and the losses of the next batch."""
    data, model = weather(0), Model()

    def losses() -> dict[str, Tensor]:
        rows = torch.randint(ROWS, (BATCH,))
        batch = Table(*(column[rows] for column in data))
        return task_losses(model(batch.readings), batch)

    return model, torch.optim.Adam(model.parameters(), lr=1e-3), losses


def main(argv: Sequence[str] | None = None) -> list[common.Run]:
    args = common.arguments(__doc__, 400, "factored", argv)
    data = weather(args.seed)
    return common.compare(lambda balanced: train(data, args, balanced))


if __name__ == "__main__":
    main()
