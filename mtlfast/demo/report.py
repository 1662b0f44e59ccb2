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

__all__ = ["label", "result_table", "summarise", "write_summary"]


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


def result_table(job: Job, summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats a summary: one row per method, mean +- standard deviation over the seeds."""
    header = ["method", *(metric.label for metric in job.metrics), "ms per step"]
    rows = [
        [
            label(job, method),
            *(_mean_and_deviation(entry[metric.key]) for metric in job.metrics),
            f"{entry['ms_per_step']:.2f}",
        ]
        for method, entry in summary.items()
    ]
    return table(header, rows)


def write_summary(summary: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Writes a summary as strict JSON: a value that is not finite becomes null."""
    path.write_text(json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")


def _mean_and_deviation(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    # statistics.stdev rejects NaN, which a run that diverged may leave
    deviation = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return f"{mean:.3f} +- {deviation:.3f}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return value if math.isfinite(value) else None
