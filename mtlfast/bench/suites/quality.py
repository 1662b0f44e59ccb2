"""What the methods reach on the demo's jobs: accuracies, errors and final losses, not times.

Every run is a function of its job, method and seed alone: it has a process with one thread, so that
neither their number nor their order matters, and the same seeds give the same numbers again.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from mtlfast import jobs
from mtlfast.bench.paths import path_labels, thinned
from mtlfast.bench.rows import Label, Row, row
from mtlfast.bench.runner import Progress, said
from mtlfast.bench.setting import Setting
from mtlfast.demo import report
from mtlfast.demo.run import make_weighting, obstacle
from mtlfast.demo.train import train
from mtlfast.jobs import Job, two_objectives
from mtlfast.weighting import REGISTRY

__all__ = [
    "FIGURES",
    "Outcome",
    "Plan",
    "Run",
    "outcomes",
    "plans",
    "rows",
    "run",
    "run_one",
    "work",
]

FIGURES = {
    "quality/multidigits": "worst-task accuracy on test data, over seeds; higher is better",
    "quality/multidigits_mean": "mean accuracy on test data, over seeds; higher is better",
    "quality/multidigits_losses": "training losses at the end, as they are trained",
    "quality/burgers": "relative L2 error against the exact solution, over seeds",
    "quality/burgers_losses": "training losses at the end, as they are trained",
    "quality/two_objectives": "distance to the Pareto set at the end, over starting points",
    "quality/two_objectives_reached": "starting points from which the Pareto set was reached",
    "quality/two_objectives_losses": "losses at the end, over starting points",
    "quality/two_objectives_cagrad": "the distance in the setting of CAGrad's paper",
    "quality/two_objectives_cagrad_reached": "starting points from which it was reached there",
    "quality/two_objectives_cagrad_losses": "losses at the end there",
}
FIGURE_OF = {
    ("multidigits", "worst_accuracy"): "quality/multidigits",
    ("multidigits", "mean_accuracy"): "quality/multidigits_mean",
    ("burgers", "relative_error"): "quality/burgers",
    ("two_objectives", "distance"): "quality/two_objectives",
    ("two_objectives_cagrad", "distance"): "quality/two_objectives_cagrad",
}
ALIASES = ("random",)  # another name of rlw
QUICK_METHODS = ("sum", "mgda", "pcgrad", "cagrad", "nash_mtl")


@dataclass(frozen=True)
class Plan:
    """What is run of a job.

    Attributes:
        job: Its name.
        steps: Training steps of a run.
        seeds: By the method's name, how many: 0, 1, ...
        missing: Methods that cannot run, and why.
    """

    job: str
    steps: int
    seeds: dict[str, int]
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training: job, method, seed and number of steps."""

    job: str
    method: str
    seed: int
    steps: int


@dataclass(frozen=True)
class Outcome:
    """What a training reached.

    Attributes:
        metrics: After the last step.
        losses: Of the last steps.
        path: For the two objectives, the way [n, 2], thinned.
    """

    metrics: dict[str, float]
    losses: dict[str, float]
    path: list[tuple[float, float]] = field(default_factory=list)


def plans(setting: Setting) -> list[Plan]:
    """What runs in full, or quickly.

    In full: five seeds of all methods on MultiDigits; all methods from all starting points of
    Nash-MTL's paper, and those that CAGrad's paper compares from all of its own; on Burgers, whose
    steps take the longest, five seeds of the methods that somebody else's figures are known for,
    and one of each other.
    """
    if setting.quick:
        return [
            _plan("multidigits", 300, 2),
            _plan("burgers", 200, 1),
            _plan("two_objectives", 10_000, 2),
        ]
    return [
        _plan("multidigits", jobs.MultiDigits.steps, 5, 5),
        _plan("burgers", jobs.Burgers.steps, 5, 1),
        _plan("two_objectives", jobs.TwoObjectives.steps, 5, 5),
        _plan("two_objectives_cagrad", jobs.TwoObjectivesCAGrad.steps, 3),
    ]


def _plan(name: str, steps: int, seeds: int, others: int = 0) -> Plan:
    """With ``others`` seeds for the methods that the job neither expects a figure of nor shows.

    With fewer steps than the job's, only some methods run.
    """
    job = jobs.get(name)
    counts, missing = {}, {}
    known = job.expected or job.methods
    for method in dict.fromkeys([*job.methods, *REGISTRY]):
        count = seeds if method in known else others
        if method in ALIASES or count == 0 or (steps < job.steps and method not in QUICK_METHODS):
            continue
        if reason := obstacle(job, method):
            missing[method] = reason
        else:
            counts[method] = count
    return Plan(name, steps, counts, missing)


def run(setting: Setting, progress: Progress) -> list[Row]:
    """Trains everything, seed by seed, and returns the rows."""
    todo = plans(setting)
    return rows(todo, outcomes(work(todo), setting, progress))


def work(todo: Sequence[Plan]) -> list[Run]:
    """Seed by seed, so that a budget that ends too early leaves some of everything."""
    return [
        Run(plan.job, method, seed, plan.steps)
        for seed in range(max(max(plan.seeds.values()) for plan in todo))
        for plan in todo
        for method, count in plan.seeds.items()
        if seed < count
    ]


