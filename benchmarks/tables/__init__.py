"""The tables of README.md and docs/, by the names that their marks have."""

from __future__ import annotations

from benchmarks.pages import Tables
from benchmarks.tables import wins

TABLES: Tables = {"wins": wins.table}
