"""The whole of ``mtlfast bench mine``, from the options to the recommendation."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtlfast.bench.command import BAR, Bar, UsageError
from mtlfast.bench.environment import environment
from mtlfast.bench.mine.advice import Advice, Findings, Price, advise, best_engine
from mtlfast.bench.mine.conflicts import Conflicts, record
from mtlfast.bench.mine.contest import Contest, differences
from mtlfast.bench.mine.contestants import METHOD, Step, engines, of_methods
from mtlfast.bench.mine.subject import Subject
from mtlfast.bench.rows import Report, Row
from mtlfast.bench.runner import Progress, measure
from mtlfast.bench.setting import Setting
from mtlfast.weighting import REGISTRY

__all__ = ["FIGURES", "METHODS", "Study", "main", "study"]

FIGURES = {
    "mine/time": f"a step over one of plain training, {METHOD}",
    "mine/ms": "the same in milliseconds",
    "mine/peak": "the most that a step holds at once, without parameters and optimizer state",
    "mine/exact": "difference of the gradients on one batch",
    "mine/method-time": "a step over one of plain training, by method",
    "mine/method-ms": "the same in milliseconds",
    "mine/conflict": "cosines of the task gradients while plain training goes on",
    "mine/norm": "lengths of the task gradients in the same batches",
}
METHODS = ("si", "famo", "pcgrad", "cagrad", "upgrad", "nash_mtl", "config")
BATCHES, QUICK_BATCHES = 50, 10
SECONDS, QUICK_SECONDS = 200.0, 60.0
"""Of a whole run beside its preparation."""
PARTS = {"engines": 0.5, "methods": 0.25, "conflicts": 0.25}
FOREIGN = ("tasks", "params", "peers", "plots", "compare", "read", "only")
"""Options of the other suites."""


@dataclass(frozen=True)
class Study:
    """What came out.

    Attributes:
        report: all rows.
        conflicts: the statistics.
        advice: the recommendation.
    """

    report: Report
    conflicts: Conflicts
    advice: Advice

    def text(self) -> str:
        """For a terminal."""
        apart = ("mine/conflict", "mine/norm")  # as tables of their own
        rows = [row for row in self.report.rows if row.figure not in apart]
        shown = dataclasses.replace(self.report, rows=rows)
        words = [line for part in self.advice.lines for line in textwrap.wrap(part, 96)]
        code = [f"    {line}" for line in self.advice.code]
        parts = [*shown.table(), "", *self.conflicts.lines(), "", "Recommendation", ""]
        return "\n".join([*parts, *words, "", *code])


def main(options: argparse.Namespace, setting: Setting) -> int:
    """Runs ``mtlfast bench mine``; returns the exit code.

    Raises:
        UsageError: something that the user must change; one line.
    """
    from tqdm import tqdm

    if options.make_step is None:
        raise UsageError("--import: expected MODULE:FUNCTION for mine, found none")
    for name in FOREIGN:
        if getattr(options, name) is not None:
            raise UsageError(f"--{name}: expected no such option beside mine, found one")
    methods = METHODS if options.methods is None else _methods(options.methods)
    subject = Subject.load(options.make_step)
    seconds = options.budget or (QUICK_SECONDS if setting.quick else SECONDS)
    setting = dataclasses.replace(setting, budget=seconds, device=subject.device)
    interval = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(total=0, bar_format=BAR, mininterval=interval, dynamic_ncols=True) as bar:
        progress = Bar(bar)
        found = study(subject, setting, methods, options.batches, progress)
        progress.finish()
    print(found.text())
    if options.out is not None:
        found.report.write(options.out)
        print(f"\nwrote {options.out}")
    return 0


def study(
    subject: Subject,
    setting: Setting,
    methods: Sequence[str],
    batches: int | None,
    progress: Progress,
) -> Study:
    """Measures everything; the subject is then what it was.

    Args:
        subject: the user's model, optimizer and losses.
        setting: its budget is shared out to the parts.
        methods: names, for the second contest.
        batches: of the statistics; default: as many of 50 (10) as fit into their time.
        progress: is told.

    Raises:
        UsageError: the user's losses fail, or are never finite.
    """
    begin = subject.state()
    report = Report(environment(), setting.describe(), dict(FIGURES))
    # A first step makes the optimizer's state: all that are measured find it there.
    subject.joint()
    state = subject.state()

    contest = Contest(subject, state, engines(subject), "mine/time", "mine/ms", "step")
    times = _measured(contest, report, setting, "engines", progress)
    progress.expect(2)
    progress.step("peak memory")
    peaks = contest.peaks()
    progress.step("the engines' gradients")
    exact = differences(contest)
    report.add(*peaks, *exact)

    step = contest.steps.get("auto")
    last = step.last if isinstance(step, Step) else None
    auto = "" if last is None else last.engine
    engine = best_engine(times, auto)
    if engine not in times:
        raise UsageError(f"no engine runs on this model: {contest.missing.get(engine, '')}")
    makers = of_methods(subject, tuple(methods), engine)
    second = Contest(subject, state, makers, "mine/method-time", "mine/method-ms", "method")
    prices = _measured(second, report, setting, "methods", progress)

    begin.restore()
    share = math.inf if batches else _share(setting, "conflicts")
    batches = batches or (QUICK_BATCHES if setting.quick else BATCHES)
    progress.expect(batches)
    conflicts = record(subject, batches, share, lambda: progress.step("task gradients"), engine)
    begin.restore()
    if not len(conflicts.losses):
        raise UsageError(
            f"losses: expected finite gradients, found NaN or Inf in all {conflicts.dropped} "
            f"batches of plain training"
        )
    report.add(*conflicts.rows())
    advice = advise(
        Findings(conflicts, times, auto, _by_contestant(peaks), _by_contestant(exact), prices)
    )
    report.setting |= {
        "import": subject.spec,
        "method": METHOD,
        "batches": len(conflicts.losses),
        "recommendation": {
            "engine": advice.engine,
            "method": advice.method,
            "reasons": advice.lines,
            "code": advice.code,
        },
    }
    return Study(report, conflicts, advice)


def _measured(
    contest: Contest, report: Report, setting: Setting, part: str, progress: Progress
) -> Mapping[str, Price]:
    """Measures, adds the rows, and returns the times in plain steps."""
    limited = dataclasses.replace(setting, budget=_share(setting, part))
    rows = measure([contest], limited, progress)
    if contest.subject.failed:
        raise UsageError(contest.subject.failed)
    if "joint" in contest.missing:
        raise UsageError(f"a plain step raised {contest.missing['joint']}")
    report.add(*rows)
    return {
        str(row.labels["contestant"]): Price(row.p50, row.p20 or 0.0, row.p80 or 0.0)
        for row in rows
        if row.figure == contest.figure and row.p50 is not None
    }


def _share(setting: Setting, part: str) -> float:
    return PARTS[part] * (SECONDS if setting.budget is None else setting.budget)


def _by_contestant(rows: Sequence[Row]) -> dict[str, float]:
    return {str(row.labels["contestant"]): row.p50 for row in rows if row.p50 is not None}


def _methods(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in REGISTRY:
            raise UsageError(f"--methods: expected names as in 'mtlfast methods', found {name!r}")
    return tuple(dict.fromkeys(names))
