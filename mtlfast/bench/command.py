"""The command ``mtlfast bench``: from its arguments to table, file and plots."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlfast.bench.rows import Report
    from mtlfast.bench.setting import Setting

__all__ = ["add_arguments", "main"]

REQUIRES = {"matplotlib": "matplotlib", "tqdm": "tqdm"}
BAR = "{percentage:3.0f}% |{bar:24}| {elapsed}; {desc}"
OUT = Path("bench_results") / "bench.json"
DTYPES = ("float32", "float64", "bfloat16", "float16")

EXAMPLE = """\
def make_step():
    model = Net()  # on the device that you choose
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = itertools.cycle(loader)

    def losses():
        x, depth, labels = next(batches)
        out = model(x)
        return {"depth": l1_loss(out.depth, depth), "labels": cross_entropy(out.labels, labels)}

    return optimizer, losses
"""
"""What ``mine`` asks for."""
EPILOG = f"""\
for example, 'mtlfast bench mine --import mypkg.train:make_step' with, in mypkg/train.py,

{textwrap.indent(EXAMPLE, "  ")}
The losses are a list, a tuple, a dict of names or a tensor [K]. With 'return model, optimizer,
losses' the model's buffers are restored too; where losses() returns (losses, features), 'features='
is measured. See docs/benchmarks.md.
"""


class UsageError(ValueError):
    """An argument that the user must change; the message is one line and names the option."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``mtlfast bench``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # leaves the example as it is
    parser.description = textwrap.fill(parser.description or "", 80)
    parser.epilog = EPILOG
    parser.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help="kernels, solvers, step, memory, quality (default: all but quality), or mine",
    )
    parser.add_argument("--quick", action="store_true", help="two minutes a suite, fewer cases")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"write the results here, as JSON; default: {OUT}"
    )
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="draw them here; default: beside FILE"
    )
    parser.add_argument(
        "--tasks", type=_numbers, metavar="K,...", help="numbers of tasks; default: each figure's"
    )
    parser.add_argument(
        "--params",
        type=_numbers,
        metavar="P,...",
        help="numbers of shared parameters, as 1e6; default: each figure's",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--threads", type=_number, metavar="N", help="default: torch's own")
    parser.add_argument(
        "--peers", type=_words, metavar="A,...", help="all (the default), none, or some of them"
    )
    parser.add_argument(
        "--budget", type=_seconds, metavar="SECONDS", help="for each suite; default: what it needs"
    )
    parser.add_argument(
        "--passes", type=_number, default=5, metavar="N", help="visits of every case; default: 5"
    )
    parser.add_argument(
        "--only",
        type=_pattern,
        metavar="REGEX",
        help="cases as the progress bar names them, such as 'step/time: MLP, K = 8'; default: all",
    )
    parser.add_argument(
        "--malloc",
        choices=("keep", "default"),
        help="whether the process keeps the memory that is freed, or the C library decides; "
        "default: keep, and for mine: default",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OLD",
        help="then print what moved beyond the noise since these results; suites: those of OLD",
    )
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="measure nothing, take these results"
    )
    mine = parser.add_argument_group("mine", "the engines and some methods on your own model")
    mine.add_argument(
        "--import",
        dest="make_step",
        metavar="MODULE:FUNCTION",
        help="or FILE.py:FUNCTION; returns (optimizer, losses), and losses() the K losses of the "
        "next batch; see below",
    )
    mine.add_argument(
        "--methods", type=_words, metavar="A,...", help="names as in 'mtlfast methods'"
    )
    mine.add_argument(
        "--batches",
        type=_number,
        metavar="N",
        help="of the statistics of conflict; default: 50, quick: 10",
    )


