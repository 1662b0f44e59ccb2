"""``mtlfast bench mine``: a user's model through engines and methods, and what it is told."""

import gc
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mtlfast
from mtlfast.bench.command import EXAMPLE, UsageError
from mtlfast.bench.mine import advice, contest, contestants, study, subject
from mtlfast.bench.mine.conflicts import Conflicts, record
from mtlfast.bench.mine.subject import Subject
from mtlfast.bench.rows import Report, Row
from mtlfast.bench.runner import Silent, measure
from mtlfast.bench.setting import Setting
from mtlfast.cli import main
from mtlfast.jacobian import memory

QUICK = Setting(quick=True, budget=0.1, passes=1, threads=1)


class Net(nn.Module):
    """Two shared layers with BatchNorm between, and two heads that disagree; float64."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in ("near", "far")})
        self.heads["far"].load_state_dict(self.heads["near"].state_dict())
        self.double()

    def forward(self) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of a random batch, and the features."""
        x = torch.randn(8, 5, dtype=torch.float64)
        z = self.trunk(x)
        near = (self.heads["near"](z)[:, 0] - x[:, 0]).square().mean()
        far = (self.heads["far"](z)[:, 0] + 3 * x[:, 0]).square().mean()
        return {"near": near, "far": far}, z


def net_subject(momentum: float = 0.9) -> tuple[Net, Subject]:
    torch.manual_seed(3)
    net = Net()
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum)
    return net, Subject("train:make", (net, sgd, net.forward))


def tiny(losses: Callable[[nn.Parameter], Any], **options: Any) -> Subject:
    """Losses of two shared numbers."""
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    return Subject("train:make", (torch.optim.SGD([w], lr=1e-9), lambda: losses(w)), **options)


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


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


# ---- what is measured ----------------------------------------------------------------------------


class Whole(NamedTuple):
    """A model before and after a run, the run, and the statistics of a second one."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    study: study.Study
    conflicts: Conflicts


@pytest.fixture(scope="module")
def whole() -> Whole:
    """One run."""
    net, found = net_subject()
    before = values(net)
    methods = ("cagrad", "si", "graddrop", "modo", "constant")
    first = study.study(found, QUICK, methods, 6, Silent())
    after = values(net)
    assert all(param.grad is None for param in net.parameters())
    return Whole(before, after, first, record(found, 6))


def test_every_contestant_is_listed(whole: Whole) -> None:
    report = whole.study.report
    names = [row.labels["contestant"] for row in report.of("mine/time")]
    engines = ["stored", "batched", "factored", "streaming", "sketched", "auto"]
    others = ["gramian_params", "features", "update_every=10"]
    assert names == ["losses alone", *engines, *others]
    assert all(row.p50 is not None and row.p50 > 0 for row in report.of("mine/time"))
    joint = ["joint", *names]
    assert [row.labels["contestant"] for row in report.of("mine/ms")] == joint
    peaks = [row.labels["contestant"] for row in report.of("mine/peak")]
    assert peaks == ["joint", *engines, *others]
    assert all((row.p50 or 0) > 0 for row in report.of("mine/peak"))
    assert report.find("mine/time/step, gramian_params").detail == (
        "approximate: trunk.3.weight, trunk.3.bias"
    )


def test_exact_engines_agree(whole: Whole) -> None:
    report = whole.study.report
    exact = {row.labels["contestant"]: row.p50 for row in report.of("mine/exact", kind="exact")}
    assert list(exact) == ["batched", "factored", "streaming", "auto"]
    assert all(difference < 1e-12 for difference in exact.values() if difference is not None)
    others = {
        row.labels["contestant"]: row.p50 for row in report.of("mine/exact", kind="approximate")
    }
    assert list(others) == ["sketched", "gramian_params", "features"]
    assert (others["features"] or 0) > 1e-9


def test_methods(whole: Whole) -> None:
    report = whole.study.report
    rows = {row.labels["contestant"]: row for row in report.of("mine/method-time")}
    assert list(rows) == ["cagrad", "si", "graddrop", "modo", "constant"]
    assert rows["constant"].p50 is None
    assert "'weights'" in rows["constant"].detail
    assert all(rows[name].p50 for name in ("cagrad", "si", "graddrop", "modo"))


def test_everything_is_put_back(whole: Whole) -> None:
    torch.testing.assert_close(whole.after, whole.before, rtol=0, atol=0)
    # From the same state with the same random numbers: the same batches and steps.
    again = whole.conflicts.gramians
    torch.testing.assert_close(whole.study.conflicts.gramians, again, rtol=0, atol=0)
    assert len(again) == 6


def test_every_sample_begins_at_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    net, found = net_subject()
    found.joint()
    state = found.state()
    seen = []
    draw = found.draw

    def watched() -> subject.Batch:
        begin = [param.detach().clone() for param in net.parameters()]
        batch = draw()
        assert isinstance(batch.losses, dict)
        seen.append(
            ([*begin, net.get_buffer("trunk.1.running_mean").clone()], batch.losses["far"].item())
        )
        return batch

    monkeypatch.setattr(found, "draw", watched)
    makers = {name: contestants.engines(found)[name] for name in ("stored", "factored")}
    case = contest.Contest(found, state, makers, "mine/time", "mine/ms", "step")
    variants = case.prepare(QUICK)
    for variant in (*variants.values(), *variants.values()):
        variant()
    assert len(seen) == 9
    for begin, far in seen[1:]:
        torch.testing.assert_close(begin, seen[0][0], rtol=0, atol=0)
        assert far == seen[0][1]


class Outside(torch.autograd.Function):
    """A backward by way of NumPy, which vmap cannot follow."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return torch.from_numpy(grads[0].numpy().copy())


