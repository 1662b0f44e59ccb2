"""``make gpu-check``: its script, on machines that have no GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mtlfast import ops

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


def check(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path: Path) -> None:
    """A sentence and an exit code of its own; nothing is built."""
    done = check(tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("gpu-check: there is no GPU: torch ")
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_unknown_part(tmp_path: Path) -> None:
    done = check(tmp_path, "--parts", "test,paint")
    assert done.returncode == 2
    assert "expected some of build, test, sanitize, bench, found paint" in done.stderr


def test_missing_wheels_are_said(tmp_path: Path) -> None:
    done = check(tmp_path / "out", "--wheels", str(tmp_path), "--fibers", "--parts", "sanitize")
    assert "holds no wheels); going on without" in done.stdout
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(ops._native is None, reason="the native extension was not built")
def test_dry_run(tmp_path: Path) -> None:
    """The benchmarks run through on fibers and write what they should."""
    done = check(tmp_path, "--fibers", "--parts", "bench")
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "gpu.json").read_text())
    figures = {row["figure"][0] for row in found["rows"]}
    assert figures == set("12345678")
    assert not [row for row in found["rows"] if row["case"] == "failed"]
    for row in found["rows"]:
        said = row.get("detail", "")
        told = "missing" in said or "GPU" in said or "Error: " in said
        assert row["p50"] is not None or told, row
    assert {"gpu", "commit", "date", "torch", "peers"} <= set(found["environment"])
    assert "over the floor" in (tmp_path / "gpu.txt").read_text()
    assert json.loads((tmp_path / "check.json").read_text())[0]["part"] == "bench"
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_part_that_fails_does_not_stop_the_next(script: ModuleType, tmp_path: Path) -> None:
    run = script.Check(tmp_path, True, time.monotonic() + 60)
    for code in ("print('no'); raise SystemExit(3)", "print('yes')"):
        command = [sys.executable, "-c", code]
        run.part("test", lambda log, limit, c=command: run.run(c, log, limit))
    assert [(outcome.ok, outcome.says) for outcome in run.outcomes] == [
        (False, "exit code 3"),
        (True, "ok"),
    ]


def test_a_part_is_ended_in_time(script: ModuleType, tmp_path: Path) -> None:
    """With its children."""
    mark = tmp_path / "mark"
    sleeper = f"import time; time.sleep(8); open({str(mark)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    run = script.Check(tmp_path, True, time.monotonic() + 5.5)
    start = time.monotonic()
    says = run.run([sys.executable, "-c", parent], tmp_path / "log", 60)
    assert says.startswith(("was ended after 5 s", "was ended after 6 s"))
    assert time.monotonic() - start < 20
    assert run.run([sys.executable, "-c", ""], tmp_path / "log", 60) == "no time was left"
    time.sleep(max(0.0, start + 10 - time.monotonic()))
    assert not mark.exists()


def test_long_logs_are_cut(script: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a" * 10 + b"b" * (3 * script.LARGEST_LOG) + b"c" * 10)
    script._shorten(log)
    text = log.read_bytes()
    assert len(text) < script.LARGEST_LOG + 100
    assert text[:5] == b"aaaaa"
    assert text[-5:] == b"ccccc"
