"""The documentation's figures: marks, tables, pictures, and claims without a mark."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import figures
from benchmarks.guard import claims
from benchmarks.marks import MarkError, Results, evaluate
from benchmarks.pages import rewrite
from benchmarks.tables import TABLES
from benchmarks.tables.base import Table, fill, markdown
from mtlfast.bench.rows import Label, Report, Row

ROOT = Path(__file__).resolve().parent.parent
FLOOR = "kernels/floor/K = {}, P = 1e+07"


def report() -> Report:
    found = Report({"cpu": "A CPU", "peers": {"torchjd": "0.18.0", "LibMTL": None}})
    for k, ratio, bound in ((8, 1.456, 1.25), (2, 1.134, 1.15), (4, 1.3, 1.15)):
        case = f"K = {k}, P = 1e+07"
        labels: dict[str, Label] = {"K": k, "contestant": "mtlfast"}
        found.add(Row("kernels/floor", case, "x", ratio, 1.1, 1.5, 40, target=bound, labels=labels))
    found.add(
        Row("kernels/peers", "PCGrad", "x", 2.5, versus="TorchJD"),
        Row("kernels/peers", "CAGrad", "x", 0.9, versus="TorchJD"),
        Row("kernels/peers", "MGDA", "x", versus="TorchJD", detail="ValueError: no"),
        Row("solvers/call", "twice", "us", 3.0),
        Row("solvers/call", "twice", "us", 4.0),
        Row("solvers/call", "pcgrad", "us", 4410.7),
    )
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with results, pictures, and pages without marks."""
    found = tmp_path_factory.mktemp("checkout")
    report().write(found / "benchmarks" / "results" / "cpu.json")
    (found / "docs").mkdir()
    (found / "README.md").write_text("# A title\n")
    (found / "docs" / "page.md").write_text("Nothing.\n")
    assert figures.main(["--root", str(found)]) == 0
    return found


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    shutil.copytree(drawn, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def results(drawn: Path) -> Results:
    return Results(drawn / "benchmarks" / "results")


@pytest.fixture
def check(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that the command prints; it must fail exactly if there are findings."""

    def run(*options: str) -> list[str]:
        capsys.readouterr()
        code = figures.main(["--root", str(root), *options])
        lines = capsys.readouterr().out.splitlines()
        if "--check" in options:
            assert code == int(bool(lines))
            return lines[:-1]  # without the last, which counts them
        return lines

    return run


# ---- the language --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (f'cpu "{FLOOR.format(4)}"', "1.30"),
        (f'cpu "{FLOOR.format(8)}" .2f', "1.46"),
        (f'cpu "{FLOOR.format(8)}" target', "1.25"),
        (f'cpu "{FLOOR.format(8)}" runs', "40"),
        (f'cpu "{FLOOR.format(8)}" @contestant', "mtlfast"),
        (f'cpu "{FLOOR.format(8)}" @K', "8"),
        (f'cpu "{FLOOR.format(8)}" p80 .0%', "150%"),
        (f'cpu "{FLOOR.format(8)}" / "{FLOOR.format(4)}"', "1.12"),
        (f'cpu "{FLOOR.format(8)}" / "{FLOOR.format(4)}" target .3f', "1.087"),
        (f'cpu range "{FLOOR.format("*")}"', "1.13 to 1.46"),
        (f'cpu range "{FLOOR.format(2)}" "{FLOOR.format(4)}"', "1.13 to 1.30"),
        (f'cpu range "{FLOOR.format("*")}" .0f', "1"),
        (f'cpu min "{FLOOR.format("*")}"', "1.13"),
        (f'cpu max "{FLOOR.format("*")}" target', "1.25"),
        (f'cpu each "{FLOOR.format("*")}" .2f', "1.13 / 1.30 / 1.46"),
        ('cpu each "kernels/peers/*" .1f', "2.5 / 0.9 / -"),
        (f'cpu spread "{FLOOR.format(8)}"', "1.10 to 1.50"),
        ('cpu min "kernels/peers/*"', "0.900"),
        ('cpu count "kernels/*"', "5"),
        ('cpu met "kernels/*"', "1 of 3"),
        ('cpu won "kernels/*"', "1 of 2"),
        ('cpu "solvers/call/pcgrad"', "4410"),
        ('cpu "solvers/call/pcgrad" ,.0f', "4,411"),
        ('cpu "solvers/call/pcgrad" *0.001', "4.41"),
        ('cpu range "solvers/call/pcgrad" *1e-3 .1f', "4.4"),
        ('cpu env "cpu"', "A CPU"),
        ('cpu env "peers.torchjd"', "0.18.0"),
    ],
)
def test_expressions(results: Results, expression: str, expected: str) -> None:
    assert evaluate(expression, results) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('gpu "kernels/floor/K = 4"', "FILE: expected one of cpu, found 'gpu'"),
        ('cpu "kernels/floor/K = 5"', "cpu.json has no row 'kernels/floor/K = 5'"),
        (f'cpu "{FLOOR.format("*")}"', "3 rows fit, expected one"),
        ('cpu "solvers/call/twice"', "2 rows fit, expected one"),
        ('cpu "kernels/peers/MGDA"', "was not measured: ValueError: no"),
        ('cpu "kernels/peers/PCGrad" target', "has no target"),
        ('cpu "kernels/peers/PCGrad" p20', "has no p20"),
        ('cpu "kernels/peers/PCGrad" @K', "has no @K"),
        (f'cpu max "{FLOOR.format(8)}" @contestant', "@contestant: expected a number"),
        ('cpu median "kernels/peers/PCGrad"', "FUNCTION: expected one of min, max"),
        ('cpu "kernels/peers/PCGrad" p50 .2f more', "expected a field"),
        ('cpu "kernels/peers/PCGrad" p90', "expected a field"),
        (f'cpu "{FLOOR.format(8)}" @contestant .2f', "FORMAT: expected one that fits 'mtlfast'"),
        (f'cpu "{FLOOR.format(8)}" @contestant *2', "@contestant: expected a number"),
        ("cpu", 'expected FILE "KEY"'),
        ('"kernels/peers/PCGrad"', 'expected FILE "KEY"'),
        ("cpu max", "KEY: expected a key in quotes"),
        ('cpu max "kernels/*" / "kernels/*"', "expected no function with a ratio"),
        ('cpu env "peers.LibMTL"', "expected an entry of the environment"),
        ('cpu env "peers"', "expected an entry of the environment"),
    ],
)
def test_wrong_expressions(results: Results, expression: str, expected: str) -> None:
    with pytest.raises(MarkError) as error:
        evaluate(expression, results)
    assert expected in str(error.value)


# ---- marks of a page -----------------------------------------------------------------------------


def mark(expression: str, found: str) -> str:
    return f"<!-- f: {expression} -->{found}<!-- /f -->"


FOUR = f'cpu "{FLOOR.format(4)}" .2f'
EIGHT = f'cpu "{FLOOR.format(8)}" .2f'
UNKNOWN = 'cpu "kernels/nothing"'

PAGE = f"""# Figures

In prose {mark(FOUR, "?")} of the floor.

| K | over |
|---|---|
| 8 | {mark(EIGHT, "?")} x ({mark(FOUR, "?")} x) |

```
{mark("nothing at all", "stays")}
```
"""


def test_marks_are_filled_in_prose_and_cells(root: Path, check: Callable[..., list[str]]) -> None:
    page = root / "docs" / "page.md"
    page.write_text(PAGE)
    assert check() == ["docs/page.md: 3 figures written"]
    text = page.read_text()
    assert f"In prose {mark(FOUR, '1.30')} of the floor." in text
    assert "<!-- /f --> x (<!--" in text
    assert mark("nothing at all", "stays") in text
    assert check("--check") == []


def test_rewriting_is_idempotent(root: Path, check: Callable[..., list[str]]) -> None:
    page = root / "docs" / "page.md"
    page.write_text(PAGE)
    check()
    once = page.read_text()
    assert check() == []
    assert page.read_text() == once


def test_a_changed_number_is_found(root: Path, check: Callable[..., list[str]]) -> None:
    page = root / "docs" / "page.md"
    page.write_text(PAGE)
    check()
    page.write_text(page.read_text().replace("1.46", "1.36"))
    (found,) = check("--check")
    key = FLOOR.format(8)
    assert found == f"docs/page.md:7: cpu \"{key}\" .2f: found '1.36', expected '1.46'"
    assert "1.36" in page.read_text()


def test_changed_results_are_found(root: Path, check: Callable[..., list[str]]) -> None:
    (root / "README.md").write_text(PAGE)
    check()
    path = root / "benchmarks" / "results" / "cpu.json"
    path.write_text(path.read_text().replace("1.456", "1.556"))
    lines = check("--check")
    assert [line.split(":")[0] for line in lines] == ["README.md", "docs/images/cpu-floor.png"]


def test_an_unknown_key_is_found(root: Path, check: Callable[..., list[str]]) -> None:
    page = root / "docs" / "page.md"
    page.write_text(f"Some {mark(UNKNOWN, '1')} words.\n")
    expected = f"docs/page.md:1: {UNKNOWN}: cpu.json has no row 'kernels/nothing'"
    assert check("--check") == [expected]
    assert check() == [expected]  # and it stays as it is
    assert page.read_text() == f"Some {mark(UNKNOWN, '1')} words.\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('<!-- f: cpu env "cpu" -->A CPU<!-- /f --> begins the line\n', 1),
        ('- <!-- f: cpu env "cpu" -->A CPU<!-- /f --> begins the item\n', 1),
        ('some\nwords <!-- f: cpu env "cpu" -->A CPU\n', 2),
        ("words <!-- /f -->\n", 1),
        ('words <!-- f: cpu env "cpu" -->A <!-- CPU --><!-- /f -->\n', 1),
        ("<!-- table: unknown -->\n<!-- /table -->\n", 1),
        ("\n<!-- table: wins -->\n| a |\n", 2),
    ],
)
def test_wrong_marks_are_found(results: Results, text: str, line: int) -> None:
    page = rewrite(text, "page.md", results, TABLES)
    assert [finding.line for finding in page.wrong] == [line]
    assert page.text == text


# ---- tables --------------------------------------------------------------------------------------


def test_a_table_is_rows_and_columns(results: Results) -> None:
    table = Table(
        rows={f"K = {k}": {"K": k} for k in (2, 8)},
        columns={
            "over the floor": '{cpu "kernels/floor/K = <K>, P = 1e+07" .2f} x',
            "wanted": '{cpu "kernels/floor/K = <K>, P = 1e+07" target}',
        },
        instead={("K = 8", "wanted"): "nothing"},
    )
    assert table(results) == [
        "|  | over the floor | wanted |",
        "|---|---|---|",
        "| K = 2 | 1.13 x | 1.15 |",
        "| K = 8 | 1.46 x | nothing |",
    ]


def test_cells_without_a_row_or_a_number(results: Results) -> None:
    assert fill('{? cpu "kernels/nothing"} x', {}, results) == ""
    assert fill('{cpu "kernels/peers/<method>"} x', {"method": "MGDA"}, results) == "not measured"
    with pytest.raises(MarkError, match="no row 'kernels/nothing'"):
        fill('{cpu "kernels/nothing"} x', {}, results)
    with pytest.raises(MarkError, match="fits into a cell"):
        markdown([["a", "b|c"]])


def test_a_table_is_written_and_checked(results: Results) -> None:
    tables = {"one": Table({"a": {}}, {"b": f'{{cpu "{FLOOR.format(8)}" .2f}}'})}
    text = "Words.\n\n<!-- table: one -->\n<!-- /table -->\n\nMore.\n"
    page = rewrite(text, "page.md", results, tables)
    table = "|  | b |\n|---|---|\n| a | 1.46 |\n"
    assert page.text == text.replace("-->\n<!--", f"-->\n\n{table}\n<!--")
    assert len(page.stale) == 1
    again = rewrite(page.text, "page.md", results, tables)
    assert (again.text, again.stale, again.wrong) == (page.text, [], [])
    changed = rewrite(page.text.replace("1.46", "1.45"), "page.md", results, tables)
    (finding,) = changed.stale
    assert str(finding) == ("page.md:7: one: found '| a | 1.45 |', expected '| a | 1.46 |'")


def test_where_a_peer_is_ahead(results: Results) -> None:
    lines = TABLES["wins"](results)
    assert len(lines) == 3
    assert "CAGrad" in lines[2]
    assert "0.90" in lines[2]


def test_what_does_not_meet_its_bound(results: Results) -> None:
    found = TABLES["missed"](results)[2:]
    assert found == [
        "| kernels/floor | K = 8, P = 1e+07 | 1.46 x | at most 1.25 x |",
        "| kernels/floor | K = 4, P = 1e+07 | 1.30 x | at most 1.15 x |",
    ]


def written(folder: Path, name: str, *rows: Row) -> Results:
    Report(rows=list(rows)).write(folder / f"{name}.json")
    return Results(folder)


def test_the_best_method_comes_first(tmp_path: Path) -> None:
    def row(case: str, error: float, **labels: Label) -> Row:
        return Row("quality/burgers", case, "", error, labels={"mean": error, **labels})

    results = written(
        tmp_path,
        "quality",
        row("PCGrad", 0.22, method="pcgrad", std=0.046),
        row("CAGrad", 0.063, method="cagrad", std=0.064),
        row("MGDA", 0.1, method="mgda"),
        Row("quality/burgers", "Krum", "", detail="needs three tasks"),
    )
    assert TABLES["burgers"](results) == [
        "| method | relative L2 error | expected |",
        "|---|---|---|",
        "| CAGrad | 0.063 ± 0.064 | 0.041 ± 0.021 |",
        "| MGDA | 0.100 |  |",
        "| PCGrad | 0.220 ± 0.046 | 0.209 |",
    ]


def test_methods_without_a_peer_have_an_empty_cell(tmp_path: Path) -> None:
    calls = [
        Row("solvers/call", f"{method}, K = {k}", "us", us * k, labels={"method": method})
        for method, us in (("mgda", 0.5), ("config", 0.25))
        for k in (2, 8, 40)
    ]
    peer = Row("solvers/peer calls", "mgda, K = 8, TorchJD", "us", 3005.4)
    ratio = Row("solvers/peers", "mgda, K = 8, TorchJD", "x", 764.1, versus="TorchJD")
    assert TABLES["solvers"](written(tmp_path, "cpu", *calls, peer, ratio)) == [
        "| method | K = 2 | K = 8 | K = 40 | TorchJD's, K = 8 |",
        "|---|---|---|---|---|",
        "| config | 0.5 | 2.0 | 10.0 |  |",
        "| mgda | 1.0 | 4.0 | 20.0 | 3005 (764 x) |",
    ]


# ---- pictures ------------------------------------------------------------------------------------


def test_pictures_are_drawn_where_they_are_stale(
    root: Path, check: Callable[..., list[str]]
) -> None:
    folder = root / "docs" / "images"
    assert [path.name for path in sorted(folder.iterdir())] == [
        "cpu-floor.png",
        "cpu-peers-kernels.png",
    ]
    Image.new("RGB", (4, 4)).save(folder / "cpu-floor.png")
    Image.new("RGB", (4, 4)).save(folder / "cpu-other.png")
    Image.new("RGB", (4, 4)).save(folder / "photo.png")
    lines = check("--check")
    assert [line.split(": ")[0] for line in lines] == [
        "docs/images/cpu-floor.png",
        "docs/images/cpu-other.png",
    ]
    assert check() == ["docs/images/cpu-floor.png drawn", "docs/images/cpu-other.png removed"]
    assert check("--check") == []
    assert len(check("--redraw")) == 2
    (folder / "cpu-floor.png").unlink()
    assert len(check("--check")) == 1


# ---- claims without a mark -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "It is 2.9 x as fast.",
        "It is 3x faster.",
        "It is 39 to 84 times faster than TorchJD's.",
        "It takes 3 µs and more.",
        "It takes .4 ms.",
        "A step of 2.5 s.",
        "It needs 40 MB more.",
        "It moves at 73 GB/s.",
        "A step takes 2.9 plain ones.",
        "A step takes 1.25 plain steps.",
        "| stored | 2.37 / 2.94 / 6.03 |",
        "| GradDrop | 1.53 |",
        "| a | -1.5 % |",
        "**2 x** as fast",
        "(4.0 x)",
    ],
)
def test_an_unmarked_claim_is_found(text: str) -> None:
    (finding,) = claims(f"# Title\n\n{text}\n", "page.md")
    assert finding.line == 3
    marked = f"# Title\n\nIt is {mark(UNKNOWN, text.replace('|', ' '))}.\n"
    assert claims(marked, "page.md") == []
    assert claims(f"{text} <!-- unmeasured: a target -->\n", "page.md") == []
    assert claims(f"```\n{text}\n```\n", "page.md") == []


@pytest.mark.parametrize(
    "text",
    [
        "Python 3.10 and torch 2.13.0 with TorchJD 0.18.",
        "The K x K Gramian of 8 x 1000 elements, 2 x K of them.",
        "A trunk of 96-64-64, 1500 steps, 3 seeds, a factor of 100.",
        "See [it](https://example.org/1.5x/3ms) at `2.5 ms`.",
        "P = 1e7, K = 8, S = 65536 on sm_90 in the 1990s.",
        "| a | version 2.13 |",
        "| K = 4 | 1000 |",
        "| 2 | stored |",
        "it holds three times as much",
        "<!-- 3 ms in a comment -->",
    ],
)
def test_what_is_no_claim(text: str) -> None:
    assert claims(f"{text}\n", "page.md") == []


def test_excuses_hold_up_to_the_next_heading() -> None:
    text = "# A\n\n<!-- unmeasured: predicted -->\n\nIt takes 3 ms.\n\n## B\n\nIt takes 4 ms.\n"
    assert [finding.line for finding in claims(text, "page.md")] == [9]
    line = "It takes 3 ms. <!-- unmeasured: a target -->\nIt takes 4 ms.\n"
    assert [finding.line for finding in claims(line, "page.md")] == [2]
    (nothing,) = claims("It takes 3 ms. <!-- unmeasured: -->\n", "page.md")
    assert "expected a reason" in nothing.what


def test_a_table_between_marks_is_no_claim() -> None:
    text = "<!-- table: one -->\n\n| a | 1.5 |\n\n<!-- /table -->\n| b | 1.5 |\n"
    assert [finding.line for finding in claims(text, "page.md")] == [6]


def test_the_check_names_claims(root: Path, check: Callable[..., list[str]]) -> None:
    (root / "README.md").write_text("It is 3 x and 4 x as fast.\n")
    (root / "docs" / "page.md").write_text("It is 3 x as fast.\n")  # not a guarded page
    expected = "README.md:1: outside of the marks: 3 x; 4 x"
    assert check("--check") == [expected]
    assert check("--claims") == [expected]
    assert check() == []


def test_the_command_runs_as_a_module(root: Path) -> None:
    (root / "README.md").write_text("It is 3 x as fast.\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.figures", "--check", "--root", str(root)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "README.md:1" in done.stdout
