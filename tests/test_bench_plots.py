"""The pictures of ``mtlfast bench``: which are drawn, and the digests that they carry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from mtlfast.bench import plots
from mtlfast.bench.plots import bars, lines, peers, style
from mtlfast.bench.rows import Label, Report, Row

MODEL: dict[str, Label] = {"model": "MLP", "K": 4, "contestant": "mtlfast"}


def measured(figure: str, case: str, p50: float, unit: str = "x", **more: object) -> Row:
    return Row(figure, case, unit, p50, 0.9 * p50, 1.1 * p50, 20, **more)  # type: ignore[arg-type]


def report() -> Report:
    """A few rows for every picture."""
    rows = [
        measured("kernels/floor", f"K = {k}", ratio, target=1.2, labels={"K": k, "P": 1000})
        for k, ratio in ((2, 1.1), (8, 1.4))
    ]
    rows += [
        measured(
            "kernels/growth", f"P = {p}, {name}", p * factor, "ms",
            labels={"K": 4, "P": p, "contestant": name},
        )
        for p in (1000, 100_000)
        for name, factor in (("mtlfast", 2e-5), ("floor", 1e-5))
    ]  # fmt: skip
    rows += [
        measured("kernels/tensors", f"{n} tensors", n * 1e-3, "ms", labels={"K": 4, "tensors": n})
        for n in (1, 100)
    ]
    rows += [
        measured("kernels/peers", "PCGrad", 2.0, versus="TorchJD"),
        measured("kernels/peers", "CAGrad", 0.8, versus="plain"),
        Row("kernels/peers", "MGDA", "x", versus="plain", detail="failed"),
        measured("solvers/peers", "CAGrad", 40.0, versus="TorchJD"),
    ]
    rows += [
        measured(figure, f"MLP, {engine}", ratio, labels={**MODEL, "engine": engine})
        for figure in ("memory/over", "step/time")
        for engine, ratio in (("stored", 5.0), ("streaming", 1.1))
    ]
    rows += [
        measured("step/breakdown", f"MLP, {part}", ms, "ms", labels={**MODEL, "part": part})
        for part, ms in (("whole", 8.1), ("forward", 3.0), ("backwards", 5.0), ("rest", -0.1))
    ]
    return Report({"cpu": "A CPU", "commit": "0123456789abcdef"}, {"threads": 2}, rows=rows)


NAMES = [
    "floor", "growth", "tensors", "peers-kernels", "peers-solvers", "engines", "memory", "breakdown"
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("plots")
    paths = plots.draw(report(), found / "made", prefix="cpu-")
    assert [path.name for path in paths] == [f"cpu-{name}.png" for name in NAMES]
    return found / "made"


def test_every_picture_carries_the_digest_of_its_rows(folder: Path) -> None:
    found = {name: plots.digest_of(folder / f"cpu-{name}.png") for name in NAMES}
    assert found == plots.digests(report())
    assert len(set(found.values())) == len(NAMES)


def test_pictures_have_a_reasonable_size(folder: Path) -> None:
    for name in NAMES:
        with Image.open(folder / f"cpu-{name}.png") as image:
            assert 600 < image.width < 4000, name
            assert 250 < image.height < 4000, name
            assert len(image.convert("L").getcolors(256) or []) > 2, name


@pytest.mark.parametrize(
    "change",
    [{"p50": 1.11}, {"p80": 1.3}, {"target": 1.3}, {"labels": {"K": 3, "P": 1000}}],
)
def test_another_digest_for_other_rows(change: dict[str, object]) -> None:
    before, after = report(), report()
    after.rows[0] = replace(after.rows[0], **change)  # type: ignore[arg-type]
    old, new = plots.digests(before), plots.digests(after)
    assert old.pop("floor") != new.pop("floor")
    assert old == new


def test_what_no_picture_shows_is_not_in_the_digest() -> None:
    changed = report()
    changed.rows[0] = replace(changed.rows[0], detail="other words", others=0.5)
    changed.add(measured("kernels/unknown", "more", 3.0))
    assert plots.digests(changed) == plots.digests(report())


def test_the_digest_is_the_same_after_a_file(tmp_path: Path) -> None:
    report().write(tmp_path / "cpu.json")
    assert plots.digests(Report.read(tmp_path / "cpu.json")) == plots.digests(report())


def test_no_rows_no_picture(tmp_path: Path) -> None:
    assert plots.draw(Report(), tmp_path / "none") == []
    failed = [replace(r, p50=None, p20=None, p80=None) for r in report().rows]
    assert plots.draw(Report(rows=failed), tmp_path / "none") == []
    unlabelled = [Row("kernels/floor", "K = 4", "x", 1.2), Row("memory/over", "MLP", "x", 2.0)]
    assert plots.draw(Report(rows=unlabelled), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_some_of_the_pictures(tmp_path: Path) -> None:
    assert plots.draw(report(), tmp_path, names=["memory"]) == [tmp_path / "memory.png"]


def test_a_picture_of_something_else_has_no_digest(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    assert plots.digest_of(tmp_path / "other.png") is None


def test_the_colours_say_who_is_ahead() -> None:
    (plot, _) = peers.plots(report())
    figure = plot.draw(plot.rows(report()), report())
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["TorchJD", "plain"]
    dots = {
        name: [line.get_color() for line in axes.lines if line.get_marker() in ("o", "s")]
        for name, axes in panels.items()
    }
    assert dots == {"TorchJD": [style.AHEAD], "plain": [style.BEHIND]}
    texts = [text.get_text() for text in panels["plain"].texts]
    assert "not measured" in texts


def test_the_best_modes_alone_where_there_are_many_rows() -> None:
    modes = [
        measured("step/peers", f"{i}, {mode}", x, versus="TorchJD", labels={"K": i, "mode": mode})
        for i in range(25)
        for mode, x in (("chunks", 3.0), ("one chunk", 2.0 + 2 * (i % 2)), ("best", 1.0))
    ]
    modes[3] = replace(modes[3], p50=None)  # K = 1, chunks
    (plot,) = peers.plots(Report(rows=modes))
    found = [r.labels["mode"] for r in plot.rows(Report(rows=modes))]
    assert found == ["one chunk", "one chunk", *(("one chunk", "chunks") * 12)[:-1]]
    few = Report(rows=modes[:6])
    assert plot.rows(few) == modes[:6]


def test_the_floor_is_a_line_of_its_own() -> None:
    found = report()
    figure = lines.GROWTH.draw(lines.GROWTH.rows(found), found)
    (axes,) = figure.axes
    labels = {str(line.get_label()): line for line in axes.lines}
    assert list(labels) == ["mtlfast", "floor"]
    assert np.asarray(labels["floor"].get_ydata()).tolist() == [0.01, 1.0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylabel() == "ms"


def test_the_parts_stand_for_the_whole() -> None:
    found = report()
    rows = bars.BREAKDOWN.rows(found)
    assert [r.labels["part"] for r in rows] == ["forward", "backwards", "rest"]
    (axes,) = bars.BREAKDOWN.draw(rows, found).axes
    widths = [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert widths == [3.0, 5.0, 0.0]


def test_the_footer_names_machine_and_commit() -> None:
    assert style.footer(report()) == "A CPU · 2 threads · commit 0123456789"
    changed = report()
    changed.environment |= {"modified": True, "gpu": "A GPU", "date": "2026-01-02T03:04:05"}
    changed.setting["device"] = "cuda"
    assert style.footer(changed) == "A GPU · 2 threads · commit 0123456789, modified · 2026-01-02"
