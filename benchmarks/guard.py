"""Finds claims on speed and memory that no results stand behind: numbers outside of the marks.

A claim is a number with a unit of time, memory or bandwidth, with ``x``, ``times`` or plain steps;
and a cell of a table that holds nothing but numbers, one of them with a decimal point. What is a
target, a prediction or history says so in a comment that nobody sees::

    <!-- unmeasured: why -->

On a line of its own it holds up to the next heading, else for its line (a row of a table, or a
line of prose).
"""

from __future__ import annotations

import re

from benchmarks.pages import Finding, blank, fences, marks

__all__ = ["claims"]

NUMBER = r"(?<![\w.^])\d*\.?\d+(?:e[-+]?\d+)?"
UNIT = (
    r"(?:x|times|[nuµm]s|(?<=\s)s|seconds|minutes|[MGT]i?B(?:/s)?|KB"
    r"|(?:plain|joint)\s+(?:ones?|steps?))"
)
CLAIM = re.compile(rf"{NUMBER}[\s-]?{UNIT}(?![\w/])(?!\s+(?:[KPST]\b|\d))")
CELL = re.compile(r"[-+\d.\s/x%±~,;()[\]]|to|and|ms|µs|us|MB|GB|s")
DECIMAL = re.compile(r"(?<![\w.])\d*\.\d")
CODE = re.compile(r"(`+)[^`\n][^\n]*?\1")
LINK = re.compile(r"\]\([^)\n]*\)")
COMMENT = re.compile(r"<!--.*?-->", re.S)
UNMEASURED = re.compile(r"<!-- unmeasured:(?P<why>[^\n]*?)-->")
HEADING = re.compile(r"^#+ ")


def claims(text: str, name: str) -> list[Finding]:
    """A finding for each line of a page with unmarked claims; ``name`` is the page's."""
    left = blank(text, [m.span() for m in marks(text)] + fences(text))
    found: list[Finding] = []
    skipping = False
    for line, (visible, whole) in enumerate(
        zip(_visible(left).split("\n"), left.split("\n"), strict=True), start=1
    ):
        if HEADING.match(whole):
            skipping = False
        excuse = UNMEASURED.search(whole)
        if excuse is not None and not excuse["why"].strip():
            found.append(Finding(name, line, "unmeasured: expected a reason, found none"))
        elif excuse is not None:
            skipping = skipping or not visible.strip()
        elif not skipping:
            said = "; ".join(_in(visible))
            found += [Finding(name, line, f"outside of the marks: {said}")] if said else []
    return found


def _visible(text: str) -> str:
    """Without comments, code and the targets of links, each line at its place."""
    for pattern in (COMMENT, CODE, LINK):
        text = blank(text, [m.span() for m in pattern.finditer(text)])
    return text


def _in(line: str) -> list[str]:
    """The claims of a line."""
    found = [" ".join(m[0].split()) for m in CLAIM.finditer(line)]
    if line.lstrip().startswith("|"):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        found += [
            cell
            for cell in cells
            if DECIMAL.search(cell) and not CELL.sub("", cell) and not CLAIM.search(cell)
        ]
    return found
