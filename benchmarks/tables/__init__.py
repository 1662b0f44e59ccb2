"""The tables of README.md and docs/, by the names that their marks have."""

from __future__ import annotations

from benchmarks.pages import Tables
from benchmarks.tables import kernels, lists, quality, steps

__all__ = ["TABLES"]

TABLES: Tables = {
    "readme": kernels.README,
    "floor": kernels.FLOOR,
    "peers": kernels.PEERS,
    "growth": kernels.GROWTH,
    "tensors": kernels.TENSORS,
    "contests": kernels.CONTESTS,
    "columns": kernels.COLUMNS,
    "sketches": kernels.SKETCHES,
    "fused": kernels.FUSED,
    "solvers": kernels.solvers,
    "errors": kernels.errors,
    "engines": steps.TIME,
    "memory": steps.MEMORY,
    "breakdown": steps.BREAKDOWN,
    "tiny": steps.TINY,
    "step-methods": steps.methods,
    "multidigits": quality.MULTIDIGITS,
    "burgers": quality.BURGERS,
    "two_objectives": quality.TWO_OBJECTIVES,
    "two_objectives_cagrad": quality.TWO_OBJECTIVES_CAGRAD,
    "malloc": lists.MALLOC,
    "repeated": lists.repeated,
    "wins": lists.wins,
    "missed": lists.missed,
}
