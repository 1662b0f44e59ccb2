"""The lines of a benchmark's table: a figure of one contestant in one case, with its spread."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Label", "Report", "Row", "row"]

Label = str | int | float


@dataclass(frozen=True)
class Row:
    """One line of the table: a median with its spread.

    Attributes:
        figure: Suite and figure that it belongs to, as ``"kernels/floor"``.
        case: What was measured; unique within the figure.
        unit: Of the numbers: ``"x"`` for a ratio, ``"joint"`` for a difference in steps of joint
            training, ``"ms"``, ``"us"``, ``"MB"``, ...
        p50: The median; None where nothing was measured, ``detail`` says why.
        p20: A fifth of the runs are below.
        p80: A fifth of the runs are above.
        runs: How many there were.
        target: A bound that was set beforehand.
        at_least: The target is a lower bound.
        versus: A peer, where the number is its time or memory over ours: more than 1 is our win.
        detail: What else a reader wants to know.
        others: CPUs that other processes kept busy meanwhile.
        error: Relative standard error of a ratio's median, from its scatter between passes.
        labels: The case again, for plots: ``{"K": 8, "P": 1e7, "contestant": "TorchJD"}``.
    """

    figure: str
    case: str
    unit: str
    p50: float | None = None
    p20: float | None = None
    p80: float | None = None
    runs: int = 0
    target: float | None = None
    at_least: bool = False
    versus: str = ""
    detail: str = ""
    others: float | None = None
    error: float | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Figure and case: the row's name in a file of results."""
        return f"{self.figure}/{self.case}"

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without a target or a measurement."""
        if self.target is None or self.p50 is None:
            return None
        return self.p50 >= self.target if self.at_least else self.p50 <= self.target


def row(figure: str, case: str, unit: str, samples: ArrayLike, **others: Any) -> Row:
    """A row from samples ``[runs]``; ``others`` are further fields of :class:`Row`."""
    found = np.asarray(samples, dtype=np.float64).ravel()
    p20, p50, p80 = (float(x) for x in np.quantile(found, (0.2, 0.5, 0.8)))
    return Row(figure, case, unit, p50, p20, p80, found.size, **others)


@dataclass
class Report:
    """The rows of a run, and all that a reader needs to repeat it.

    Attributes:
        environment: Machine, versions, commit and date.
        setting: What was asked for.
        titles: What a figure shows, by its name.
        rows: The figures.
    """

    environment: dict[str, Any] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def add(self, *rows: Row) -> None:
        """Adds rows."""
        self.rows.extend(rows)

    def find(self, key: str) -> Row:
        """The row of this key.

        Raises:
            KeyError: There is none.
        """
        for found in self.rows:
            if found.key == key:
                return found
        raise KeyError(f"no row {key!r}")

    def of(self, figure: str, **labels: Label) -> list[Row]:
        """The rows of a figure that have these labels."""
        return [
            found
            for found in self.rows
            if found.figure == figure
            and all(found.labels.get(name) == value for name, value in labels.items())
        ]

    def wins(self) -> list[Row]:
        """The rows in which a peer is ahead of us, the most so first."""
        lost = [r for r in self.rows if r.versus and r.p50 is not None and r.p50 < 1.0]
        return sorted(lost, key=lambda r: r.p50 or 0.0)

    def table(self) -> list[str]:
        """The rows as lines of text, under a heading for each figure; then targets and wins."""
        lines: list[str] = []
        for figure in dict.fromkeys(r.figure for r in self.rows):
            rows = [r for r in self.rows if r.figure == figure]
            title = self.titles.get(figure)
            lines += ["", f"{figure}: {title}" if title else figure]
            width = max(34, *(len(r.case) for r in rows))
            lines += [_line(r, width) for r in rows]
        targets = [r for r in self.rows if r.target is not None]
        if targets:
            met = sum(r.met is True for r in targets)
            lines += ["", f"{met} of {len(targets)} bounds that were set beforehand are met"]
        if any(r.versus for r in self.rows):
            lines += ["", *_wins(self.wins())]
        return lines

    def write(self, path: Path) -> None:
        """Writes everything as JSON.

        Raises:
            OSError: The file cannot be written.
        """
        head = {
            "environment": self.environment,
            "setting": self.setting,
            "titles": self.titles,
        }
        parts = [f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in head.items()]
        rows = ",\n  ".join(json.dumps(_plain(r), allow_nan=False) for r in self.rows)
        parts.append(f'"rows": [\n  {rows}\n ]')
        text = ",\n ".join(parts)  # a row is a line, so that a comparison of files is readable
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{{\n {text}\n}}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Reads what :meth:`write` wrote.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds something else.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            rows = [Row(**entry) for entry in found.pop("rows")]
            return cls(**found, rows=rows)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path}: expected results of 'mtlfast bench', found {error}"
            ) from None


def _plain(found: Row) -> dict[str, Any]:
    """A row without what it does not say."""
    empty = Row("", "", "")
    return {
        key: value
        for key, value in asdict(found).items()
        if key in ("figure", "case", "unit", "p50") or value != getattr(empty, key)
    }


def _line(r: Row, width: int) -> str:
    if r.p50 is None:
        return f"  {r.case:<{width}} not measured: {r.detail}"
    spread = "" if r.runs < 2 else f"[{r.p20:.4g}, {r.p80:.4g}]"
    error = "" if r.error is None else f"±{r.error:.1%}"
    goal = "" if r.target is None else f"{'>=' if r.at_least else '<='} {r.target:g}"
    met = {None: "", True: "met", False: "MISSED"}[r.met]
    busy = r.others is not None and r.others > 0.1
    warning = f" (others used {r.others:.1f} CPUs: repeat)" if busy else ""
    number = f"{r.p50:>8.4g} {r.unit:<5} {spread:<20} {error:<6}"
    line = f"  {r.case:<{width}} {number} {goal:<9} {met:<7}"
    return f"{line}{r.detail}{warning}".rstrip()


def _wins(lost: Sequence[Row]) -> Iterable[str]:
    if not lost:
        yield "No peer is ahead in any case."
        return
    yield "Where a peer is ahead (its figure over ours):"
    for r in lost:
        doubt = "" if (r.p80 or 0.0) < 1.0 else ", within the noise"
        yield f"  {r.figure}: {r.case}: {r.p50:.3g} [{r.p20:.3g}, {r.p80:.3g}]{doubt}"
