"""Builds, tests, checks and measures on a machine with a GPU, in one go and in a given time.

Needs Python >= 3.10 with a CUDA build of torch, nvcc, cmake, ninja and pybind11, and nothing from a
network. Each part has a time limit of its own, and the next one runs whatever became of it. The
exit code is 0 where all parts that were asked for went well, 2 where there is no GPU, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("build", "test", "sanitize", "bench")
LIMITS = {"build": 200.0, "test": 150.0, "sanitize": 80.0, "bench": 235.0}
"""Seconds that a part may take at most."""

NEEDED = ("torch", "numpy", "setuptools", "pybind11", "pytest", "hypothesis", "sklearn")
LARGEST_LOG = 8 << 20  # bytes
SANITIZED = (
    "test_gramian_and_combine and cuda and float32 and (3 or 8)",
    "test_layouts and cuda and bfloat16",
    "test_tables and cuda and 12-600",
    "test_certified and cuda and random and (pcgrad or cagrad_c0 or nash)",
)
"""What runs under compute-sanitizer: selections of pytest."""


@dataclass
class Outcome:
    """How one part ended."""

    part: str
    ok: bool
    seconds: float
    says: str


@dataclass
class Check:
    """One run: where it writes, and until when."""

    out: Path
    fibers: bool
    deadline: float
    packages: Path | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        paths = [str(ROOT), *([str(self.packages)] if self.packages else [])]
        known = [path for path in (os.environ.get("PYTHONPATH"),) if path]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, *known]),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4"),
        }

    def run(self, command: Sequence[str], log: Path, limit: float, **extra: str) -> str:
        """Runs a command and adds to the log; "" where it went well, else what went wrong."""
        limit = min(limit, self.deadline - time.monotonic())
        if limit < 5:
            return "no time was left"
        with log.open("ab") as file:
            file.write(f"$ {' '.join(command)}\n".encode())
            file.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**self.environment(), **extra},
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                _end(process)
                return f"was ended after {limit:.0f} s"
        return "" if code == 0 else f"exit code {code}"

    def part(self, name: str, body: Callable[[Path, float], str]) -> None:
        """Runs one part; what it prints goes to its log, and the end of that to the screen."""
        log = self.out / f"{name}.log"
        start = time.monotonic()
        try:
            wrong = body(log, LIMITS[name])
        except OSError as error:
            wrong = str(error)
        seconds = time.monotonic() - start
        self.outcomes.append(Outcome(name, not wrong, seconds, wrong or "ok"))
        print(f"== {name}: {wrong or 'ok'} ({seconds:.0f} s)", flush=True)
        if log.exists():
            _shorten(log)
            lines = log.read_text(errors="replace").splitlines()
            print("\n".join(lines[-(40 if wrong else 6) :]), flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a process and its children to end, and makes them."""
    for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return


def _shorten(log: Path) -> None:
    """Cuts the middle out of a log that is too large to be brought home."""
    text = log.read_bytes()
    if len(text) > LARGEST_LOG:
        half = LARGEST_LOG // 2
        log.write_bytes(text[:half] + b"\n... cut ...\n" + text[-half:])


def build(check: Check, log: Path, limit: float) -> str:
    """The extension in place, with this machine's Python, for the GPU at hand."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if check.fibers:
        return check.run(command, log, limit)
    # One architecture is built in a fraction of the time of all.
    archs = os.environ.get("MTLFAST_CUDA_ARCHS") or capability(check)
    return check.run(command, log, limit, MTLFAST_CUDA="on", MTLFAST_CUDA_ARCHS=archs)


def capability(check: Check) -> str:
    """The GPU's, such as 9.0."""
    code = "import torch; print('%d.%d' % torch.cuda.get_device_capability())"
    return subprocess.check_output(
        [sys.executable, "-c", code], env=check.environment(), text=True
    ).strip()