@pytest.mark.filterwarnings("ignore")
def test_refusals_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = Outside.apply(x)  # type: ignore[no-untyped-call]
            return found

    def measured() -> dict[str, Row]:
        net, found = net_subject()
        net.trunk[2] = Numpy()
        makers = contestants.engines(found)
        case = contest.Contest(found, found.state(), makers, "mine/time", "mine/ms", "step")
        rows = {row.key: row for row in measure([case], QUICK, Silent())}
        assert "streaming" in {row.labels["contestant"] for row in contest.differences(case)}
        return rows

    rows = measured()
    assert rows["mine/time/step, stored"].p50 is not None
    refused = rows["mine/time/step, batched"]
    assert refused.p50 is None
    assert refused.detail.startswith("RuntimeError: engine: expected a graph that torch.vmap")
    assert rows["mine/ms/step, batched"].detail == refused.detail

    monkeypatch.setattr(memory, "free", lambda _: 600)  # one gradient has 608 bytes
    rows = measured()
    refused = rows["mine/time/step, stored"]
    assert refused.p50 is None
    assert refused.detail == "MemoryError: K·P = 0.00122 MB do not fit in 0.0006 MB"
    assert rows["mine/time/step, factored"].p50 is not None


# ---- statistics ----------------------------------------------------------------------------------


