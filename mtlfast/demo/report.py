"""What the demo prints and writes: a plain-text table and ``summary.json``."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlfast.demo.table import table
from mtlfast.demo.train import History
from mtlfast.jobs import Job
from mtlfast.weighting import REGISTRY

__all__ = ["label", "ranked", "result_table", "summarise", "write_summary", "write_table"]


def label(job: Job, method: str) -> str:
    """Returns what the table and the figure call a method: the job's word, or its class."""
    return job.labels.get(method, REGISTRY[method].__name__)


def summarise(job: Job, results: Mapping[str, Sequence[History]]) -> dict[str, dict[str, Any]]:
    """Reduces the runs to ``{method: {metric: [last value per seed], "ms_per_step": x}}``.

    ``ms_per_step`` is the median over all steps of all seeds, since other programs on the machine
    stretch a mean.
    """
    return {
        method: {
            **{
                metric.key: [history.metrics[-1][metric.key] for history in histories]
                for metric in job.metrics
            },
            "ms_per_step": 1e3 * statistics.median(s for h in histories for s in h.seconds),
        }
        for method, histories in results.items()
    }


def ranked(job: Job, summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the methods by the job's first metric: the best first, those that diverged last."""
    metric = job.metrics[0]

    def place(method: str) -> tuple[int, float]:
        values = summary[method][metric.key]
        finite = [value for value in values if math.isfinite(value)]
        mean = statistics.fmean(finite) if finite else 0.0
        return len(values) - len(finite), mean if metric.lower_is_better else -mean

    return sorted(summary, key=place)


def result_table(job: Job, summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats a summary as plain text: one row per method, the best one first."""
    return table(*_cells(job, summary))


def write_table(
    job: Job, summary: Mapping[str, Mapping[str, Any]], notes: Sequence[str], path: Path
) -> None:
    """Writes the same table in Markdown, with what the job expects, and notes below it."""
    header, rows = _cells(job, summary)
    if job.expected:
        header.insert(2, f"expected after {job.steps} steps")
        for method, row in zip(ranked(job, summary), rows, strict=True):
            row.insert(2, _expected(job, method))
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]
    path.write_text("\n".join([*lines, "", *notes]).replace("+-", "±") + "\n", encoding="utf-8")


def write_summary(summary: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Writes a summary as strict JSON: a value that is not finite becomes null."""
    path.write_text(json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")


def _cells(job: Job, summary: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean +- standard deviation over the seeds."""
    headings = (m.label + " (lower is better)" * m.lower_is_better for m in job.metrics)
    rows = [
        [
            label(job, method),
            *(_mean_and_deviation(summary[method][metric.key]) for metric in job.metrics),
            f"{summary[method]['ms_per_step']:.2f}",
        ]
        for method in ranked(job, summary)
    ]
    return ["method", *headings, "ms per step"], rows


def _expected(job: Job, method: str) -> str:
    if method not in job.expected:
        return ""
    mean, deviation = job.expected[method]
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} +- {deviation:.3f}"


def _mean_and_deviation(values: Sequence[float]) -> str:
    """Words for one number per seed; runs that diverged are counted, not averaged."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "diverged"
    words = f"{statistics.fmean(finite):.3f}"
    if len(finite) > 1:
        words += f" +- {statistics.stdev(finite):.3f}"
    if len(finite) < len(values):
        words += f" ({len(values) - len(finite)} of {len(values)} diverged)"
    return words


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return value if math.isfinite(value) else None
