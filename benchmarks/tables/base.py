"""What a table of the documentation is: rows, columns, and what stands in their cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.marks import MarkError, NoRowError, NotMeasuredError, Results, evaluate

__all__ = ["Rows", "Table", "fill", "markdown"]

HOLE = re.compile(r"\{(?P<optional>\??) *(?P<expression>[^{}]*)\}")

Rows = Mapping[str, Mapping[str, object]]
"""By the text of a row's first cell, the words that its other cells have for ``<name>``."""


@dataclass(frozen=True)
class Table:
    """A table whose cells are texts with expressions of the marks' language in braces.

    ``{? ...}`` leaves the whole cell empty where the file has no such row. Where a row is there and
    was not measured, the cell says so.

    Attributes:
        rows: Of the table, or what finds them in the results.
        columns: By heading, what stands in the cells: ``'{cpu "solvers/call/<method>" .1f} µs'``.
        instead: Cells that hold a text of their own, by row and heading.
        corner: The heading of the first column.
    """

    rows: Rows | Callable[[Results], Rows]
    columns: Mapping[str, str]
    instead: Mapping[tuple[str, str], str] = field(default_factory=dict)
    corner: str = ""

    def __call__(self, results: Results) -> list[str]:
        """The lines of the table.

        Raises:
            MarkError: An expression is wrong, or its row is not in the file.
        """
        rows = self.rows(results) if callable(self.rows) else self.rows
        lines = [[self.corner, *self.columns]]
        for name, words in rows.items():
            cells = [
                fill(self.instead.get((name, heading), text), words, results)
                for heading, text in self.columns.items()
            ]
            lines.append([name, *cells])
        return markdown(lines)


def fill(text: str, words: Mapping[str, object], results: Results) -> str:
    """The text with its expressions replaced by what they stand for.

    Raises:
        MarkError: One is wrong, or names a row that is not there and is not optional.
    """
    for name, word in words.items():
        text = text.replace(f"<{name}>", str(word))
    parts: list[str] = []
    done = 0
    for hole in HOLE.finditer(text):
        try:
            found = evaluate(hole["expression"], results)
        except NoRowError:
            if hole["optional"]:
                return ""
            raise
        except NotMeasuredError:
            return "not measured"
        parts += [text[done : hole.start()], found]
        done = hole.end()
    return "".join([*parts, text[done:]])


def markdown(lines: list[list[str]]) -> list[str]:
    """Cells as the lines of a table, the first line its heading.

    Raises:
        MarkError: A cell would end early.
    """
    for line in lines:
        for cell in line:
            if "|" in cell or "\n" in cell:
                raise MarkError(f"expected text that fits into a cell, found {cell!r}")
    rule = "|" + "---|" * len(lines[0])
    written = ["| " + " | ".join(line) + " |" for line in lines]
    return [written[0], rule, *written[1:]]
