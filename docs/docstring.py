"""Reads the docstring of a method's class and turns its parts into Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

HEADINGS = ("Args:", "Attributes:", "Raises:", "Returns:", "Reference:")
PEERS = re.compile(
    r"TorchJD|LibMTL|nash-mtl|Pytorch-PCGrad|conflictfree|gradnorm-pytorch|Samsung|MTAN|TensorFlow"
    r"|[Oo]fficial|\b[Pp]eers?\b|own code"
)
SENTENCE = re.compile(r"(?<=[.!?:]) (?=[A-Z`\"])")


@dataclass
class Docstring:
    """The parts of a docstring: paragraphs in Markdown, by what they are about."""

    summary: str
    sections: dict[str, list[str]] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    reference: str = ""


def read(docstring: str | None, pages: Mapping[str, str]) -> Docstring:
    """Splits a Google-style docstring.

    A paragraph goes to "Formula" before the one that begins with "Shapes:" and to "Notes" after it,
    unless it begins with another known word or names other libraries. A sentence that begins
    with "Use it" or "It fails" opens a section of its own, to the end of its paragraph.

    Args:
        docstring: as written; its first line is the summary.
        pages: names of classes, and the files to which a role such as ``:class:`` links.

    Returns:
        Its parts in Markdown.

    Raises:
        ValueError: there is no docstring, or an indented entry without a name.
    """
    if not docstring:
        raise ValueError("docstring: expected one, found none")
    prose, parts = _split(inspect.cleandoc(docstring))
    summary, *paragraphs = _paragraphs(prose)
    found = Docstring(markdown(summary, pages))
    where = "Formula"
    for paragraph in paragraphs:
        if paragraph.startswith("Shapes:"):
            where = "Notes"
        for section, text in _assign(paragraph, where):
            found.sections.setdefault(section, []).append(markdown(text, pages))
    for name, text in _entries(parts.get("Args:", [])).items():
        found.arguments[name] = markdown(text, pages)
    for name, text in _entries(parts.get("Raises:", [])).items():
        found.errors[name] = markdown(text, pages)
    found.reference = markdown(" ".join(" ".join(parts.get("Reference:", [])).split()), pages)
    return found


def markdown(text: str, pages: Mapping[str, str]) -> str:
    """One paragraph of reStructuredText as used in the docstrings, in Markdown."""
    if text.startswith("```"):
        return text

    def role(match: re.Match[str]) -> str:
        kind, name = match.groups()
        name = name.rsplit(".", 1)[-1] if name.startswith("~") else name
        if kind in ("class", "mod") and name in pages:
            return f"[{name}]({pages[name]})"
        return f"``{name}()``" if kind in ("meth", "func") else f"``{name}``"

    text = re.sub(r":(\w+):`([^`]+)`", role, text)
    pieces = text.split("``")
    pieces[::2] = [_prose(piece) for piece in pieces[::2]]
    return "`".join(pieces)


def _prose(text: str) -> str:
    """What stands outside of code: arrows, links to papers, and no accidental markup."""
    text = re.sub(r"(?<!\\)([*<])", r"\\\1", text).replace(" -> ", " → ")
    text = re.sub(r"\barXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"\bdoi (10\.\S+?)(?=[.,;]?(?:\s|$))", r"[doi \1](https://doi.org/\1)", text)
    return re.sub(
        r"\bOpenReview (\w{9,12})\b", r"[OpenReview \1](https://openreview.net/forum?id=\1)", text
    )


def _split(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """The lines of the prose, and those below each heading (a reference follows its own)."""
    parts: dict[str, list[str]] = {}
    prose: list[str] = []
    lines = prose
    for line in text.splitlines():
        heading = next((h for h in HEADINGS if line.startswith(h)), None)
        if heading is None:
            lines.append(line)
        else:
            lines = parts[heading] = [line.removeprefix(heading)]
    return prose, parts


def _paragraphs(lines: list[str]) -> list[str]:
    """Paragraphs as single lines; indented ones as fenced blocks, of Python below a ``::``."""
    blocks = [block for block in re.split(r"\n\s*\n", "\n".join(lines)) if block.strip()]
    found: list[str] = []
    fence = "```text"
    for block in blocks:
        if not block.startswith(" "):
            fence = "```python" if block.endswith("::") else "```text"
            found.append(re.sub(r"::$", ":", " ".join(block.split())))
        elif found and found[-1].startswith("```"):  # a blank line within the block
            found[-1] = found[-1].removesuffix("```") + "\n" + _dedent(block) + "\n```"
        else:
            found.append(f"{fence}\n{_dedent(block)}\n```")
    return found


def _dedent(block: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in block.splitlines())


def _assign(paragraph: str, where: str) -> list[tuple[str, str]]:
    """Sections of a paragraph's sentences, in order."""
    if paragraph.startswith("```"):
        return [(where, paragraph)]
    for start, section in (
        ("Shapes:", "Shapes"),
        ("State:", "State"),
        ("Degenerate", "Degenerate input"),
        ("Never degenerate", "Degenerate input"),
    ):
        if paragraph.startswith(start):
            where = section
            if start.endswith(":"):
                paragraph = paragraph.removeprefix(start).strip()
                paragraph = paragraph[:1].upper() + paragraph[1:]
            break
    else:
        if where == "Notes" and PEERS.search(paragraph):
            where = "Other implementations"
    found: list[tuple[str, str]] = []
    for sentence in SENTENCE.split(paragraph):
        if sentence in ("No state.", "No options."):
            continue
        if sentence.startswith("Use it "):
            where = "When to use it"
        elif sentence.startswith("It fails "):
            where = "When it fails"
        if found and found[-1][0] == where:
            found[-1] = (where, f"{found[-1][1]} {sentence}")
        else:
            found.append((where, sentence))
    return found


def _entries(lines: list[str]) -> dict[str, str]:
    """``name: text`` entries whose further lines are indented more."""
    found: dict[str, str] = {}
    name = ""
    for line in (line for line in lines if line.strip()):
        if not line.startswith("     "):
            name, colon, line = line.strip().partition(": ")
            if not colon:
                raise ValueError(f"docstring: expected 'name: text', found {name!r}")
        found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found