def pytest(check: Check) -> list[str]:
    """The tests on the device, or the same ones on fibers."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_cuda_*.py"))
    marked = "not cuda" if check.fibers else "cuda"
    # A warning of a library that is new here is no failure.
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", "-m", marked]
    options += ["-k", "fibers"] if check.fibers else []
    return [sys.executable, "-m", "pytest", *options, *files]


def test(check: Check, log: Path, limit: float) -> str:
    return check.run([*pytest(check), "--durations=15"], log, limit)


def sanitize(check: Check, log: Path, limit: float) -> str:
    """Memory errors and races, on few and small cases: each kernel runs many times slower."""
    found = shutil.which("compute-sanitizer")
    if check.fibers:
        return ""
    places = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "compute-sanitizer"]
    found = found or next((str(place) for place in places if place.exists()), None)
    if found is None:
        return "compute-sanitizer was not found"
    wrong = []
    end = time.monotonic() + limit
    chosen = " or ".join(f"({selection})" for selection in SANITIZED)
    for tool in ("memcheck", "racecheck"):
        # Calls that torch makes in order to see them fail are no errors.
        command = [found, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
        if tool == "racecheck":
            command += ["--racecheck-report", "analysis"]
        # torch's pool would hide what is beyond a tensor's end.
        says = check.run(
            [*command, *pytest(check), "-x", "-k", chosen],
            log,
            min(limit * 0.6, end - time.monotonic()),
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        if says:
            wrong.append(f"{tool}: {says}")
    return "; ".join(wrong)


def bench(check: Check, log: Path, limit: float) -> str:
    """The measurements; the script itself stops in time and writes what it has."""
    limit = min(limit, check.deadline - time.monotonic())
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(check.out)]
    command += ["--seconds", f"{max(limit - 15, 1):.0f}", *(["--fibers"] if check.fibers else [])]
    return check.run(command, log, limit)


BODIES = {"build": build, "test": test, "sanitize": sanitize, "bench": bench}


def install(check: Check, wheels: Path, folder: Path) -> str:
    """Unpacks carried wheels to a folder of their own, without a network."""
    found = sorted(str(path) for path in wheels.glob("*.whl"))
    if not found:
        return f"{wheels} holds no wheels"
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, *found]
    check.packages = folder
    return check.run(command, check.out / "build.log", 60)


def missing(check: Check) -> str:
    """What keeps this machine from it, in a sentence; "" where nothing does."""
    wanted = [name for name in NEEDED if not check.fibers or name != "hypothesis"]
    code = (
        "import importlib.util as u, sys\n"
        f"lost = [n for n in {wanted!r} if u.find_spec(n) is None]\n"
        "if lost: sys.exit('these Python packages are missing: ' + ', '.join(lost))\n"
        "import torch\n"
        f"if not {check.fibers!r} and not torch.cuda.is_available():\n"
        "    sys.exit(f'there is no GPU: torch {torch.__version__} finds none')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=check.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["torch cannot be imported"])[-1]
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON, table and logs")
    parser.add_argument("--parts", default=" ".join(PARTS), help="some of: " + ", ".join(PARTS))
    parser.add_argument("--fibers", action="store_true", help="without a GPU: try the scripts")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the machine lacks")
    parser.add_argument("--seconds", type=float, default=530, help="for everything together")
    options = parser.parse_args()
    parts = options.parts.replace(",", " ").split()
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, found {', '.join(unknown)}")

    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in (*(f"{part}.log" for part in PARTS), "gpu.json", "gpu.txt", "check.json"):
        (out / old).unlink(missing_ok=True)
    check = Check(out, options.fibers, time.monotonic() + options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        if options.wheels is not None:
            wrong = install(check, options.wheels.resolve(), Path(folder))
            if wrong:
                print(f"gpu-check: the wheels were not installed ({wrong}); going on without")
        wrong = missing(check)
        if wrong:
            print(f"gpu-check: {wrong}. (FIBERS=1 tries the scripts without a GPU.)")
            return 2
        for name in PARTS:
            if name in parts:
                check.part(name, partial(BODIES[name], check))
    (out / "check.json").write_text(
        json.dumps([vars(outcome) for outcome in check.outcomes], indent=1) + "\n"
    )
    table = out / "gpu.txt"
    if table.exists():
        print(table.read_text())
    for outcome in check.outcomes:
        print(f"{outcome.part:<9} {outcome.seconds:5.0f} s  {outcome.says}")
    return 0 if all(outcome.ok for outcome in check.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
