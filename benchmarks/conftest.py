"""How everything here is timed: all variants in turn, round after round; one table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.bandwidth import Bandwidth
from benchmarks.report import Report

Samples = dict[str, Any]  # name of the variant -> array of its samples, one per round
REPORT = pytest.StashKey[Report]()
THREADS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--out", type=Path, help="write the table to this file, as JSON")
    parser.addoption("--rounds", type=int, help="at most so many rounds: a look, no measurement")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()
    config.addinivalue_line("filterwarnings", "default")  # the peers' warnings are not ours


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    named = parent.session.isinitpath(file_path)  # pytest itself collects a file that was asked for
    if file_path.match("bench_*.py") and not named:
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    report = config.stash[REPORT]
    if not report.rows:
        return
    terminalreporter.section("figures: median [p20, p80], target, parts")
    for line in report.table():
        terminalreporter.write_line(line)
    out = config.getoption("--out")
    if out is not None:
        report.write(out)
        terminalreporter.write_line(f"written to {out}")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash[REPORT]


@pytest.fixture(scope="session")
def memory() -> Bandwidth:
    return Bandwidth()


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two threads; one where a benchmark is marked ``single_thread``."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "single_thread" in request.fixturenames else THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def single_thread() -> None:
    """Asks for one thread."""


class Interleaved:
    """Times variants in turn (A B A B ...), so that all of them see the same machine.

    Memory bandwidth and load drift here by a factor of two within seconds: only samples of one
    round are comparable, so ratios are formed per round before their median is taken.
    """

    def __init__(self, benchmark: Any, most: int | None = None) -> None:
        self.benchmark = benchmark
        self.most = most  # rounds, whatever a benchmark asks for
        self.others = 0.0  # CPUs that other processes kept busy during the last call

    def __call__(
        self, variants: dict[str, Callable[[], float]], rounds: int, warmup: int = 3
    ) -> Samples:
        """Samples ``[rounds]`` of each variant; a variant returns its own figure, say seconds."""
        samples: dict[str, list[float]] = {name: [] for name in variants}
        if self.most is not None:
            rounds, warmup = min(rounds, self.most), 1

        def one_round() -> None:
            for name, variant in variants.items():
                samples[name].append(variant())

        busy, own, wall = _busy_seconds(), time.process_time(), time.perf_counter()
        self.benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=warmup)
        own, wall = time.process_time() - own, time.perf_counter() - wall
        self.others = max(0.0, (_busy_seconds() - busy - own) / wall)
        return {name: np.array(values[-rounds:]) for name, values in samples.items()}


@pytest.fixture
def interleaved(benchmark: Any, request: pytest.FixtureRequest) -> Interleaved:
    return Interleaved(benchmark, request.config.getoption("--rounds"))


def _busy_seconds() -> float:
    """CPU seconds that the whole machine has spent; 0 where that is not known."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0
    return (sum(fields) - fields[3] - fields[4]) / 100  # without idle and waiting for a disk
