"""``python -m benchmarks.gpu --out folder``: measures, and writes gpu.json and gpu.txt there.

After every section both files hold what was measured so far. ``--fibers`` tries the script on a
machine without a GPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.gpu.machine import Fibers, Gpu
from benchmarks.gpu.sections import Bench
from mtlfast import ops
from mtlfast.bench.environment import environment, version_of
from mtlfast.bench.rows import Report, Row

TESTS = Path(__file__).resolve().parents[2] / "tests"


def run(bench: Bench, out: Path, seconds: float) -> int:
    """Runs section after section until the time is up; returns how many failed."""
    report = bench.report
    report.environment = {
        **environment(),
        **bench.gpu.describe(),
        "triton": version_of("triton"),
    }
    end, failed = time.monotonic() + seconds, 0
    for figure, section in bench.sections():
        start = time.monotonic()
        if start > end:
            report.add(Row(figure, repr(section)[-60:], "x", detail="the time was up"))
            continue
        try:
            section()
        except Exception as error:
            failed += 1
            traceback.print_exc()
            says = f"{type(error).__name__}: {error}".splitlines()[0]
            report.add(Row(figure, "failed", "x", detail=says))
        bench.gpu.free()
        print(f"{time.monotonic() - start:6.1f} s  {figure}", flush=True)
        report.write(out / "gpu.json")
        head = [f"{key}: {value}" for key, value in bench.gpu.describe().items()]
        (out / "gpu.txt").write_text("\n".join([*head, *report.table()]) + "\n")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.txt")
    parser.add_argument("--seconds", type=float, default=220, help="start no section after that")
    parser.add_argument("--fibers", action="store_true", help="without a GPU: try the script")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if options.fibers:
            sys.path.insert(0, str(TESTS))
            fibers = importlib.import_module("fiber_gpu").fibers

            stack.enter_context(fibers())
        elif not torch.cuda.is_available():
            print("benchmarks.gpu: there is no GPU (--fibers tries the script without one)")
            return 2
        stack.enter_context(ops.use_backend("native"))
        bench = Bench(Fibers() if options.fibers else Gpu(), Report())
        failed = run(bench, options.out, options.seconds)
    print("\n".join(bench.report.table()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