def main(options: argparse.Namespace) -> int:
    """Runs ``mtlfast bench``; returns the exit code."""
    from mtlfast.jobs import require_packages

    try:
        require_packages(REQUIRES, "mtlfast bench", extra="bench")
        if options.suites == ["mine"]:
            from mtlfast.bench import mine

            setting = _setting(options)
            setting.prepare()
            return mine.main(options, setting)
        old = None if options.compare is None else _read(options.compare, "compare")
        out = options.out or (OUT if options.read is None else None)
        report = _report(options, old, out)
        print("\n".join(report.table()))
        if out is not None:
            report.write(out)
            print(f"\nwrote {out}")
        folder = options.plots or (out.parent if out is not None else None)
        if folder is not None:
            from mtlfast.bench import plots

            prefix = f"{out.stem}-" if out is not None else ""
            for path in plots.draw(report, folder, prefix=prefix):
                print(f"wrote {path}")
        if old is not None:
            from mtlfast.bench import compare

            print("\n".join(["", *compare.describe(old, report)]))
    except UsageError as error:
        print(f"mtlfast bench: error: {error}", file=sys.stderr)
        return 2
    except (ModuleNotFoundError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            raise  # by an import, not by require_packages
        print(f"mtlfast bench: error: {error}", file=sys.stderr)
        return 1
    return 0


def _report(options: argparse.Namespace, old: Report | None, out: Path | None) -> Report:
    if options.read is not None:
        return _read(options.read, "read")
    from mtlfast.bench import suites

    names = list(dict.fromkeys(options.suites))
    if not names and old is not None:
        names = list(dict.fromkeys(r.figure.partition("/")[0] for r in old.rows))
    names = names or [name for name in suites.SUITES if name != "quality"]
    for name in names:
        if name not in suites.SUITES:
            raise UsageError(
                f"SUITE: expected some of {', '.join(suites.SUITES)}, or mine alone, found {name!r}"
            )
    setting = _setting(options)
    if setting.only:
        names = [name for name in names if suites.cases(name, setting)]
        if not names:
            raise UsageError(f"--only: expected to find a case, found none by {setting.only!r}")
    for folder in (path for path in (out and out.parent, options.plots) if path is not None):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # rather now than after an hour
            pass
    return _run(names, setting, out)


def _run(names: Sequence[str], setting: Setting, out: Path | None) -> Report:
    """Runs the suites; the file has those that are done, should a later one be interrupted."""
    from tqdm import tqdm

    from mtlfast.bench import suites
    from mtlfast.bench.environment import environment
    from mtlfast.bench.rows import Report

    setting.prepare()
    minutes: dict[str, str] = {}  # that each suite took
    report = Report({**environment(), "minutes": minutes}, setting.describe())
    interval = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(total=0, bar_format=BAR, mininterval=interval, dynamic_ncols=True) as bar:
        progress = Bar(bar)
        for name in names:
            report.titles |= suites.titles(name)
            start = time.monotonic()
            report.add(*suites.run(name, setting, progress))
            minutes[name] = f"{(time.monotonic() - start) / 60:.1f}"
            if out is not None:
                report.write(out)
        progress.finish()
    return report


class Bar:
    """The progress bar."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.begun = False

    def expect(self, count: int) -> None:
        """So many more steps will come."""
        self.bar.total += count
        self.bar.refresh()

    def step(self, doing: str) -> None:
        """The one before is done, the next one begins."""
        if self.begun:
            self.bar.update()
        self.begun = True
        # A log file gets a line now and then, a terminal every step.
        self.bar.set_description_str(doing, refresh=sys.stderr.isatty())

    def finish(self) -> None:
        """All are done."""
        self.bar.set_description_str("done", refresh=False)
        self.bar.update(self.bar.total - self.bar.n)


def _setting(options: argparse.Namespace) -> Setting:
    import torch

    from mtlfast.bench import setting
    from mtlfast.bench.peers import names

    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise UsageError(f"--device: expected cpu or cuda, found {options.device!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: expected a device that is there, found 'cuda' without a GPU")
    peers = None if options.peers in (None, ("all",)) else options.peers
    if peers == ("none",):
        peers = ()
    for peer in peers or ():
        if peer not in names():
            raise UsageError(f"--peers: expected some of {', '.join(names())}, found {peer!r}")
    return setting.Setting(
        tasks=options.tasks,
        params=options.params,
        dtype=getattr(torch, options.dtype),
        device=device,
        threads=options.threads or torch.get_num_threads(),
        peers=peers,
        quick=options.quick,
        budget=options.budget or (setting.QUICK_BUDGET if options.quick else None),
        passes=1 if options.quick else options.passes,
        only=options.only or "",
        malloc=options.malloc or ("default" if options.suites == ["mine"] else "keep"),
    )


def _read(path: Path, option: str) -> Report:
    from mtlfast.bench.rows import Report

    try:
        return Report.read(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--{option}: {error}") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_number(word) for word in _words(text))


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"expected a regular expression, found {text!r}: {error}"
        ) from None
    return text


def _seconds(word: str) -> float:
    try:
        found = float(word)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, found {word!r}")
    return found


def _number(word: str) -> int:
    """Reads ``100000`` as well as ``1e5``."""
    try:
        found = float(word)
    except ValueError:
        found = 0.0
    if found < 1 or found != int(found):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {word!r}")
    return int(found)
