"""``mtlfast bench``: its options, what is refused and why, its files."""

import json
import re
from pathlib import Path

import pytest

from mtlfast.bench import setting
from mtlfast.cli import main

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")

ONE = [
    "solvers",
    "quality",
    "--only",
    "solvers/call: config, K = 2$",
    "--peers",
    "none",
    "--passes",
    "2",
]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "SUITE: expected some of kernels, solvers, step, memory, quality, or mine"),
        (["solvers", "--peers", "nobody"], "--peers: expected some of .*TorchJD.*, found 'nobody'"),
        (["solvers", "--device", "tpu9"], "--device: expected cpu or cuda, found 'tpu9'"),
        (["quality", "--only", "pcgrad"], "--only: expected to find a case, found none by"),
        (["solvers", "--only", "nosuchcase"], "--only: expected to find a case, found none by"),
        (["--read", "absent.json"], "--read: .*absent.json"),
        (["--compare", "absent.json"], "--compare: .*absent.json"),
    ],
)
def test_what_is_refused_when_it_runs(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"mtlfast bench: error: {message}", line), line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "("], r"--only: expected a regular expression, found '\('"),
        (["--budget", "-1"], "--budget: expected a positive number of seconds, found"),
        (["--passes", "0"], "--passes: expected a whole number of at least 1, found"),
        (["--malloc", "mine"], "--malloc: invalid choice: 'mine'"),
    ],
)
def test_what_is_refused_when_it_is_read(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["bench", *words])
    assert exited.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_run_can_be_read_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "one.json"
    assert main(["bench", *ONE, "--malloc", "default", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["setting"]["only"] == ONE[3]
    assert (found["setting"]["passes"], found["setting"]["malloc"]) == (2, "default")
    assert "solvers/call/config, K = 2" in {f"{r['figure']}/{r['case']}" for r in found["rows"]}
    assert {r["case"] for r in found["rows"]} == {"config, K = 2"}
    assert main(["bench", "--read", str(path), "--compare", str(path)]) == 0
    again = capsys.readouterr().out
    table = printed.partition("bounds that were set beforehand")[0]
    assert table.strip()
    assert again.startswith(table)
    assert "same machine, versions and setting" in again


@pytest.mark.parametrize(
    ("words", "keeps"), [([], True), (["--malloc", "keep"], True), (["--malloc", "default"], False)]
)
def test_suites_keep_freed_memory_unless_told(
    words: list[str], keeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(setting, "keep_freed_memory", lambda: told.append(True))
    assert main(["bench", *ONE, *words, "--out", str(tmp_path / "one.json")]) == 0
    assert bool(told) == keeps
