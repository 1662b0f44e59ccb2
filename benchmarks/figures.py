"""Writes the figures of README.md and docs/ from benchmarks/results, or checks them.

python -m benchmarks.figures            rewrites marked places, and draws the pictures anew
python -m benchmarks.figures --check    writes nothing; exit code 1 where something is out of date
python -m benchmarks.figures --claims   lists numbers on speed and memory outside of the marks

A mark is a comment that nobody sees. Within a line, ``<!-- f: EXPRESSION -->2.9<!-- /f -->`` holds
what the expression stands for; its language is in benchmarks/marks.py. On lines of their own,
``<!-- table: NAME -->`` and ``<!-- /table -->`` hold a table of benchmarks/tables/. A line of prose
must not begin with a mark, since Markdown takes such a line for HTML.

What a claim outside of the marks is stands in benchmarks/guard.py; ``<!-- unmeasured: why -->``
excuses it.

The pictures docs/images/FILE-*.png are those of ``mtlfast bench``. Each carries a digest of the
rows that it shows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.guard import claims
from benchmarks.marks import MarkError, Results
from benchmarks.pages import Finding, rewrite
from benchmarks.tables import TABLES
from mtlfast.bench import plots

__all__ = ["Documents", "main"]

ROOT = Path(__file__).resolve().parent.parent
DRAWN = ("cpu", "quality", "gpu")
"""Files of results that have pictures in docs/images, where they are there."""

GUARDED = ("README.md", *(f"docs/{name}.md" for name in ("performance", "engines")))
GUARDED += ("docs/which-method.md", "docs/cuda.md")
"""Pages without claims outside of the marks."""


class Documents:
    """The pages and pictures of a checkout.

    Args:
        root: Of the checkout.
        results: What they are made of.
    """

    def __init__(self, root: Path, results: Results) -> None:
        self.root = root
        self.results = results

    def texts(self, *, write: bool) -> Iterator[Finding]:
        """What is out of date in the pages, unless it is written; and marks that are wrong."""
        for path in [self.root / "README.md", *sorted((self.root / "docs").glob("*.md"))]:
            name = path.relative_to(self.root).as_posix()
            text = path.read_text(encoding="utf-8")
            page = rewrite(text, name, self.results, TABLES)
            yield from page.wrong
            if not write:
                yield from page.stale
            elif page.text != text:
                path.write_text(page.text, encoding="utf-8")
                print(f"{name}: {len(page.stale)} figures written")

    def pictures(self, *, write: bool, anew: bool = False) -> Iterator[Finding]:
        """What is out of date in docs/images, unless it is drawn.

        Args:
            write: Draw what is out of date, and delete what no rows belong to.
            anew: Draw all.
        """
        folder = self.root / "docs" / "images"
        for file in (name for name in DRAWN if self.results.has(name)):
            try:
                report = self.results.report(file)
            except MarkError as error:
                yield Finding("docs/images", 0, str(error))
                continue
            wanted = plots.digests(report)
            found = {
                path.stem.removeprefix(f"{file}-"): plots.digest_of(path)
                for path in folder.glob(f"{file}-*.png")
            }
            stale = [name for name in wanted if found.get(name) != wanted[name]]
            extra = [name for name in found if name not in wanted]
            if write:
                names = list(wanted) if anew else stale
                for path in plots.draw(report, folder, prefix=f"{file}-", names=names):
                    print(f"{path.relative_to(self.root).as_posix()} drawn")
                for name in extra:
                    (folder / f"{file}-{name}.png").unlink()
                    print(f"docs/images/{file}-{name}.png removed")
                continue
            for name in stale:
                picture = f"docs/images/{file}-{name}.png"
                yield Finding(picture, 0, "rows", found.get(name) or "none", wanted[name])
            for name in extra:
                picture = f"docs/images/{file}-{name}.png"
                yield Finding(picture, 0, f"{file}.json has no rows for it")

    def claims(self) -> Iterator[Finding]:
        """Numbers on speed and memory outside of the marks."""
        for name in GUARDED:
            path = self.root / name
            if path.exists():
                yield from claims(path.read_text(encoding="utf-8"), name)


def main(arguments: list[str] | None = None) -> int:
    """Runs ``python -m benchmarks.figures``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures",
        description="Writes the documentation's figures from benchmarks/results.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    parser.add_argument("--claims", action="store_true", help="only list what has no mark")
    parser.add_argument("--redraw", action="store_true", help="draw all pictures, not the stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the checkout")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="default: benchmarks/results of the root"
    )
    options = parser.parse_args(arguments)
    results = Results(options.results or options.root / "benchmarks" / "results")
    documents = Documents(options.root, results)
    found: list[Finding] = []
    if not options.claims:
        write = not options.check
        found += documents.texts(write=write)
        found += documents.pictures(write=write, anew=options.redraw)
    if options.check or options.claims:
        found += documents.claims()
    for finding in found:
        print(finding)
    if found and options.check:
        print(f"{len(found)} found: `make figures` rewrites marks and pictures, not the claims")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
