"""A physics-informed network for Burgers' equation, three losses: the engine "auto".

Each loss has points of its own, and so a forward and a backward of its own: three backwards through
three separate graphs cost about what one through their sum costs, and a balanced step little more
than a plain one. "auto" looks at every step's graph, takes the engine and says why. ("batched", one
vectorised backward, is for losses that share their forward; ``--engine batched`` shows it.)

Data: none. It is the job of ``mtlfast demo burgers``: a network 2-40-40-40-40-1 learns u(x, t) from
the mean squares of the equation's residual (times 100), of the initial and of the boundary values,
at new random points in every step. The error is measured against the exact solution; u = 0 has an
error of 1. The job's factor of 100 stands for an equation in large units; without it equal
weighting does as well.
Run time: half a minute.
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
    args = common.arguments(__doc__, 3000, "auto", argv)
    torch.set_num_threads(1)  # layers of 40: a second thread costs more than it brings
    job = Burgers()
    return common.compare(lambda balanced: train(job, args, balanced))


if __name__ == "__main__":
    main()
