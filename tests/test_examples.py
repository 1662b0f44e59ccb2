"""The examples: each runs to its end, on its engine, and shows the three lines of the README."""

import importlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlfast

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
# Script: its engine and its tasks.
SCRIPTS: Mapping[str, tuple[str, list[str]]] = {
    "burgers_pinn": ("stored", ["residual", "initial", "boundary"]),
    "convolutional": ("features", ["left", "right", "number"]),
    "tabular_mlp": ("factored", ["enthalpy", "dew_point", "density", "comfort"]),
    "transformer_text": ("streaming", ["package", "returns", "branches", "lines"]),
}
LINES = (  # what stands before the marks "# 1:", "# 2:" and "# 3:"
    r"optimizer = mtlfast\.MultiTaskOptimizer\(optimizer, .*, engine=args\.engine\)",
    r"losses = .+\)",
    r"optimizer\.backward\(losses.*\)",
)

pytestmark = pytest.mark.skipif(
    not EXAMPLES.exists(), reason="the tests run outside of the source tree"
)


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An example as a module that finds ``common`` as it does when it is started."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    state = torch.get_rng_state()
    yield importlib.import_module(request.param)
    torch.set_rng_state(state)
    for name in ("common", request.param):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_runs(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine, tasks = SCRIPTS[script.__name__]
    plain, balanced = script.main(["--steps", "3", "--seed", "1"])

    assert (plain.label, plain.engine) == ("equal weighting", "")
    assert balanced.engine == engine
    for run in (plain, balanced):
        assert list(run.losses) == tasks
        assert all(map(math.isfinite, run.losses.values()))
        assert all(map(math.isfinite, run.scores.values()))
        assert len(run.seconds) == 3
    # One step of each kind has been made from the same start: the second losses differ.
    assert plain.losses != balanced.losses

    printed = capsys.readouterr().out
    header, _, first, second, last = printed.strip().splitlines()
    assert re.split(r"\s{2,}", header.strip()) == [*plain.scores, "ms a step"]
    for row, run in ((first, plain), (second, balanced)):
        cells = re.split(r"\s{2,}", row)
        assert cells[:-1] == [run.label, *(f"{score:.3f}" for score in run.scores.values())]
        assert float(cells[-1]) > 0
    assert last == f"engine of {balanced.label}: {engine} ({balanced.reason})"


@pytest.mark.parametrize("name", SCRIPTS)
def test_three_lines_are_marked(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) < 150
    marked = [(line, *found.groups()) for line in lines if (found := re.search(r"# (\d):", line))]
    assert [number for _, number in marked] == ["1", "2", "3"]
    for (line, _), pattern in zip(marked, LINES, strict=True):
        assert re.match(rf"\s*{pattern}  # \d: \w", line), line


def test_command() -> None:
    """As the README starts it, from the root of the repository."""
    package = str(Path(mtlfast.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-W", "error", "examples/burgers_pinn.py", "--steps", "2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "relative error" in result.stdout


@pytest.mark.parametrize("script", ["burgers_pinn"], indirect=True)
def test_wrong_steps_get_one_line(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["--steps", "0"])
    assert "--steps: expected at least 1, found 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCRIPTS)
def test_readme_has_every_script(name: str) -> None:
    rows = [row for row in (EXAMPLES / "README.md").read_text().splitlines() if name in row]
    assert any(f"python examples/{name}.py" in row for row in rows)
