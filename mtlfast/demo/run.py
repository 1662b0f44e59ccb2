"""Runs the demo from its arguments to its files."""

import copy
import inspect
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import mtlfast.weighting
from mtlfast import jobs, ops
from mtlfast.demo import report
from mtlfast.demo.train import History, train
from mtlfast.jobs import Job
from mtlfast.weighting import Weighting

__all__ = ["UsageError", "make_weighting", "obstacle", "run"]

BAR = "{percentage:3.0f}% |{bar:24}| {elapsed}, {remaining} left; {desc}"
REQUIRES = {"matplotlib": "matplotlib", "tqdm": "tqdm"}


class UsageError(ValueError):
    """An argument that the user must change; the message is one line and names the option."""


def run(
    job_name: str = "multidigits",
    *,
    seeds: int = 3,
    methods: Sequence[str] | None = None,
    steps: int | None = None,
    out: Path = Path("demo_results"),
    threads: int | None = None,
) -> dict[str, dict[str, object]]:
    """Trains a job with every method and seed, prints a table, writes a summary and a figure.

    Args:
        job_name: Name of a registered job.
        seeds: Number of runs per method, with the seeds 0, 1, ...
        methods: Names of methods, ``["all"]`` for every one that the job can run; default: the
            job's own choice.
        steps: Training steps; default: the job's own number.
        out: Folder for ``summary.json``, ``JOB.md`` and ``JOB.png``; made if absent.
        threads: Torch's number of threads meanwhile; default: the job's own number.

    Returns:
        What ``summary.json`` holds: ``{method: {metric: [per seed], "ms_per_step": x}}``.

    Raises:
        UsageError: An argument is wrong, or ``out`` cannot be written.
        ModuleNotFoundError: An optional package is missing.
    """
    if job_name not in jobs.REGISTRY:
        found = ", ".join(sorted(jobs.REGISTRY))
        raise UsageError(f"JOB: expected one of {found}, found {job_name!r}")
    job = jobs.get(job_name)
    for option, number in (("seeds", seeds), ("steps", steps), ("threads", threads)):
        if number is not None and number < 1:
            raise UsageError(f"--{option}: expected a whole number of at least 1, found {number}")
    chosen = _choose(job, methods)
    _check_writable(out)
    jobs.require_packages({**REQUIRES, **job.requires}, "the demo")

    length = f"{seeds} seed{'s' * (seeds > 1)} x {steps or job.steps} steps"
    print(f"{job.title}; {len(chosen)} method{'s' * (len(chosen) > 1)} x {length}", flush=True)
    threads_before = torch.get_num_threads()
    if threads is not None or job.threads is not None:
        torch.set_num_threads(threads or job.threads or threads_before)
    try:
        with torch.random.fork_rng(devices=[]):
            results = _train_all(job, chosen, seeds, steps or job.steps)
        backend = _describe_backend()
    finally:
        torch.set_num_threads(threads_before)

    from mtlfast.demo.figure import draw

    summary = report.summarise(job, results)
    settings = ", ".join(repr(make_weighting(job, name)) for name in chosen if name in job.options)
    notes = [f"{length}; {backend}"]
    notes += [f"Settings other than the defaults: {settings}"] if settings else []
    notes += [job.remark] if job.remark else []
    files = (out / "summary.json", out / f"{job.name}.md", out / f"{job.name}.png")
    try:
        report.write_summary(summary, files[0])
        report.write_table(job, summary, notes, files[1])
        draw(job, results, report.ranked(job, summary), files[2])
    except OSError as error:
        raise _unwritable(out, error) from error
    print(f"\n{report.result_table(job, summary)}\n", *notes, sep="\n")
    print(f"Wrote {', '.join(map(str, files[:-1]))} and {files[-1]}")
    return summary


def _choose(job: Job, methods: Sequence[str] | None) -> list[str]:
    """Returns the names of the methods to run, checked, without repetitions."""
    registry = mtlfast.weighting.REGISTRY
    if methods is None:
        methods = job.methods
    methods = [method.lower() for method in methods]
    obstacles = {method: obstacle(job, method) for method in registry}
    if "all" in methods:
        for method, reason in obstacles.items():
            if reason:
                print(f"Leaving out {method}: {reason}", file=sys.stderr)
        ordered = dict.fromkeys([*job.methods, *registry])  # the job's own baseline comes first
        return [method for method in ordered if not obstacles[method]]
    names = ", ".join(method for method, reason in obstacles.items() if not reason)
    for method in methods:
        if method not in registry:
            raise UsageError(f"--methods: expected all or some of {names}, found {method!r}")
        if obstacles[method]:
            raise UsageError(
                f"--methods: expected all or some of {names}, found {method!r}: {obstacles[method]}"
            )
    if not methods:
        raise UsageError(f"--methods: expected all or some of {names}, found none")
    return list(dict.fromkeys(methods))


def obstacle(job: Job, method: str) -> str | None:
    """Returns why a job cannot run a method, or None."""
    if method in job.unsupported:
        return job.unsupported[method]
    parameters = inspect.signature(mtlfast.weighting.REGISTRY[method]).parameters.values()
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and p.name not in job.options.get(method, {})
    ]
    return f"the job gives no {' and '.join(missing)}" if missing else None


def make_weighting(job: Job, method: str) -> Weighting:
    """Returns a new instance of a method, with the job's options for it."""
    # A copy, since an option may be a method itself, which every run needs anew.
    options = copy.deepcopy(dict(job.options.get(method, {})))
    return mtlfast.weighting.REGISTRY[method](**options)


def _train_all(
    job: Job, methods: Sequence[str], seeds: int, steps: int
) -> dict[str, list[History]]:
    from tqdm import tqdm

    results: dict[str, list[History]] = {method: [] for method in methods}
    # A log file gets a line now and then; a terminal a bar that moves.
    interval = 0.2 if sys.stderr.isatty() else 10.0
    total = len(methods) * seeds * steps
    metric = job.metrics[0]
    with tqdm(
        total=total, mininterval=interval, dynamic_ncols=True, bar_format=BAR, smoothing=0.1
    ) as bar:
        # Seed by seed, so that a slow phase of the machine hits all methods alike.
        for seed in range(seeds):
            for method in methods:
                name = f"{report.label(job, method)}, seed {seed}"

                def progress(metrics: dict[str, float], name: str = name) -> None:
                    text = f"{name}: {metric.label} {metrics[metric.key]:.3f}"
                    bar.set_description_str(text, refresh=False)
                    bar.update()

                results[method].append(
                    train(job, make_weighting(job, method), seed, steps, progress)
                )
    return results


def _describe_backend() -> str:
    facts = ops.describe()
    isa = f", ISA {facts['isa']}" if facts["isa"] else ""
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    return (
        f"{facts['backend']} backend{isa}, {threads}, torch {facts['torch']}, "
        f"mtlfast {facts['mtlfast']}"
    )


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> UsageError:
    why = error.strerror or type(error).__name__
    return UsageError(f"--out: expected a folder to write in, found {str(out)!r} ({why})")
