"""The demo: its data, its files, its table, and that jobs and methods plug in."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from line_job import LineTrial
from matplotlib.image import imread
from sklearn.datasets import load_digits
from torch import nn

import mtlfast
from mtlfast import jobs
from mtlfast.cli import main
from mtlfast.demo.train import lowest_cosine
from mtlfast.jobs import Job, MultiDigits
from mtlfast.weighting import REGISTRY

METHODS = ["sum", "pcgrad", "cagrad", "gradnorm"]


@pytest.fixture
def new_method() -> Iterator[str]:
    class Halves(mtlfast.Mean):
        name = "halves"

    yield Halves.name
    del REGISTRY["halves"]


@pytest.fixture(scope="module")
def digits() -> MultiDigits:
    return MultiDigits()


def picture(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.asarray(imread(path), np.float32)


def test_demo_writes_table_summary_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    out = tmp_path / "deep" / "results"

    assert main(["demo", "--seeds", "1", "--steps", "30", "--out", str(out)]) == 0

    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary) == METHODS
    for entry in summary.values():
        assert set(entry) == {"worst_accuracy", "mean_accuracy", "ms_per_step"}
        (worst,), (mean,) = entry["worst_accuracy"], entry["mean_accuracy"]
        assert 0.0 <= worst <= mean <= 1.0
        assert 0.0 < entry["ms_per_step"] < 1e3
    image = picture(out / "multidigits.png")
    assert image.shape[0] > 500
    assert image.shape[1] > 1000
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 100

    printed = capsys.readouterr().out
    for word in ("equal weighting", "PCGrad", "CAGrad", "GradNorm", "worst-task accuracy"):
        assert word in printed
    facts = mtlfast.ops.describe()
    assert f"1 seed x 30 steps; {facts['backend']} backend" in printed
    assert f"torch {torch.__version__}" in printed
    assert "CAGrad(c=0.4" in printed
    assert "factor of 1" in printed


def test_published_accuracies(tmp_path: Path) -> None:
    """One seed within three standard deviations of the figures known from five."""
    assert main(["demo", "--seeds", "1", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    for method in METHODS:
        mean, deviation = MultiDigits.expected[method]
        assert deviation is not None
        assert summary[method]["worst_accuracy"][0] == pytest.approx(mean, abs=3 * deviation)


def test_runs_repeat(tmp_path: Path) -> None:
    for name in ("a", "b"):
        words = ["--seeds", "2", "--steps", "12", "--methods", "pcgrad", "--out"]
        assert main(["demo", *words, str(tmp_path / name)]) == 0
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text())["pcgrad"] for name in ("a", "b")
    )
    assert first["mean_accuracy"] == second["mean_accuracy"]
    assert first["mean_accuracy"][0] != first["mean_accuracy"][1]


def test_canvases_are_two_overlaid_scans(digits: MultiDigits) -> None:
    scans = load_digits()
    split = np.random.default_rng(0).permutation(1797)
    for pairs, pool, count, seed in (
        (digits.training_pairs(3), split[:1200], 20_000, 103),
        (digits.test_pairs, split[1200:], 4_000, 1),
    ):
        assert pairs.canvas.shape == (count, 96)
        assert pairs.canvas.dtype == torch.float32
        assert pairs.left.shape == pairs.right.shape == (count,)
        rng = np.random.default_rng(seed)
        left, right = (pool[rng.integers(0, len(pool), count)] for _ in range(2))
        assert np.array_equal(pairs.left, scans.target[left])
        assert np.array_equal(pairs.right, scans.target[right])
        for row in range(0, count, 97):
            canvas = pairs.canvas[row].reshape(8, 12).numpy() * 16
            one, two = scans.images[left[row]], scans.images[right[row]]
            assert np.array_equal(canvas[:, :4], one[:, :4])
            assert np.array_equal(canvas[:, 8:], two[:, 4:])
            assert np.array_equal(canvas[:, 4:8], np.maximum(one[:, 4:], two[:, :4]))


def test_trial_is_the_published_one(digits: MultiDigits) -> None:
    trial = digits.start(0)
    shapes = [tuple(p.shape) for group in trial.optimizer.param_groups for p in group["params"]]
    trunk = [(64, 96), (64,), (64, 64), (64,)]
    assert shapes == [*trunk, (10, 64), (10,), (10, 64), (10,)]
    assert [tuple(p.shape) for p in trial.shared_parameters] == trunk
    assert isinstance(trial.optimizer, torch.optim.Adam)
    assert trial.optimizer.defaults["lr"] == 1e-3
    batch = trial.draw_batch()
    assert batch.canvas.shape == (128, 96)
    losses = trial.losses(batch)
    assert tuple(losses) == digits.tasks
    balanced = MultiDigits(factor=1.0).start(0)
    plain = balanced.losses(balanced.draw_batch())
    assert torch.equal(losses["left"], plain["left"])
    assert torch.equal(losses["right"], 100 * plain["right"])
    other = digits.start(1)
    assert not torch.equal(other.losses(other.draw_batch())["left"], plain["left"])


def test_lowest_cosine() -> None:
    x = nn.Parameter(torch.tensor([0.0, 0.0]))
    unused = nn.Parameter(torch.zeros(3))
    losses = {"a": x[0], "b": 5 * x.sum(), "c": -2 * x[0] + 2 * x[1]}
    assert lowest_cosine(losses, [x, unused]) == pytest.approx(-math.sqrt(0.5))
    assert math.isnan(lowest_cosine({"a": x[0], "b": 0 * x[1]}, [x]))


def test_new_job_and_new_method_need_no_change(
    line_job: type[Job], new_method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["demo", line_job.name, "--methods", "all", "--seeds", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {new_method, *METHODS} <= set(summary)
    assert "constant" not in summary
    assert set(summary[new_method]) == {"error", "ms_per_step"}
    assert picture(tmp_path / "line.png").size
    printed = capsys.readouterr()
    assert "Halves" in printed.out
    assert "distance" in printed.out
    assert "2 seeds x 7 steps" in printed.out
    assert "Leaving out constant: the job gives no weights" in printed.err


def test_diverged_run_is_reported(
    line_job: type[Job],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LineTrial, "evaluate", lambda self: {"error": math.nan})
    assert main(["demo", line_job.name, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["sum"]["error"] == [None] * 3
    assert "diverged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["digits"],
            "expected one of burgers, line, multidigits, two_objectives, two_objectives_cagrad, ",
        ),
        (["--seeds", "0"], "--seeds: expected a whole number of at least 1, found '0'"),
        (["--seeds", "two"], "--seeds: expected a whole number of at least 1, found 'two'"),
        (["--steps", "-5"], "--steps: expected a whole number of at least 1, found '-5'"),
        (["--threads", "1.5"], "--threads: expected a whole number of at least 1, found '1.5'"),
        (["--methods", "sum,nope"], "found 'nope'"),
        (["--methods", ","], "--methods: expected all or some of "),
        (["line", "--methods", "constant"], "found 'constant': the job gives no weights"),
        (["line", "--methods", "mean"], "found 'mean': it has no mean"),
        (["--methods", "krum"], "found 'krum': it needs three tasks"),
        (["--sead", "1"], "unrecognized arguments: --sead"),
    ],
)
def test_wrong_arguments_get_one_line(
    words: list[str],
    message: str,
    line_job: type[Job],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_job, "unsupported", {"mean": "it has no mean"})
    code: object
    try:
        code = main(["demo", *words, "--out", str(tmp_path / "out")])
    except SystemExit as stop:  # argparse's own
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(("mtlfast demo: error: ", "mtlfast: error: "))
    assert message in error
    assert not (tmp_path / "out").exists()


def test_unwritable_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below"):
        assert main(["demo", "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("mtlfast demo: error: --out: expected a folder to write in, found ")
        assert error.count("\n") == 1
    (tmp_path / "summary.json").mkdir()
    words = ["--seeds", "1", "--steps", "1", "--methods", "sum", "--out", str(tmp_path)]
    assert main(["demo", *words]) == 2
    assert "--out: expected a folder to write in" in capsys.readouterr().err


def test_missing_package_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MultiDigits, "requires", {"no_such_module": "scikit-learn"})
    assert main(["demo", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "the demo needs scikit-learn: pip install 'mtlfast[demo]'" in error
    assert error.count("\n") == 1


def test_unknown_job() -> None:
    with pytest.raises(ValueError, match=r"job: expected one of .*multidigits.*, found 'x'"):
        jobs.get("x")
