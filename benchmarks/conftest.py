"""What ``pytest benchmarks`` collects, and how much of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from mtlfast.bench.setting import Setting


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all cases, not those of a quick look")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "default")  # the peers' warnings are not ours
    setting_of(config).prepare()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    named = parent.session.isinitpath(file_path)  # pytest itself collects a file that was asked for
    if file_path.name == "bench_suites.py" and not named:
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@cache
def setting_of(config: pytest.Config) -> Setting:
    """As ``mtlfast bench`` has it, or its ``--quick``; one for all, with the floor's arrays."""
    return Setting(quick=not config.getoption("--full"), passes=1, malloc="keep")
