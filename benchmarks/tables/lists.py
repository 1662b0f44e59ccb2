"""Tables of whatever rows are of a kind: a peer is ahead, a bound is not met."""

from __future__ import annotations

import statistics

from benchmarks.marks import Results
from benchmarks.tables.base import Table, markdown
from mtlfast.bench.compare import AGREE
from mtlfast.bench.digits import three

__all__ = ["MALLOC", "missed", "repeated", "wins"]

GIVEN, STEP = "kernels/peers/pcgrad, K = 8, P = 1e+07", "step/peers/MLP, K = 8, best mode of"

MALLOC = Table(
    rows={
        "given gradients, P = 1e7: TorchJD, Gramian sum": {"key": f"{GIVEN}, TorchJD, Gramian sum"},
        "given gradients, P = 1e7: TorchJD, default": {"key": f"{GIVEN}, TorchJD, default"},
        "given gradients, P = 1e7: torch, stack + matmul": {
            "key": f"{GIVEN}, torch, stack + matmul"
        },
        **{
            f"step, MLP: {peer}'s best mode": {"key": f"{STEP} {peer} / auto"}
            for peer in ("TorchJD", "torch", "LibMTL", "conflictfree", "pytorch_optimizer")
        },
    },
    columns={
        "freed memory kept": '{cpu "<key>" .2f}',
        "malloc's default": '{malloc "<key>" .2f}',
    },
    corner="PCGrad, K = 8: a peer's time over ours",
)
"""What a peer gains where the process keeps freed memory."""


def wins(results: Results) -> list[str]:
    """The rows of cpu.json in which a peer is ahead, in the order of the file."""
    lines = [["figure", "case", "peer", "theirs over ours", "p20 to p80"]]
    for r in results.report("cpu").rows:
        repeated = r.labels.get("mode") == "best"  # the row of that mode is there as well
        if r.versus and r.p50 is not None and r.p50 < 1.0 and not repeated:
            ends = "" if r.p20 is None or r.p80 is None else f"{r.p20:.2f} to {r.p80:.2f}"
            within = " (within the noise)" if r.p80 is not None and r.p80 >= 1.0 else ""
            lines.append([r.figure, r.case, r.versus, f"{r.p50:.2f}", f"{ends}{within}"])
    return markdown(lines)


def missed(results: Results) -> list[str]:
    """The rows of cpu.json that do not meet the bound set beforehand, in the order of the file."""
    lines = [["figure", "case", "found", "wanted"]]
    for r in results.report("cpu").rows:
        if r.met is False and r.p50 is not None and r.target is not None:
            unit = f" {r.unit}" if r.unit else ""
            bound = f"at {'least' if r.at_least else 'most'} {r.target:g}{unit}"
            lines.append([r.figure, r.case, f"{three(r.p50)}{unit}", bound])
    return markdown(lines)


def repeated(results: Results) -> list[str]:
    """How far the ratios of a second run are from those of the first, by figure.

    A difference in joint steps may be about zero: it changes by itself, not by a part of itself.
    """
    first = {r.key: r for r in results.report("cpu").rows}
    lines = [["figure", f"within {AGREE:.0%}", "median change", "90 % change by less than"]]
    changes: dict[str, list[float]] = {}
    for r in results.report("again").rows:
        before = first[r.key].p50 if r.key in first else None
        if r.p50 is None or before is None:
            continue
        if r.unit == "x" and before:
            changes.setdefault(r.figure, []).append(abs(r.p50 / before - 1.0))
        elif r.unit == "joint":
            changes.setdefault(f"{r.figure}, differences", []).append(abs(r.p50 - before))
    for figure, found in changes.items():
        agree = f"{sum(change <= AGREE for change in found)} of {len(found)}"
        most = sorted(found)[max(0, -(-9 * len(found) // 10) - 1)]
        lines.append([figure, agree, f"{statistics.median(found):.1%}", f"{most:.0%}"])
    return markdown(lines)