def test_statistics_are_those_of_autograd() -> None:
    _, found = net_subject()
    state = torch.get_rng_state()
    conflicts = record(found, 7)

    other, _ = net_subject()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    torch.set_rng_state(state)
    shared = list(other.trunk.parameters())
    gramians, losses = [], []
    for _ in range(7):
        named, _ = other()
        grads = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in named.values()]
        rows = torch.stack([torch.cat([g.ravel() for g in grad]) for grad in grads])
        gramians.append(rows @ rows.T)
        losses.append(torch.stack([loss.detach() for loss in named.values()]))
        optimizer.zero_grad()
        sum(named.values()).backward()
        optimizer.step()
    expected = torch.stack(gramians)
    assert conflicts.names == ("near", "far")
    torch.testing.assert_close(conflicts.gramians, expected)
    torch.testing.assert_close(conflicts.losses, torch.stack(losses))

    lengths = expected.diagonal(dim1=1, dim2=2).sqrt()
    cosines = expected[:, 0, 1] / lengths[:, 0] / lengths[:, 1]
    rows_of = {row.key: row for row in conflicts.rows()}
    pair = rows_of["mine/conflict/near, far"]
    negative = float((cosines < 0).double().mean())
    assert pair.p50 == pytest.approx(float(cosines.median()))
    assert pair.labels["mean"] == pytest.approx(float(cosines.mean()))
    assert pair.labels["min"] == pytest.approx(float(cosines.min()))
    assert pair.labels["negative"] == pytest.approx(negative)
    assert f"negative in {negative:.0%}" in pair.detail
    for k, name in enumerate(("near", "far")):
        assert rows_of[f"mine/norm/{name}"].p50 == pytest.approx(float(lengths[:, k].median()))
        against = float((expected.sum(2)[:, k] < 0).double().mean())
        assert rows_of[f"mine/norm/{name}"].labels["harmed"] == pytest.approx(against)


def test_three_tasks_have_a_table() -> None:
    found = tiny(lambda w: {"a": w[0] + w[1], "b": w[0] - w[1], "c": 2 * w[0]})
    lines = "\n".join(record(found, 5).lines())
    assert re.search(r"mean cosine +a +b +c\n[- ]+\na +1\.00 +0\.00 +0\.71\nb +0\.00", lines)
    assert lines.index("a, b") < lines.index("a, c")  # the worst pair first


def test_zero_and_endless_gradients() -> None:
    found = record(tiny(lambda w: {"a": w.sum(), "idle": 0 * w.sum()}), 5)
    assert found.silent == ["idle"]
    assert found.rows()[0].p50 is None
    assert found.ratio == 1.0
    told = advice.advise(advice.Findings(found, prices(stored=1.2))).lines
    assert told[0].startswith("Look at idle first")

    count = iter(range(100))
    some = tiny(lambda w: [w.sum(), w.prod() * (float("inf") if next(count) == 5 else 1.0)])
    found = record(some, 6)  # the sixth call: two are of the check, one of its step
    assert found.dropped > 0
    assert bool(found.gramians.isfinite().all())
    assert "not finite" in found.lines()[0]
    words = advice.advise(advice.Findings(found, prices(stored=1.2))).lines
    assert words[0].startswith("Look at plain training first")


# ---- recommendation ------------------------------------------------------------------------------


def prices(spread: float = 0.01, **times: float) -> dict[str, advice.Price]:
    """Medians with a spread to both sides."""
    return {name: advice.Price(p50, p50 - spread, p50 + spread) for name, p50 in times.items()}


def told(losses: Callable[[nn.Parameter], Any], **more: Any) -> advice.Advice:
    times = prices(stored=1.9, streaming=2.4, auto=1.92)
    return advice.advise(advice.Findings(record(tiny(losses), 5), times, "stored", **more))


def test_like_losses_need_no_balancing() -> None:
    found = told(lambda w: [w.sum().exp(), 1.5 * w.sum().exp()])
    assert found.method == "sum"
    assert "equal weighting is likely enough" in found.lines[0]
    assert "price of 1.92 plain steps" in found.lines[0]
    # Random directions: half of the cosines are negative, none of them by much.
    found = told(lambda w: [w[0], w[1] - 0.01 * w[0]])
    assert found.method == "sum"


def test_opposed_losses_conflict() -> None:
    found = told(lambda w: {"a": w.sum(), "b": w[0] - 3 * w[1]}, methods=prices(cagrad=1.97))
    assert found.method == "cagrad"
    assert "a and b have a cosine below -0.1 in 100% of the batches" in found.lines[0]
    assert "cagrad 1.97" in found.lines[0]


