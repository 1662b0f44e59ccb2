"""The command ``mtlfast``: demo, bench, doctor, methods.

Everything heavy is imported inside the sub-commands, so that ``--help`` and a wrong argument
answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mtlfast.bench import command

if TYPE_CHECKING:
    from mtlfast.weighting import Weighting

__all__ = ["main"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        message = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        arguments: The words after ``mtlfast``; default: those of this process.

    Returns:
        The exit code.

    Raises:
        SystemExit: As argparse does, for ``--help`` (0) and words that it cannot read (2).
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("\nmtlfast: interrupted", file=sys.stderr)
        return 130


def _parser() -> Parser:
    parser = Parser(
        prog="mtlfast",
        description="Fast gradient balancing for multi-task learning in PyTorch.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.set_defaults(run=lambda options: _no_command(parser, options))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        allow_abbrev=False,
        help="train a small job with several methods and show the difference",
        description="Trains a job with several methods and seeds on the CPU; ends with a table, "
        "OUT/summary.json, the table again as OUT/JOB.md, and the figure OUT/JOB.png.",
    )
    demo.add_argument(
        "job",
        nargs="?",
        default="multidigits",
        metavar="JOB",
        help="multidigits (the default), burgers, two_objectives or two_objectives_cagrad",
    )
    demo.add_argument("--seeds", type=_count, default=3, metavar="N", help="runs each; default: 3")
    demo.add_argument(
        "--methods",
        type=_names,
        metavar="A,B,...",
        help="names as in 'mtlfast methods', or all; default: the job's own choice",
    )
    demo.add_argument(
        "--steps", type=_count, metavar="N", help="training steps; default: the job's number"
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("demo_results"),
        metavar="FOLDER",
        help="where the results go; default: demo_results",
    )
    demo.add_argument(
        "--threads", type=_count, metavar="N", help="CPU threads; default: the job's number"
    )
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        allow_abbrev=False,
        help="measure the speed, memory and quality, beside other libraries'",
        description="Measures and prints a table. Contestants take turns, and ratios are formed "
        "within each turn; the machine's own limit is measured in the same turns.",
    )
    command.add_arguments(bench)
    bench.set_defaults(run=command.main)

    doctor = commands.add_parser(
        "doctor",
        allow_abbrev=False,
        help="show versions, backend and what is missing",
        description="Shows versions, backend, ISA and CUDA state, and the command that mends what "
        "is missing. The exit code is 0 if the native backend runs, else 1.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")
    doctor.set_defaults(run=_doctor)

    methods = commands.add_parser(
        "methods",
        allow_abbrev=False,
        help="list the methods",
        description="Lists the methods: name, class, family, what it needs, paper.",
    )
    methods.set_defaults(run=_methods)
    return parser


def _no_command(parser: Parser, options: argparse.Namespace) -> int:
    if not options.version:
        parser.error(
            "COMMAND: expected one of demo, bench, doctor, methods, found none (try --help)"
        )
    from mtlfast import ops

    print(f"mtlfast {ops.describe()['mtlfast']}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from mtlfast import demo

    try:
        demo.run(
            options.job,
            seeds=options.seeds,
            methods=options.methods,
            steps=options.steps,
            out=options.out,
            threads=options.threads,
        )
    except demo.UsageError as error:
        print(f"mtlfast demo: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is not None:  # raised by an import, not by require_packages
            raise
        print(f"mtlfast demo: error: {error}", file=sys.stderr)
        return 1
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import json

    from mtlfast import doctor

    facts = doctor.examine()
    print(json.dumps(facts, indent=2) if options.json else doctor.describe(facts))
    return 0 if facts["healthy"] else 1


def _methods(_: argparse.Namespace) -> int:
    from mtlfast.demo.table import table
    from mtlfast.weighting import REGISTRY

    rows = [
        [name, cls.__name__, cls.family, _needs(cls), cls.paper]
        for name, cls in sorted(REGISTRY.items())
    ]
    print(table(["name", "class", "family", "needs", "paper"], rows))
    return 0


def _needs(method: type[Weighting]) -> str:
    from mtlfast.weighting import DTP, ColumnWise

    needs = ["Gramian"] * method.needs_gramian + ["losses"] * method.needs_losses
    needs += ["task gradients"] * issubclass(method, ColumnWise)
    needs += ["KPIs"] * issubclass(method, DTP) + ["buffers"] * method.keeps_buffers
    needs += [f"{method.num_batches} batches"] * (method.num_batches > 1)
    return ", ".join(needs) or "nothing"


def _count(word: str) -> int:
    """Converts an argument to an integer of at least 1."""
    if not word.isascii() or not word.isdigit() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {word!r}")
    return int(word)


def _names(word: str) -> list[str]:
    """Splits a comma-separated list."""
    return [name.strip() for name in word.split(",") if name.strip()]
