"""Finds the marks of a page, and rewrites what stands in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.marks import MarkError, Results, evaluate

__all__ = ["Finding", "Page", "Tables", "blank", "fences", "line_of", "marks", "rewrite"]

INLINE = re.compile(r"<!-- f: (?P<what>[^\n]*?) -->(?P<found>[^\n]*?)<!-- /f -->")
BLOCK = re.compile(
    r"^<!-- table: (?P<what>[^\n]*?) -->\n(?P<found>.*?)^<!-- /table -->$", re.M | re.S
)
LOOSE = re.compile(r"<!--\s*/?(?:f|table)\b[^\n]*")
FENCE = re.compile(r"^ *(?P<fence>```+|~~~+)[^\n]*\n.*?(?:^ *(?P=fence)[`~]*[ ]*$|\Z)", re.M | re.S)
BEFORE = re.compile(r"[\s>]*(?:[-*+]\s+|\d+[.)]\s+)?")  # a line's start as Markdown sees it

Tables = Mapping[str, Callable[[Results], list[str]]]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        page: The file, from the root.
        line: In it, from 1; 0 where the file is no text.
        what: The mark, or what is wrong.
        found: What stands there.
        expected: What should; None where ``what`` says it all.
    """

    page: str
    line: int
    what: str
    found: str = ""
    expected: str | None = None

    def __str__(self) -> str:
        where = f"{self.page}:{self.line}" if self.line else self.page
        if self.expected is None:
            return f"{where}: {self.what}"
        return f"{where}: {self.what}: found {self.found!r}, expected {self.expected!r}"


@dataclass(frozen=True)
class Page:
    """A page as it should be.

    Attributes:
        text: All of it.
        stale: Where the page as it was differs from that.
        wrong: Marks that could not be followed; they stay as they were.
    """

    text: str
    stale: list[Finding]
    wrong: list[Finding]


def rewrite(text: str, name: str, results: Results, tables: Tables) -> Page:
    """Fills in all marks of a page; those in blocks of code are no marks.

    Args:
        text: Of the page.
        name: Of the page, for the findings.
        results: What the marks speak of.
        tables: What makes a table's lines, by name.
    """
    parts: list[str] = []
    stale: list[Finding] = []
    wrong: list[Finding] = []
    done = 0
    for m in marks(text):
        line = line_of(text, m.start("found"))
        try:
            new = _table(m, results, tables) if m.re is BLOCK else _inline(text, m, results)
        except MarkError as error:
            wrong.append(Finding(name, line_of(text, m.start()), f"{m['what']}: {error}"))
            continue
        stale += _differences(name, line, m["what"], m["found"], new)
        parts += [text[done : m.start("found")], new]
        done = m.end("found")
    parts.append(text[done:])
    for m in LOOSE.finditer(blank(text, [*_spans(marks(text)), *fences(text)])):
        found = f"a mark that is not closed, or closes nothing: {m[0]}"
        wrong.append(Finding(name, line_of(text, m.start()), found))
    return Page("".join(parts), stale, sorted(wrong, key=lambda f: f.line))


def marks(text: str) -> list[re.Match[str]]:
    """The marks of both kinds, in their order; none within another or in a block of code."""
    found: list[re.Match[str]] = []
    code = fences(text)
    for pattern in (BLOCK, INLINE):
        taken = [*code, *_spans(found)]
        found += [
            m
            for m in pattern.finditer(text)
            if not any(start <= m.start() < end for start, end in taken)
        ]
    return sorted(found, key=lambda m: m.start())


def fences(text: str) -> list[tuple[int, int]]:
    """Where blocks of code begin and end."""
    return list(_spans(FENCE.finditer(text)))


def blank(text: str, spans: list[tuple[int, int]]) -> str:
    """The text with these spans overwritten: what is left stays at its place."""
    for start, end in spans:
        hidden = re.sub(r"[^\n]", " ", text[start:end])
        text = text[:start] + hidden + text[end:]
    return text


def line_of(text: str, position: int) -> int:
    """The line of a position, from 1."""
    return text.count("\n", 0, position) + 1


def _spans(found: Iterable[re.Match[str]]) -> Iterator[tuple[int, int]]:
    yield from (m.span() for m in found)


def _inline(text: str, m: re.Match[str], results: Results) -> str:
    before = text[text.rfind("\n", 0, m.start()) + 1 : m.start()]
    if BEFORE.fullmatch(before):
        raise MarkError("a line must not begin with a mark, Markdown would take it all for HTML")
    if "<!--" in m["found"]:
        raise MarkError("expected <!-- /f --> before the next comment")
    new = evaluate(m["what"], results)
    if "|" in new or "\n" in new:
        raise MarkError(f"expected a value that fits into a table's cell, found {new!r}")
    return new


def _table(m: re.Match[str], results: Results, tables: Tables) -> str:
    if m["what"] not in tables:
        raise MarkError(f"table: expected one of {', '.join(sorted(tables))}")
    return "\n" + "".join(f"{line}\n" for line in tables[m["what"]](results)) + "\n"


def _differences(name: str, line: int, what: str, found: str, new: str) -> list[Finding]:
    """One finding for a value; for a table one for each of its lines."""
    if found == new:
        return []
    before, after = found.split("\n"), new.split("\n")
    if len(before) != len(after):
        lines = [sum(bool(one) for one in text) for text in (before, after)]
        return [Finding(name, line, what, f"{lines[0]} lines", f"{lines[1]} lines")]
    return [
        Finding(name, line + i, what, a, b)
        for i, (a, b) in enumerate(zip(before, after, strict=True))
        if a != b
    ]
