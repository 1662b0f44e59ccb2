"""``mtlfast bench mine``: what a user may hand to it, what is refused and why, and the command."""

import gc
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mine_subjects import net_subject, tiny
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtlfast.bench.command import EXAMPLE, UsageError
from mtlfast.bench.mine.conflicts import record
from mtlfast.bench.mine.subject import Subject
from mtlfast.bench.rows import Report
from mtlfast.cli import main


@pytest.fixture(scope="module", autouse=True)
def _little_garbage() -> Iterator[None]:
    """Every measurement collects garbage, and torch's modules are many objects to look through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, from which modules are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before, state = set(sys.modules), torch.get_rng_state()
    yield tmp_path
    torch.set_rng_state(state)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# ---- what a user gets wrong ----------------------------------------------------------------------

PREFIX = """
import torch
w = torch.nn.Parameter(torch.ones(3))
sgd = torch.optim.SGD([w], lr=0.1)
def losses():
    return [w.sum(), -w.sum()]
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("make_step = 3", r"expected a function 'make_step' in \S+train\.py, found int"),
        ("", r"expected a function 'make_step' in \S+train\.py, found nothing"),
        ("import nowhere_at_all", "train needs a module 'nowhere_at_all', which was not found"),
        ("1 / 0", r"train raised ZeroDivisionError: division by zero \(\S+train\.py:\d+\)"),
        (
            "def make_step():\n    return {}['a']",
            r"train:make_step raised KeyError: 'a' \(\S+train\.py:8\)",
        ),
        (
            "def make_step(): return None",
            (
                r"expected train:make_step to return \(optimizer, losses\) or \(model, optimizer, "
                r"losses\), found NoneType"
            ),
        ),
        ("def make_step(): return losses, sgd", r"losses\), found \(function, SGD\)"),
        ("def make_step(): return sgd, losses()", r"losses\), found \(SGD, list\)"),
        ("def make_step(): return sgd, torch.nn.Linear(1, 1)", r"found \(SGD, Linear\)"),
        ("def make_step(): return 1, sgd, losses", r"found \(int, SGD, function\)"),
        (
            "import mtlfast as m\ndef make_step(): return m.MultiTaskOptimizer(sgd, 'sum'), losses",
            "to return the plain optimizer, found a MultiTaskOptimizer",
        ),
        (
            "def make_step(): return torch.optim.LBFGS([w]), losses",
            r"whose step\(\) needs no closure, found LBFGS",
        ),
        (
            "def make_step(): return sgd, lambda: [w, w.sum()]",
            r"losses\[0\]: expected a scalar, found shape \[3\]",
        ),
        (
            "def make_step(): return sgd, lambda: {'a': w.sum(), 'b': w.sum().detach()}",
            r"losses\['b'\]: expected a loss with a graph, found one without requires_grad",
        ),
        ("def make_step(): return sgd, lambda: 3.0", "losses: expected a list, .* found float"),
        ("def make_step(): return sgd, lambda: [1.0, w.sum()]", r"losses\[0\]: .* found float"),
        (
            "def make_step(): return sgd, lambda: [w.sum()]",
            "losses: expected at least two to balance, found one",
        ),
        (
            "def make_step():\n    found = losses()\n    return sgd, lambda: found",
            "expected new losses in every call, found the same tensor twice",
        ),
        (
            "def make_step():\n    found = torch.stack(losses())\n    return sgd, lambda: found",
            "expected new losses in every call, found the same tensor twice",
        ),
        (
            (
                "def make_step():\n"
                "    def both():\n"
                "        w.sum().backward()\n"
                "        return losses()\n"
                "    return sgd, both"
            ),
            r"found gradients in \.grad after it",
        ),
        (
            (
                "v = torch.nn.Parameter(torch.ones(3))\n"
                "def make_step(): return sgd, lambda: {'a': w.sum(), 'b': v.sum()}"
            ),
            "expected each to reach a parameter of the optimizer, found that 'b' reaches none",
        ),
        (
            (
                "v = torch.nn.Parameter(torch.ones(3))\n"
                "both = torch.optim.SGD([w, v], lr=0.1)\n"
                "def make_step(): return both, lambda: {'a': w.sum(), 'b': v.sum()}"
            ),
            "expected a parameter that two of them reach, found none",
        ),
        (
            (
                "batches = iter([1, 2, 3, 4, 5])\n"
                "def make_step(): return sgd, lambda: [next(batches) * w.sum(), -w.sum()]"
            ),
            "expected a function that can be called any number of times, found a loader that ended",
        ),
        (
            (
                "count = iter(range(99))\n"
                "def make_step(): return sgd, lambda: {f'a{next(count)}': w.sum(), 'b': -w.sum()}"
            ),
            "expected the tasks a0, b in every batch, found a1, b",
        ),
        (
            "def make_step(): return sgd, lambda: [w.nothing, w.sum()]",
            r"losses raised AttributeError: .* \(\S+train\.py:7\)",
        ),
        (
            "def make_step(): return sgd, lambda: [w.sum() * float('nan'), w.sum()]",
            "expected finite gradients, found NaN or Inf in all 5 batches",
        ),
    ],
)
def test_errors_of_a_user(
    folder: Path, capsys: pytest.CaptureFixture[str], body: str, message: str
) -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("matplotlib")
    (folder / "train.py").write_text(f"{PREFIX}{body}\n")
    words = ["--quick", "--budget", "0.1", "--batches", "5", "--methods", "sum"]
    assert main(["bench", "mine", "--import", "train:make_step", *words]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(error) == 1
    assert error[0].startswith("mtlfast bench: error: ")
    assert re.search(message, error[0]), error[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--import: expected MODULE:FUNCTION for mine, found none"),
        (["--import", "train"], "--import: expected MODULE:FUNCTION or FILE.py:FUNCTION, found 't"),
        (["--import", "no_such.part:f"], "expected a module 'no_such.part' in FOLDER or installed"),
        (["--import", "a/b.py:f"], "--import: expected a file, found none at FOLDER/a/b.py"),
        (["--import", "a:f", "--tasks", "4"], "--tasks: expected no such option beside mine"),
        (["--import", "a:f", "--only", "x"], "--only: expected no such option beside mine"),
        (["--import", "a:f", "--methods", "cagrda"], "--methods: expected names as in"),
    ],
)
def test_errors_of_options(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("matplotlib")
    assert main(["bench", "mine", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message.replace("FOLDER", str(folder)) in error


def test_a_script_beside_its_own_modules(folder: Path) -> None:
    scripts = folder / "scripts"
    scripts.mkdir()
    (scripts / "helper.py").write_text(PREFIX)
    text = "from helper import losses, sgd\ndef make_step():\n    return sgd, losses\n"
    (scripts / "step.py").write_text(text)
    with pytest.raises(UsageError, match=r"as a script it is scripts/step\.py:FUNCTION"):
        Subject.load("scripts.step:make_step")
    assert Subject.load("scripts/step.py:make_step").names == ("0", "1")


def test_the_example_of_the_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert textwrap.indent(EXAMPLE, "  ") in capsys.readouterr().out
    page = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
    assert not page.exists() or EXAMPLE in page.read_text(encoding="utf-8")

    around = """
        import itertools
        from types import SimpleNamespace
        import torch
        from torch.nn.functional import cross_entropy, l1_loss

        loader = [(torch.ones(4, 3), torch.zeros(4), torch.tensor([0, 1, 0, 1]))]

        class Net(torch.nn.Linear):
            def __init__(self):
                super().__init__(3, 3)

            def forward(self, x):
                found = super().forward(x)
                return SimpleNamespace(depth=found.sum(1), labels=found)
    """
    (folder / "train.py").write_text(f"{textwrap.dedent(around)}\n\n{EXAMPLE}")
    assert Subject.load("train:make_step").names == ("depth", "labels")


def test_a_reentrant_checkpoint() -> None:
    """No ``autograd.grad`` goes through it."""
    net, _ = net_subject()

    def losses() -> list[Tensor]:
        x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
        z = checkpoint(net.trunk, x, use_reentrant=True)
        return [head(z).square().mean() for head in net.heads.values()]

    found = Subject("train:make", (torch.optim.SGD(net.parameters(), lr=0.1), losses))
    assert {id(p) for p in found.shared} == {id(p) for p in net.trunk.parameters()}
    assert len(record(found, 5).losses) == 5


def test_the_forms_of_losses() -> None:
    def pair(w: Tensor) -> tuple[Tensor, Tensor]:
        return w.sum(), -w.sum()

    plain: tuple[Callable[[nn.Parameter], Any], ...] = (
        pair,
        lambda w: list(pair(w)),
        lambda w: torch.stack(pair(w)),
        lambda w: {"0": w.sum(), "1": w.prod()},
        lambda w: (w.sum().reshape(1), w.prod()),  # no tensor [K] with features
    )
    for losses in plain:
        found = tiny(losses)
        assert (found.names, found.has_features) == (("0", "1"), False)
    with_features: tuple[Callable[[nn.Parameter], Any], ...] = (
        lambda w: ([(z := w * 2).sum(), z.prod()], z),
        lambda w: ({"0": (z := w * 2).sum(), "1": z.prod()}, [z]),
        lambda w: (torch.stack([(z := w * 2).sum(), z.prod()]), z),
    )
    for losses in with_features:
        found = tiny(losses)
        assert (found.names, found.has_features) == (("0", "1"), True)


# ---- the command ---------------------------------------------------------------------------------


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("matplotlib")
    (folder / "mypkg").mkdir()
    code = """
        import torch

        def make_step():
            w = torch.nn.Parameter(torch.randn(20))
            def losses():
                x = torch.randn(20)
                return {"up": (w * x).sum().exp(), "down": (-w * x).sum().exp()}
            return torch.optim.Adam([w], lr=0.001), losses
    """
    (folder / "mypkg" / "train.py").write_text(textwrap.dedent(code))
    words = ["--import", "mypkg.train:make_step", "--quick", "--budget", "0.2", "--batches", "6"]
    assert main(["bench", "mine", *words, "--methods", "pcgrad", "--out", "results/mine.json"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "mine/time",
        "mine/peak",
        "up, down",
        "-1.000",
        "Recommendation",
        "method, pcgrad",
    ):
        assert part in printed
    report = Report.read(folder / "results" / "mine.json")
    recommendation = report.setting["recommendation"]
    assert recommendation["code"][0] in printed
    assert report.setting["batches"] == 6
    assert report.find("mine/conflict/up, down").p50 == pytest.approx(-1.0)
    assert report.environment["python"]
    assert {row.figure for row in report.rows} == set(report.titles)
    json.dumps(recommendation, allow_nan=False)
