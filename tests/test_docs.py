"""The documentation: generated pages are up to date, links lead somewhere, examples run."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlfast

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *(
            ROOT / name
            for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
        ),
    ]
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
METHOD_PAGES = [page for page in PAGES if page.parent.name == "methods" and page.stem != "README"]
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(
    not (DOCS / "generate.py").exists(), reason="the tests run outside of the source tree"
)


# ---- the generator -------------------------------------------------------------------------------


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a module of docs/, as its scripts do."""
    names = ("generate", "docstring", "facts", "usage")
    monkeypatch.syspath_prepend(str(DOCS))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def generate(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "docs" / "generate.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_pages_are_up_to_date() -> None:
    result = generate(ROOT, "--check")
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_every_method_has_a_page() -> None:
    names = {
        m.name for m in mtlfast.weighting.REGISTRY.values() if m.__module__.startswith("mtlfast.")
    }
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == {*names, "README"}


def test_every_page_has_its_sections() -> None:
    wanted = ("## Use\n", "## Shapes\n", "## When to use it\n", "## When it fails\n")
    texts = {page.stem: page.read_text() for page in METHOD_PAGES}
    missing = {(name, part) for name, text in texts.items() for part in wanted if part not in text}
    assert missing == set()


def test_examples_are_of_methods(load: Callable[[str], Any]) -> None:
    assert set(load("usage").USAGE) <= set(mtlfast.weighting.REGISTRY)


def test_check_names_what_is_stale(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=ignored)
    shutil.copytree(ROOT / "mtlfast", tmp_path / "mtlfast", ignore=ignored)
    source = tmp_path / "mtlfast" / "weighting" / "mean.py"
    source.write_text(source.read_text().replace("Plain joint training", "Simple joint training"))
    (tmp_path / "docs" / "methods" / "sum.md").unlink()
    (tmp_path / "docs" / "methods" / "old.md").write_text("old\n")
    result = generate(tmp_path, "--check")
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "docs/methods/README.md is out of date: run `make docs`",
        "docs/methods/mean.md is out of date: run `make docs`",
        "docs/methods/sum.md is out of date: run `make docs`",
        "docs/methods/old.md belongs to no method: run `make docs`",
    ]
    assert generate(tmp_path).returncode == 0
    assert generate(tmp_path, "--check").returncode == 0
    assert "Simple joint" in (tmp_path / "docs" / "methods" / "mean.md").read_text()
    assert not (tmp_path / "docs" / "methods" / "old.md").exists()


def test_a_method_without_an_example_is_named(load: Callable[[str], Any]) -> None:
    generator = load("generate")
    with pytest.raises(ValueError, match=r"'constant'.*arguments of Constant.*weights, found none"):
        generator.example(mtlfast.Constant, generator.Usage())


def test_an_undocumented_option_is_named(load: Callable[[str], Any]) -> None:
    generator, reader = load("generate"), load("docstring")
    read = reader.read("Does it.\n\nArgs:\n    c: radius.\n", {})
    with pytest.raises(ValueError, match=r"CAGrad: expected the arguments \['c', 'rescale'"):
        generator.options(mtlfast.CAGrad, read)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("``a|b`` -> [K]", "`a|b` → [K]"),
        ("as :class:`CAGrad` does", "as [CAGrad](cagrad.md) does"),
        ("as :class:`~mtlfast.weighting.cagrad.CAGrad`", "as [CAGrad](cagrad.md)"),
        ("as :class:`Other` and :meth:`reset`", "as `Other` and `reset()`"),
        ("arXiv 2110.14048.", "[arXiv 2110.14048](https://arxiv.org/abs/2110.14048)."),
        ("doi 10.1109/A.2.3.", "[doi 10.1109/A.2.3](https://doi.org/10.1109/A.2.3)."),
        ("OpenReview IMPnRXEWpvr", "[OpenReview IMPnRXEWpvr](https://openreview.net/forum?id=IMPnRXEWpvr)"),
        ("2 * 3 < 7, ``2 * 3 < 7``", r"2 \* 3 \< 7, `2 * 3 < 7`"),
    ],
)  # fmt: skip
def test_markdown(load: Callable[[str], Any], text: str, expected: str) -> None:
    assert load("docstring").markdown(text, {"CAGrad": "cagrad.md"}) == expected


