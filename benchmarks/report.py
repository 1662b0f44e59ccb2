"""Collects what the benchmarks found; prints one table and writes one JSON."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mtlfast import ops


@dataclass
class Row:
    """One line of the table: a median with its spread, and the target it is held against."""

    figure: str
    case: str
    unit: str
    median: float | None = None  # None: not measured, `detail` says why
    p20: float | None = None
    p80: float | None = None
    target: float | None = None
    at_least: bool = False  # the target is a lower bound
    detail: str = ""
    others: float | None = None  # CPUs that other processes kept busy meanwhile
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without a target or a measurement."""
        if self.target is None or self.median is None:
            return None
        return self.median >= self.target if self.at_least else self.median <= self.target


def row(figure: str, case: str, unit: str, samples: Sequence[float], **others: Any) -> Row:
    """A row from samples: median, p20 and p80."""
    p20, median, p80 = (float(x) for x in np.quantile(samples, (0.2, 0.5, 0.8)))
    return Row(figure, case, unit, median, p20, p80, **others)


@dataclass
class Report:
    """The rows of a run."""

    rows: list[Row] = field(default_factory=list)

    def add(self, *rows: Row) -> None:
        self.rows.extend(rows)

    def table(self) -> list[str]:
        """The rows as lines of text, under a heading for each figure."""
        lines: list[str] = []
        figure, width = "", 34
        for r in sorted(self.rows, key=lambda r: r.figure):
            if r.figure != figure:
                figure = r.figure
                lines += ["", figure]
                width = max(34, *(len(o.case) for o in self.rows if o.figure == figure))
            if r.median is None:
                lines.append(f"  {r.case:<{width}} not measured: {r.detail}")
                continue
            spread = f"[{r.p20:.4g}, {r.p80:.4g}]"
            goal = "" if r.target is None else f"{'>=' if r.at_least else '<='} {r.target:g}"
            met = {None: "", True: "met", False: "MISSED"}[r.met]
            line = (
                f"  {r.case:<{width}} {r.median:>8.4g} {r.unit:<5} {spread:<18} {goal:<9} {met:<7}"
            )
            busy = r.others is not None and r.others > 0.1
            warning = f" (others used {r.others:.1f} CPUs: repeat)" if busy else ""
            lines.append(f"{line}{r.detail}{warning}".rstrip())
        targets = [r for r in self.rows if r.target is not None]
        met_count = sum(r.met is True for r in targets)
        return [*lines, "", f"{met_count} of {len(targets)} targets met"]

    def write(self, path: Path, **more: Any) -> None:
        """Everything as JSON; ``more`` is added to what it says of the machine."""
        rows = [asdict(r) | {"met": r.met} for r in self.rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        where = environment() | more
        path.write_text(json.dumps({"environment": where, "rows": rows}, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or os.environ.get("COMMIT"),
        "modified": bool(_git("status", "--porcelain", "--", "csrc", "mtlfast", "benchmarks")),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torchjd": version_of("torchjd"),
        "extension": _extension(),
        **ops.describe(),
    }


def _extension() -> str | None:
    """A hash of the extension that ran: with several installs it need not be the one expected."""
    spec = importlib.util.find_spec("mtlfast._C")
    if spec is None or spec.origin is None:
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
