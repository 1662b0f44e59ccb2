"""The language of the marks: from the expression in a mark to the text that belongs there.

A mark names a file of ``benchmarks/results`` and rows of it by their keys, figure and case::

    cpu "kernels/floor/K = 4, P = 1e+07"                   the median, to three digits
    cpu "kernels/floor/K = 4, P = 1e+07" target .2f        another field, a format of Python's
    cpu "kernels/parts/A" / "kernels/parts/B"              one row over another
    cpu range "kernels/floor/K = *, P = 1e+07" .2f         over several rows: 1.23 to 1.66

``*`` in a key stands for anything; without a function exactly one row may fit.

Functions, before the keys:

- ``min``, ``max``, ``range``: of all rows;
- ``each``: every row, by K: ``2.37 / 2.94 / 6.03``;
- ``spread``: from p20 to p80 of one row;
- ``count``: how many rows were measured;
- ``met``: how many bounds are met: ``92 of 111``;
- ``won``: in how many comparisons with a peer we are ahead: ``41 of 44``;
- ``env``: an entry of the environment: ``env "peers.torchjd"``.

Fields, after the keys: ``p50`` (the default), ``p20``, ``p80``, ``target``, ``runs``, ``others``,
and ``@name`` for a label. Then a factor, as ``*0.001`` from microseconds to milliseconds. Last the
format: ``.2f``, ``.3g``, ``,.0f``, ``.0%``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlfast.bench.digits import three
from mtlfast.bench.rows import Label, Report, Row

__all__ = [
    "MarkError",
    "NoRowError",
    "NotMeasuredError",
    "Results",
    "evaluate",
    "number",
    "value_of",
]

TOKEN = re.compile(r'"([^"]*)"|(\S+)')
FIELDS = ("p50", "p20", "p80", "target", "runs", "others")
FACTOR = re.compile(r"\*\d*\.?\d+(e-?\d+)?")
FORMAT = re.compile(r"[-+ ]?,?\d*(\.\d+)?[a-z%]")


class MarkError(ValueError):
    """A mark that says nothing: what was expected, and what was found."""


class NoRowError(MarkError):
    """The file has no such row."""


class NotMeasuredError(MarkError):
    """The row is there, and says why it has no number."""


class Results:
    """The committed results, each file read when it is first asked for.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reports: dict[str, Report] = {}

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.folder / f"{name}.json").exists()

    def report(self, name: str) -> Report:
        """All of a file; ``name`` is without ``.json``.

        Raises:
            MarkError: It is not there, or holds something else.
        """
        if name not in self._reports:
            try:
                self._reports[name] = Report.read(self.folder / f"{name}.json")
            except OSError:
                known = ", ".join(sorted(path.stem for path in self.folder.glob("*.json")))
                raise MarkError(
                    f"FILE: expected one of {known or '(there are none)'}, found {name!r}"
                ) from None
            except ValueError as error:
                raise MarkError(str(error)) from None
        return self._reports[name]

    def rows(self, name: str, key: str) -> list[Row]:
        """The rows whose key fits, at least one.

        Raises:
            NoRowError: There is none.
        """
        fits = re.compile(".*".join(re.escape(part) for part in key.split("*")))
        found = [r for r in self.report(name).rows if fits.fullmatch(r.key)]
        if not found:
            raise NoRowError(f"{name}.json has no row {key!r}")
        return found

    def row(self, name: str, key: str) -> Row:
        """The one row whose key fits.

        Raises:
            MarkError: There is none, or several.
        """
        found = self.rows(name, key)
        if len(found) > 1:
            raise MarkError(f"{name}.json has {len(found)} rows {key!r}, expected one")
        return found[0]


def evaluate(expression: str, results: Results) -> str:
    """What a mark stands for.

    Raises:
        MarkError: The expression is wrong, or the rows are not there or were not measured.
    """
    parts = _Expression(expression)
    if parts.function == "env":
        return _environment(results.report(parts.file), parts.keys)
    rows = [r for key in parts.keys for r in results.rows(parts.file, key)]
    if parts.function in COUNTS:
        return COUNTS[parts.function](rows)
    if parts.function == "each":
        return " / ".join(_each(rows, parts))
    if parts.function == "spread":
        one = _only(rows, expression)
        return _range([parts.show(value_of(one, name)) for name in ("p20", "p80")])
    if parts.function:
        known = [value for r in rows if (value := _value(r, parts.field)) is not None]
        if not known:
            raise NotMeasuredError(f"none of {len(rows)} rows has a {parts.field}")
        values = sorted(_numeric(value, parts.field) for value in known)
        ends = {"min": values[:1], "max": values[-1:]}.get(parts.function, [values[0], values[-1]])
        return _range([parts.show(x) for x in ends])
    value = value_of(_only(rows, expression), parts.field)
    if parts.over is not None:
        below = value_of(results.row(parts.file, parts.over), parts.field)
        value = _numeric(value, parts.field) / _numeric(below, parts.field)
    return parts.show(value)


