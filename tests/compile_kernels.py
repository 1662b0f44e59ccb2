"""Compiles every kernel of csrc/kernels, without a GPU; prints a table, and fails where one fails.

    python tests/compile_kernels.py nvcc [ARCH ...]   all groups, warnings are errors, no spills
    python tests/compile_kernels.py nvrtc [ARCH]      one by one, as at run time with CuPy
    python tests/compile_kernels.py images            nothing: looks into the installed package

Architectures are ten times the compute capability. Two compilers run at a time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from kernel_names import CSRC, in_machine_code, in_text

ARCHS = (75, 80, 90, 100, 120)
JOBS = 2
# A few spilled words cost little where a warp works in shared memory or waits for tensor cores.
# What up to 12 tasks use must not spill.
MAY_SPILL = re.compile(r"mtlfast_solve_|mtlfast_gramian_\w+_(k24|k32|k40|k48|k64|pairs)_")


def spills(report: str) -> dict[str, int]:
    """Bytes that each function spills, from what ``ptxas -v`` says."""
    found = re.findall(
        r"Function properties for (\w+)\s+\d+ bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads",
        report,
    )
    return {name: int(stores) + int(loads) for name, stores, loads in found}


def registers(report: str) -> int:
    """The most that any kernel uses."""
    return max((int(used) for used in re.findall(r"Used (\d+) registers", report)), default=0)


def by_nvcc(nvcc: str, group: str, arch: int) -> tuple[str, list[str]]:
    """Compiles a group; returns a line of the table, and what is wrong."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.cubin"
        command = [nvcc, "-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v"]
        command += [f"-DMTLFAST_GROUP_{group}", f"-arch=sm_{arch}", "-cubin", "-o", str(image)]
        command.append(str(CSRC / "kernels" / "kernels.cu"))
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        report = process.stdout + process.stderr
        if process.returncode != 0:
            return f"{group:<12}sm_{arch:<5}failed", [f"{group} for sm_{arch}:\n{report}"]
        names = in_machine_code(image.read_bytes())
    wrong = []
    if names != in_text()[group]:
        wrong.append(f"{group} for sm_{arch}: expected {in_text()[group]}, found {names}")
    spilled = {name: count for name, count in spills(report).items() if count}
    if not spills(report):
        wrong.append(f"{group} for sm_{arch}: ptxas reported nothing")
    wrong += [
        f"{name} spills {count} bytes on sm_{arch}"
        for name, count in spilled.items()
        if not MAY_SPILL.search(name)
    ]
    line = f"{group:<12}sm_{arch:<5}{len(names):>4} kernels  at most {registers(report):>3} "
    line += f"registers  {len(spilled):>3} spill  {time.monotonic() - start:6.1f} s"
    return line, wrong


def run_nvcc(archs: list[int]) -> list[str]:
    """All groups for those of the architectures that this nvcc has."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("nvcc was not found")
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    known = [int(arch) for arch in re.findall(r"sm_(\d+)", listed.stdout)]
    tasks = [(nvcc, group, arch) for group in in_text() for arch in archs if arch in known]
    wrong = []
    with ThreadPoolExecutor(JOBS) as pool:
        for line, found in pool.map(lambda task: by_nvcc(*task), tasks):
            print(line, flush=True)
            wrong += found
    return wrong


def by_nvrtc(name: str, arch: int) -> tuple[str, float]:
    """Compiles one kernel through the package; returns what is wrong, and the seconds."""
    from mtlfast.kernels import nvrtc

    start = time.monotonic()
    found = in_machine_code(nvrtc.image(name, arch))
    return "" if found == [name] else f"{name}: the image holds {found}", time.monotonic() - start


def run_nvrtc(arch: int) -> list[str]:
    """Every kernel, into a cache of its own."""
    from mtlfast.kernels import nvrtc

    names = [name for group in in_text().values() for name in group]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MTLFAST_CACHE_DIR"] = folder
        with ProcessPoolExecutor(JOBS) as pool:
            answers = list(pool.map(by_nvrtc, names, [arch] * len(names)))
        kept = len(list(Path(folder).iterdir()))
    seconds = [taken for _, taken in answers]
    print(
        f"NVRTC {nvrtc.version()}, sm_{arch}: {len(names)} kernels, {kept} kept in the cache; "
        f"{sum(seconds) / len(names):.1f} s each, {max(seconds):.1f} s at most"
    )
    wrong = [message for message, _ in answers if message]
    return wrong if kept == len(names) else [*wrong, f"the cache holds {kept} files"]


def check_images() -> list[str]:
    """Every kernel must be in the package, for each of its architectures."""
    from mtlfast.kernels import images

    found = images.find()
    if found is None:
        return ["mtlfast was built without CUDA kernels"]
    print(f"{found.folder}: {found.describe()}, nvcc {found.nvcc}")
    wrong = []
    for names in in_text().values():
        for name in names:
            wrong += [
                f"{name} is missing for sm_{arch}"
                for arch in found.cubins
                if name not in in_machine_code(found.image(name, arch))
            ]
            if found.ptx and f".entry {name}(".encode() not in found.image(name, found.ptx + 10):
                wrong.append(f"{name} is missing for compute_{found.ptx}")
    return wrong


def main(words: list[str]) -> int:
    """Runs one command line."""
    archs = [int(word) for word in words[1:]]
    start = time.monotonic()
    if words[:1] == ["nvcc"]:
        wrong = run_nvcc(archs or list(ARCHS))
    elif words[:1] == ["nvrtc"]:
        wrong = run_nvrtc(archs[0] if archs else 90)
    elif words == ["images"]:
        wrong = check_images()
    else:
        sys.exit(__doc__)
    print(f"{time.monotonic() - start:.0f} s in total")
    for message in wrong:
        print(message, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