def outcomes(runs: Sequence[Run], setting: Setting, progress: Progress) -> dict[Run, Outcome | str]:
    """What every run reached, or why not; in as many processes as the setting has threads."""
    progress.expect(len(runs))
    progress.step(f"quality: {len(runs)} trainings")
    end = math.inf if setting.budget is None else time.monotonic() + setting.budget
    found: dict[Run, Outcome | str] = dict.fromkeys(runs, "no time was left in the budget")
    with _workers(setting.threads) as pool:
        waiting: dict[Future[Outcome], Run] = {pool.submit(run_one, run): run for run in runs}
        while waiting and time.monotonic() < end:
            left = None if end == math.inf else end - time.monotonic()
            for future in wait(waiting, left, FIRST_COMPLETED).done:
                one = waiting.pop(future)
                error = future.exception()
                found[one] = future.result() if error is None else said(error)
                progress.step(f"quality: {one.job}, {one.method}, seed {one.seed}")
    return found


@contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, whatever they are doing."""
    before = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, _begin)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in before:
                child.terminate()


def _begin() -> None:
    """Of a worker: one thread, and Ctrl-C is for its parent to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed ends nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_one(one: Run) -> Outcome:
    """Trains once, as ``mtlfast demo`` does."""
    job = jobs.get(one.job)
    torch.manual_seed(one.seed)
    weighting = make_weighting(job, one.method)
    history = train(job, weighting, one.seed, one.steps, lambda _: None, cosines=False)
    last = history.metrics[-1]
    metrics = {metric.key: last[metric.key] for metric in job.metrics}
    path = [(m["x1"], m["x2"]) for m in history.metrics] if "x1" in last else []
    return Outcome(metrics, history.losses, thinned(path))


def rows(todo: Sequence[Plan], found: dict[Run, Outcome | str]) -> list[Row]:
    """The rows of all figures, the methods in the order of their registry."""
    lines: list[Row] = []
    for plan in todo:
        job = jobs.get(plan.job)
        for method in (name for name in REGISTRY if name in {**plan.seeds, **plan.missing}):
            if method in plan.missing:
                lines += _not_run(job, method, plan.missing[method])
                continue
            runs = [Run(plan.job, method, seed, plan.steps) for seed in range(plan.seeds[method])]
            lines += _of_method(job, runs, [found[one] for one in runs])
    return sorted(lines, key=lambda line: list(FIGURES).index(line.figure))


def _not_run(job: Job, method: str, reason: str) -> list[Row]:
    labels: dict[str, Label] = {"job": job.name, "method": method}
    name = report.label(job, method)
    figures = [FIGURE_OF[key] for m in job.metrics if (key := (job.name, m.key)) in FIGURE_OF]
    return [Row(figure, name, "", detail=reason, labels=labels) for figure in figures]


def _of_method(job: Job, runs: Sequence[Run], results: Sequence[Outcome | str]) -> list[Row]:
    name = report.label(job, runs[0].method)
    labels: dict[str, Label] = {"job": job.name, "method": runs[0].method}
    done = [(one.seed, r) for one, r in zip(runs, results, strict=True) if isinstance(r, Outcome)]
    failed = {one.seed: r for one, r in zip(runs, results, strict=True) if isinstance(r, str)}
    words = [f"{runs[0].steps} steps", f"seeds {_listed([seed for seed, _ in done])}"]
    words += [f"not seeds {_listed(list(failed))}: {next(iter(failed.values()))}"] if failed else []
    lines = []
    for metric in job.metrics:
        if (job.name, metric.key) in FIGURE_OF:
            figure = FIGURE_OF[job.name, metric.key]
            values = [result.metrics[metric.key] for _, result in done]
            ways = {seed: result.path for seed, result in done if result.path}
            paths = path_labels(ways)
            lines.append(_line(figure, name, values, words, {**labels, **paths}))
    for task in job.tasks:
        values = [result.losses[task] for _, result in done]
        figure = f"quality/{job.name}_losses"
        lines.append(_line(figure, f"{name}, {task}", values, words, {**labels, "task": task}))
    if isinstance(job, jobs.TwoObjectives):
        lines += _reached(job, name, done, words, labels)
    return lines


def _line(
    figure: str, case: str, values: Sequence[float], words: Sequence[str], labels: dict[str, Label]
) -> Row:
    finite = [value for value in values if math.isfinite(value)]
    said = list(words)
    if len(finite) < len(values):
        said.append(f"{len(values) - len(finite)} of {len(values)} diverged")
    if not finite:
        return Row(figure, case, "", detail="; ".join(said), labels=labels)
    spread: dict[str, Label] = {"mean": statistics.fmean(finite)}
    if len(finite) > 1:
        spread["std"] = statistics.stdev(finite)
    return row(figure, case, "", finite, detail="; ".join(said), labels={**labels, **spread})


def _reached(
    job: jobs.TwoObjectives,
    name: str,
    done: Sequence[tuple[int, Outcome]],
    words: Sequence[str],
    labels: dict[str, Label],
) -> list[Row]:
    """From how many starts the Pareto set was reached, and from which not."""
    if not done:
        return []
    near = [result.metrics["distance"] <= two_objectives.REACHED for _, result in done]
    stuck = [
        "({:g}, {:g})".format(*job.starts[seed % len(job.starts)])
        for (seed, _), there in zip(done, near, strict=True)
        if not there
    ]
    said = [f"of {len(done)}", *words[:1], *([f"not from {', '.join(stuck)}"] if stuck else [])]
    figure = f"quality/{job.name}_reached"
    return [Row(figure, name, "starts", float(sum(near)), detail="; ".join(said), labels=labels)]


def _listed(seeds: Sequence[int]) -> str:
    """``0 to 4`` or ``0, 2``."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) or "none"