def test_scaled_losses_are_imbalanced() -> None:
    found = told(lambda w: [w[0].exp(), 1000 * w[1].exp()])
    assert found.method == "si"
    assert "imbalance without conflict" in found.lines[0]
    # Nothing in these losses tells how long their gradients are.
    found = told(lambda w: [1 + (w[0] - w[0].detach()), 1 + 1000 * (w[1] - w[1].detach())])
    assert found.method == "nash_mtl"
    assert "a factor of 1e+03, and the losses do not tell it" in found.lines[0]
    found = told(lambda w: [-w[0].exp(), -1000 * w[1].exp()])  # no logarithms of these
    assert found.method == "nash_mtl"


def test_scaled_and_opposed() -> None:
    found = told(lambda w: [w.sum(), 100 * (w[0] - 3 * w[1])])
    assert found.method == "nash_mtl"
    assert found.lines[0].startswith("Method: nash_mtl. There are both")


@pytest.mark.parametrize(
    ("times", "auto", "best"),
    [
        ({"stored": 2.0, "factored": 1.5, "auto": 1.52}, "factored", "auto"),
        ({"stored": 2.0, "factored": 1.5, "auto": 1.7}, "factored", "auto"),
        ({"stored": 2.0, "streaming": 1.9, "auto": 1.95}, "stored", "auto"),
        ({"stored": 2.0, "streaming": 1.5, "auto": 2.0}, "stored", "streaming"),
        ({"stored": 2.0, "features": 1.0, "sketched": 1.1}, "", "stored"),
        ({"streaming": 2.0, "auto": 1.2}, "sketched", "streaming"),
    ],
)
def test_best_engine(times: dict[str, float], auto: str, best: str) -> None:
    assert advice.best_engine(prices(**times), auto) == best


def test_noise_is_no_reason_for_an_engine() -> None:
    times = {"stored": 2.0, "streaming": 1.5, "auto": 2.0}
    assert advice.best_engine(prices(0.2, **times), "stored") == "streaming"
    assert advice.best_engine(prices(0.3, **times), "stored") == "auto"


def test_engine_in_words_and_code() -> None:
    conflicts = record(tiny(lambda w: [w.sum(), 2 * w.sum()]), 5)
    times = prices(stored=2.9, streaming=3.1, auto=2.9, features=1.1, gramian_params=2.8)
    peaks = {"joint": 10.0, "stored": 40.0, "streaming": 11.0, "auto": 40.0}
    findings = advice.Findings(conflicts, times, "stored", peaks, {"features": 0.25})
    found = advice.advise(findings)
    text = "\n".join(found.lines)
    assert "Engine: auto, 2.90 plain steps. It takes stored" in text
    assert "4.00 times that of a plain step; streaming's is 1.10, for 3.10 plain steps" in text
    assert (
        "features=, which compares the gradients of the features, for 1.10 plain steps (on" in text
    )
    assert "by 0.25 of its length" in text
    assert "gramian_params=" not in text  # hardly cheaper
    assert "Not known from this: what any method does to your accuracy" in text
    assert found.code[0] == 'optimizer = mtlfast.MultiTaskOptimizer(optimizer, "sum")'

    found = advice.advise(advice.Findings(conflicts, {**times, **prices(streaming=2.0)}, "stored"))
    assert found.code[0].endswith('"sum", engine="streaming")')
    assert "the fastest exact one. auto takes stored, for 2.90" in "\n".join(found.lines)


def test_the_code_runs() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer: torch.optim.Optimizer = torch.optim.SGD([w], lr=0.1)
    found = told(lambda w: {"a": w.sum(), "b": w[0] - 3 * w[1]})
    names: dict[str, Any] = {"mtlfast": mtlfast, "optimizer": optimizer, "w": w}
    code = [line.replace("...", "[w.sum(), -w.prod()]") for line in found.code]
    exec("\n".join(code), names)
    assert w.grad is not None


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
