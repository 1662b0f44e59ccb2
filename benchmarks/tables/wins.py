"""Every case in which a peer is ahead."""

from __future__ import annotations

from benchmarks.marks import Results
from benchmarks.tables.base import markdown

__all__ = ["table"]


def table(results: Results) -> list[str]:
    """The rows of cpu.json with a median below 1, in the order of the file."""
    lines = [["suite", "case", "peer", "theirs over ours", "p20 to p80"]]
    for r in results.report("cpu").rows:
        if r.versus and r.p50 is not None and r.p50 < 1.0:
            ends = "" if r.p20 is None or r.p80 is None else f"{r.p20:.2f} to {r.p80:.2f}"
            within = " (within the noise)" if r.p80 is not None and r.p80 >= 1.0 else ""
            lines.append([r.figure, r.case, r.versus, f"{r.p50:.2f}", f"{ends}{within}"])
    return markdown(lines)
