"""What the four examples share: their arguments, the record of a run, the table at the end."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

import mtlfast
from mtlfast.demo.table import table


@dataclass(frozen=True)
class Arguments:
    """The command line of an example."""

    steps: int
    seed: int
    engine: str


@dataclass
class Run:
    """One training run.

    Attributes:
        label: How it was trained, for the table.
        losses: Loss of every task in the last step.
        seconds: Time of every step: forward, backward and the optimizer's own.
        scores: What it reaches on data that it was not trained on.
        engine: The engine that made the task gradients; empty for plain training.
        reason: Why it was that one.
    """

    label: str
    losses: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    engine: str = ""
    reason: str = ""

    def saw(self, seconds: float, losses: Mapping[str, Tensor]) -> None:
        """Records a step."""
        self.seconds.append(seconds)
        self.losses = {name: float(loss.detach()) for name, loss in losses.items()}

    def ended(self, optimizer: object, scores: Mapping[str, float]) -> Run:
        """Records what the run reached and, of a balanced one, which engine it ran on."""
        self.scores = dict(scores)
        if isinstance(optimizer, mtlfast.MultiTaskOptimizer) and optimizer.last is not None:
            self.engine, self.reason = optimizer.last.engine, optimizer.last.reason
        return self


def arguments(
    description: str | None, steps: int, engine: str, argv: Sequence[str] | None
) -> Arguments:
    """Reads the command line.

    Args:
        description: The script's docstring.
        steps: Default number of steps.
        engine: Default engine.
        argv: The words; None takes those of the process.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=steps, help="training steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (%(default)s)")
    parser.add_argument("--engine", default=engine, help="any other engine (%(default)s)")
    words = parser.parse_args(argv)
    if words.steps < 1:
        parser.error(f"--steps: expected at least 1, found {words.steps}")
    return Arguments(words.steps, words.seed, words.engine)


def compare(train: Callable[[bool], Run]) -> list[Run]:
    """Trains with equal weighting and balanced, and prints what comes out.

    Printed are the scores, the median time of a step, and the engine with its reason.

    Args:
        train: Trains a fresh model, balanced or not.
    """
    runs = [train(balanced) for balanced in (False, True)]
    names = list(runs[0].scores)
    rows = [
        [
            run.label,
            *("diverged" if math.isnan(run.scores[n]) else f"{run.scores[n]:.3f}" for n in names),
            f"{1e3 * statistics.median(run.seconds):.1f}",
        ]
        for run in runs
    ]
    print(table(["", *names, "ms a step"], rows))
    for run in runs:
        if run.engine:
            print(f"engine of {run.label}: {run.engine} ({run.reason})")
    return runs
