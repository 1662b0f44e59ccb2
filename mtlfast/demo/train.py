"""The training loop of the demo: what a user of mtlfast writes, plus the measuring."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

import mtlfast
from mtlfast.jobs import Job
from mtlfast.weighting import Weighting

__all__ = ["History", "lowest_cosine", "train"]

COSINE_EVERY = 5  # steps between two looks at the task gradients
FINAL = 50  # last steps over which the losses are averaged


@runtime_checkable
class EpochWise(Protocol):
    """A method that must be told where an epoch ends."""

    def end_epoch(self) -> None: ...


@dataclass
class History:
    """What one run left behind.

    Attributes:
        steps: Steps after which the metrics were taken, from 0 to the last.
        metrics: The job's metrics at these steps.
        cosine_steps: Steps before which the task gradients were compared.
        cosines: Cosine of the two most opposed task gradients at these steps.
        seconds: Time of every step, measuring excluded.
        losses: Training loss of every task, averaged over the batches of the last 50 steps.
    """

    steps: list[int] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    cosine_steps: list[int] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)


def train(
    job: Job,
    weighting: Weighting,
    seed: int,
    steps: int,
    progress: Callable[[dict[str, float]], object],
    *,
    cosines: bool = True,
) -> History:
    """Trains a job once.

    Args:
        job: The training problem.
        weighting: A new instance of the method.
        seed: Seed of the run.
        steps: Number of steps.
        progress: Called after every step with the latest metrics.
        cosines: Whether to compare the task gradients now and then; it takes time, and changes
            nothing else.
    """
    history = History()
    trial = job.start(seed)
    # Line 1 of the three that balancing adds to a plain loop: wrap the optimizer.
    optimizer = mtlfast.MultiTaskOptimizer(trial.optimizer, weighting)
    scheduler = trial.scheduler(optimizer)
    history.steps.append(0)
    history.metrics.append(trial.evaluate())

    for step in range(1, steps + 1):
        batches = [trial.draw_batch() for _ in range(weighting.num_batches)]
        if cosines and step % COSINE_EVERY == 1:
            history.cosine_steps.append(step)
            history.cosines.append(lowest_cosine(trial.losses(batches[0]), trial.shared_parameters))

        start = time.perf_counter()
        # Line 2: leave the losses apart, do not add them up. Most methods look at one batch a step.
        losses = [trial.losses(batch) for batch in batches]
        optimizer.zero_grad()
        optimizer.backward(*losses)  # line 3: in place of sum(losses).backward()
        optimizer.step()
        history.seconds.append(time.perf_counter() - start)

        if step > steps - FINAL:
            for name, loss in losses[0].items():
                share = float(loss.detach()) / min(FINAL, steps)
                history.losses[name] = history.losses.get(name, 0.0) + share
        if scheduler is not None:
            scheduler.step()
        if isinstance(weighting, mtlfast.DTP):
            _observe(weighting, trial.kpis(batches[0]))
        if isinstance(weighting, EpochWise) and step % job.epoch_steps == 0:
            weighting.end_epoch()
        if step % job.evaluate_every == 0 or step == steps:
            history.steps.append(step)
            history.metrics.append(trial.evaluate())
        progress(history.metrics[-1])
    return history


def _observe(weighting: mtlfast.DTP, kpis: Tensor | None) -> None:
    """Tells how well the tasks do, unless it is unknown or the network has diverged."""
    if kpis is not None and bool(kpis.isfinite().all()):
        weighting.observe(kpis)


def lowest_cosine(losses: dict[str, Tensor], parameters: Sequence[Tensor]) -> float:
    """Returns the smallest cosine between the gradients of two tasks; NaN if one is zero.

    It is measured apart from the training, alike for all methods: a method that needs no Gramian,
    as the plain sum, never forms one, and would have nothing to show.

    Args:
        losses: K scalar losses by name; their graph is kept.
        parameters: The shared parameters.
    """
    task_grads = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for loss in losses.values()
    ]
    gramian = mtlfast.gramian(task_grads)  # [K, K]
    norms = gramian.diagonal().sqrt()
    cosines = gramian / torch.outer(norms, norms)
    pairs = torch.ones_like(cosines, dtype=torch.bool).triu(1)
    return float(cosines[pairs].amin())