def value_of(r: Row, field: str = "p50") -> Label:
    """A field or, as ``@name``, a label of a row.

    Raises:
        MarkError: The row lacks it.
        NotMeasuredError: It was not measured.
    """
    found = _value(r, field)
    if found is not None:
        return found
    if r.p50 is None:
        raise NotMeasuredError(f"{r.key!r} was not measured: {r.detail}")
    raise MarkError(f"the row {r.key!r} has no {field}")


def _value(r: Row, field: str) -> Label | None:
    if field.startswith("@"):
        return r.labels.get(field[1:])
    found: Label | None = getattr(r, field)
    return found


def _each(rows: Sequence[Row], parts: _Expression) -> list[str]:
    """The rows by K, or as they stand in the file; a dash for what was not measured."""
    ordered = list(rows)
    if all(isinstance(r.labels.get("K"), int) for r in rows):
        ordered.sort(key=lambda r: r.labels["K"])
    if all(r.p50 is None for r in ordered):
        value_of(ordered[0], parts.field)
    return ["-" if r.p50 is None else parts.show(value_of(r, parts.field)) for r in ordered]


def number(value: Label, form: str = "") -> str:
    """A value as text; without a format words and whole numbers as they are, else three digits."""
    if form:
        try:
            return format(value, form)
        except ValueError:
            raise MarkError(f"FORMAT: expected one that fits {value!r}, found {form!r}") from None
    if not isinstance(value, float):
        return str(value)
    return three(value)


class _Expression:
    """The parts of an expression: FILE [FUNCTION] "KEY"... [/ "KEY"] [FIELD] [*FACTOR] [FORMAT]."""

    def __init__(self, text: str) -> None:
        tokens = [(m[1] is not None, m[1] or m[2] or "") for m in TOKEN.finditer(text)]
        words = [token for quoted, token in tokens[:2] if not quoted]
        self.file = words[0] if tokens and not tokens[0][0] else ""
        rest = tokens[1:]
        if not self.file or not rest:
            raise MarkError(f'expected FILE "KEY", found {text.strip()!r}')
        self.function = ""
        if not rest[0][0]:
            self.function = rest.pop(0)[1]
            if self.function not in FUNCTIONS:
                raise MarkError(
                    f"FUNCTION: expected one of {', '.join(FUNCTIONS)}, found {self.function!r}"
                )
        self.keys: list[str] = []
        while rest and rest[0][0]:
            self.keys.append(rest.pop(0)[1])
        if not self.keys:
            raise MarkError(f'KEY: expected a key in quotes ("), found {text.strip()!r}')
        self.over: str | None = None
        if len(rest) > 1 and rest[0] == (False, "/") and rest[1][0]:
            if self.function:
                raise MarkError(f"/: expected no function with a ratio, found {self.function!r}")
            self.over = rest[1][1]
            rest = rest[2:]
        self.field = "p50"
        if rest and (rest[0][1] in FIELDS or rest[0][1].startswith("@")):
            self.field = rest.pop(0)[1]
        self.factor: float | None = None
        if rest and not rest[0][0] and FACTOR.fullmatch(rest[0][1]):
            self.factor = float(rest.pop(0)[1][1:])
        self.format = ""
        if rest and not rest[0][0] and FORMAT.fullmatch(rest[0][1]):
            self.format = rest.pop(0)[1]
        if rest:
            raise MarkError(
                f"expected a field ({', '.join(FIELDS)}, @label), a factor or a format, "
                f"found {rest[0][1]!r}"
            )

    def show(self, value: Label) -> str:
        """A value times the factor, in the format."""
        if self.factor is not None:
            value = self.factor * _numeric(value, self.field)
        return number(value, self.format)


def _only(rows: Sequence[Row], expression: str) -> Row:
    if len(rows) > 1:
        raise MarkError(f"{len(rows)} rows fit, expected one, or a function, in {expression!r}")
    return rows[0]


def _numeric(value: Label, field: str) -> float:
    if isinstance(value, str):
        raise MarkError(f"{field}: expected a number, found {value!r}")
    return float(value)


def _range(ends: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(ends))


def _measured(rows: Sequence[Row]) -> str:
    return str(sum(r.p50 is not None for r in rows))


def _met(rows: Sequence[Row]) -> str:
    bounds = [r for r in rows if r.target is not None]
    return f"{sum(r.met is True for r in bounds)} of {len(bounds)}"


def _won(rows: Sequence[Row]) -> str:
    compared = [r.p50 for r in rows if r.versus and r.p50 is not None]
    return f"{sum(ratio >= 1.0 for ratio in compared)} of {len(compared)}"


COUNTS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "count": _measured,
    "met": _met,
    "won": _won,
}
FUNCTIONS = ("min", "max", "range", "each", "spread", *COUNTS, "env")


def _environment(report: Report, keys: Sequence[str]) -> str:
    found: Any = report.environment
    for name in keys[0].split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    if len(keys) > 1 or found is None or isinstance(found, Mapping):
        raise MarkError(f"env: expected an entry of the environment, found {keys[0]!r}")
    return str(found)
