"""The cases of ``mtlfast bench`` as benchmarks of pytest-benchmark, for its storage and comparison.

``pytest benchmarks --benchmark-only -k floor`` runs those with "floor" in their names. What it
times is a round, in which every contestant has its turn; medians by contestant, the rows of
``mtlfast bench``, stand in its JSON under ``extra_info``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.conftest import setting_of
from mtlfast.bench import suites
from mtlfast.bench.case import Case
from mtlfast.bench.runner import visit

SECONDS = 5.0  # of a case in a quick look


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    setting = setting_of(metafunc.config)
    cases = [case for name in suites.SUITES for case in suites.cases(name, setting)]
    ids = [f"{case.figure}: {case.name}".encode("ascii", "replace").decode() for case in cases]
    metafunc.parametrize("case", cases, ids=ids)


def test_case(case: Case, benchmark: Any, request: pytest.FixtureRequest) -> None:
    setting = setting_of(request.config)

    def repeat(once: Callable[[], None], rounds: int) -> None:
        benchmark.pedantic(once, rounds=rounds)

    found = visit(case, setting, case.rounds, SECONDS if setting.quick else math.inf, repeat)
    rows = case.rows({name: np.array(samples) for name, samples in found.items()})
    measured = [row for row in rows if row.p50 is not None]
    benchmark.extra_info |= {f"{row.key} [{row.unit}]": row.p50 for row in measured}
    benchmark.extra_info["missing"] = case.missing
    assert measured, case.missing