def test_docstring_is_taken_apart(load: Callable[[str], Any]) -> None:
    read = load("docstring").read(
        """One line.

        The formula, over
        two lines::

            code = 1

            more = 2

        So, with ``c``,

            a <- b c,

        it is.

        Shapes: gramian -> weights. No state.

        A remark. As TorchJD's it is.

        Only a remark.

        Degenerate (see ``status``): none. Use it often. Always. It fails where it must: never.

        State: two numbers.

        Args:
            c: radius,
                above 0.
            alpha: another.

        Raises:
            TypeError, ValueError: wrong.

        Reference: Someone, "Title",
        arXiv 2110.14048.
        """,
        {},
    )
    assert read.summary == "One line."
    assert read.sections == {
        "Formula": [
            "The formula, over two lines:",
            "```python\ncode = 1\n\nmore = 2\n```",
            "So, with `c`,",
            "```text\na <- b c,\n```",
            "it is.",
        ],
        "Shapes": ["Gramian → weights."],
        "Other implementations": ["A remark. As TorchJD's it is."],
        "Notes": ["Only a remark."],
        "Degenerate input": ["Degenerate (see `status`): none."],
        "When to use it": ["Use it often. Always."],
        "When it fails": ["It fails where it must: never."],
        "State": ["Two numbers."],
    }
    assert read.arguments == {"c": "radius, above 0.", "alpha": "another."}
    assert read.errors == {"TypeError, ValueError": "wrong."}
    assert read.reference.startswith('Someone, "Title", [arXiv')


# ---- links ---------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text()))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


# ---- examples ------------------------------------------------------------------------------------


class Model(nn.Module):
    """Three tasks on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))


def world() -> dict[str, Any]:
    """The names that the examples take for given."""
    torch.manual_seed(0)
    model = Model()

    def model_losses(batch: Tensor) -> list[Tensor]:
        features = model.trunk(batch)
        return [(head(features) - k).square().mean() for k, head in enumerate(model.heads)]

    batches = torch.randn(3, 16, 4)
    return {
        "torch": torch,
        "mtlfast": mtlfast,
        "model": model,
        "adam": torch.optim.Adam(model.parameters()),
        "last_layer": model.trunk[-1],
        "model_losses": model_losses,
        "loader": list(batches),
        "epochs": 2,
        "accuracies": [0.9, 0.7, 0.8],
        "batch": batches[0],
        "second_batch": batches[1],
        "third_batch": batches[2],
        "task_grads": [[torch.randn(3, 2), torch.randn(5)] for _ in range(3)],
        "J": torch.randn(3, 11),
    }


def examples(page: Path) -> list[tuple[str, str]]:
    """Python blocks of a page, with the peer that follows the word python in the fence, if any."""
    found = BLOCK.findall(page.read_text())
    return [(peer.strip(), code) for language, peer, code in found if language == "python"]


@pytest.mark.parametrize("page", [p for p in PAGES if examples(p)], ids=lambda p: p.stem)
def test_examples_run(page: Path) -> None:
    """One after another in one world; a peer's only where it is installed."""
    names = world()
    for peer, code in examples(page):
        compiled = compile(code, str(page), "exec")
        names["losses"] = names["model_losses"](names["batch"])
        if not peer or importlib.util.find_spec(peer) is not None:
            exec(compiled, names)


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_method_example_trains(page: Path) -> None:
    """It changes every parameter, by finite amounts, twice."""
    names = world()
    before = [p.detach().clone() for p in names["model"].parameters()]
    code = examples(page)[0][1]
    exec(code, names)
    assert names["optimizer"].last is not None
    names["optimizer"].zero_grad()
    exec(code.split("\n", 1)[1], names)
    for old, new in zip(before, names["model"].parameters(), strict=True):
        assert new.isfinite().all()
        assert (old != new.detach()).any()
