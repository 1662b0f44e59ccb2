"""A physics-informed network for Burgers' equation, three losses: the engine "batched".

A small network on small batches spends its time on starting operations, not on arithmetic. The
engine "batched" starts each of them once for all tasks: one backward, vectorised over the three.

Data: none. The job of ``mtlfast demo burgers``: a network 2-40-40-40-40-1 learns u(x, t) from the
mean squares of the equation's residual (times 100), of the initial and of the boundary values, at
new random points in every step; the error is measured against the exact solution, and u = 0 has
an error of 1. The gradients of the residual and of the initial values are of different length and
mostly point against each other. The factor of 100 is the job's: physics-informed losses come in
the equation's own units. Run time: about half a minute on 2 cores.
"""

import time
from collections.abc import Sequence

import common
import torch

import mtlfast
from mtlfast.jobs import Burgers


def train(job: Burgers, args: common.Arguments, balanced: bool) -> common.Run:
    trial = job.start(args.seed)  # the network, its Adam and its points
    run = common.Run("NashMTL" if balanced else "equal weighting")
    optimizer = trial.optimizer
    if balanced:
        optimizer = mtlfast.MultiTaskOptimizer(optimizer, "nash_mtl", engine=args.engine)  # 1: wrap
    decay = torch.optim.lr_scheduler.StepLR(optimizer, max(1, args.steps // 6), 0.9)
    for _ in range(args.steps):
        points = trial.draw_batch()
        start = time.perf_counter()
        losses = trial.losses(points)  # 2: K scalars, not their sum
        optimizer.zero_grad()
        if isinstance(optimizer, mtlfast.MultiTaskOptimizer):
            optimizer.backward(losses)  # 3: instead of the plain backward below
        else:
            torch.autograd.backward(list(losses.values()))
        optimizer.step()
        run.saw(time.perf_counter() - start, losses)
        decay.step()
    return run.ended(optimizer, {"relative error": trial.evaluate()["relative_error"]})


def main(argv: Sequence[str] | None = None) -> list[common.Run]:
    args = common.arguments(__doc__, 3000, "stored", argv)
    job = Burgers()
    return common.compare(lambda balanced: train(job, args, balanced))


if __name__ == "__main__":
    main()
