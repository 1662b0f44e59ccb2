"""``mtlfast doctor``: what is installed, what runs, and the command that mends what does not."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mtlfast import kernels, ops, self_test

__all__ = ["describe", "examine"]

# Optional packages by the extra that installs them.
EXTRAS = {
    "demo": ("scikit-learn", "matplotlib", "tqdm"),
    "test": ("pytest", "pytest-benchmark", "hypothesis", "scipy"),
    "bench": ("torchjd",),
    "cupy": ("cupy-cuda13x", "nvidia-cuda-nvrtc"),
    "cupy12": ("cupy-cuda12x", "nvidia-cuda-nvrtc-cu12"),
}


def examine() -> dict[str, Any]:
    """Collects everything that ``mtlfast doctor`` shows, as JSON values.

    Returns:
        ``versions``, ``backend`` (what :func:`mtlfast.ops.describe` says, and ``self_test``),
        ``cuda``, ``tools``, ``packages`` by extra, ``missing`` (a list of ``what`` and ``fix``) and
        ``healthy``: whether the native backend runs.
    """
    backend = ops.describe()
    for key in ("cuda", "cuda_kernels", "cuda_reason"):
        backend.pop(key)  # reported with their details below
    backend["self_test"] = _self_test()
    facts: dict[str, Any] = {
        "versions": {
            "mtlfast": backend.pop("mtlfast"),
            "torch": backend.pop("torch"),
            "python": platform.python_version(),
            "numpy": _version("numpy"),
        },
        "location": str(Path(__file__).resolve().parent),
        "platform": f"{platform.system()} {platform.machine()}",
        "backend": backend,
        "cuda": _cuda(),
        "tools": {"c++": _compiler(), "nvcc": _nvcc()},
        "packages": {
            extra: {package: _version(package) for package in packages}
            for extra, packages in EXTRAS.items()
        },
    }
    facts["missing"] = _missing(facts)
    facts["healthy"] = backend["backend"] == "native" and backend["self_test"] == "ok"
    return facts


def describe(facts: dict[str, Any]) -> str:
    """Formats what :func:`examine` found as lines for people."""
    backend, cuda = facts["backend"], facts["cuda"]
    lines = [
        ("mtlfast", f"{facts['versions']['mtlfast']}, in {facts['location']}"),
        *((name, facts["versions"][name] or "missing") for name in ("torch", "python", "numpy")),
        ("platform", facts["platform"]),
        ("backend", _backend_line(backend)),
        ("ISA", backend["isa"] or "none: only the native backend has instruction sets"),
        ("threads", str(backend["threads"])),
        ("self-test", backend["self_test"]),
        ("CUDA", _cuda_line(cuda)),
        *([("GPU test", cuda["self_test"])] if cuda["self_test"] else []),
        ("kernels", _kernels_line(cuda)),
        *((name, found or "not found") for name, found in facts["tools"].items()),
    ]
    for extra, packages in facts["packages"].items():
        words = [f"{name} {version or '(missing)'}" for name, version in packages.items()]
        lines.append((f"[{extra}]", ", ".join(words)))
    text = [f"{name:<10}{value}" for name, value in lines]
    text.append("")
    for gap in facts["missing"]:
        text += [f"- {gap['what']}", f"  {gap['fix']}"]
    text.append(
        "The native backend runs."
        if facts["healthy"]
        else "The native backend does not run: every call is answered, slowly, by the reference."
    )
    return "\n".join(text)


def _self_test() -> str:
    """Forms a Gramian and a combined gradient whose values are known."""
    task_grads = [[torch.tensor([3.0, 4.0])], [torch.tensor([1.0, 0.0])]]
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    try:
        gramian = ops.gramian(task_grads).tolist()
        combined = [grad.tolist() for grad in ops.combine(task_grads, weights) if grad is not None]
    except Exception as error:  # whatever it is, the doctor has to report it
        return f"{type(error).__name__}: {error}"
    if gramian != [[25.0, 3.0], [3.0, 1.0]]:
        return f"gramian: expected [[25, 3], [3, 1]], found {gramian}"
    if combined != [[5.0, 4.0]]:
        return f"combine: expected [[5, 4]], found {combined}"
    return "ok"


def _cuda() -> dict[str, Any]:
    available = torch.cuda.is_available()
    devices = range(torch.cuda.device_count()) if available else ()
    has_kernels = available and _has_gpu_kernels()
    return {
        "torch_built_for": torch.version.cuda,
        "available": available,
        "devices": [torch.cuda.get_device_name(index) for index in devices],
        "driver": Path("/proc/driver/nvidia/version").exists(),
        "kernels": has_kernels,
        "self_test": gpu_self_test(torch.device("cuda")) if has_kernels else None,
        "source": kernels.describe(),
    }


def gpu_self_test(device: torch.device) -> str:
    """What :func:`mtlfast.self_test.run` finds, or what it ended in."""
    try:
        return self_test.run(device)
    except Exception as error:  # whatever it is, the doctor has to report it
        return f"{type(error).__name__}: {error}"


def _has_gpu_kernels() -> bool:
    """Whether gradients on a GPU get there without the reference."""
    try:
        with ops.use_backend("native"):
            ops.gramian([[torch.ones(1, device="cuda")]])
    except (ImportError, RuntimeError):
        return False
    return True


def _missing(facts: dict[str, Any]) -> list[dict[str, str]]:
    """Lists what is missing, the worst first, each with a command."""
    missing = []
    backend, cuda = facts["backend"], facts["cuda"]

    def add(what: str, fix: str) -> None:
        missing.append({"what": what, "fix": fix})

    if backend["backend"] != "native":
        if os.environ.get("MTLFAST_BACKEND") == "reference":
            add("MTLFAST_BACKEND=reference turns the C++ kernels off.", "unset MTLFAST_BACKEND")
        else:
            if facts["tools"]["c++"] is None:
                add("There is no C++ compiler.", "apt-get install g++")
            add(f"The C++ kernels do not run: {backend['reason']}.", _rebuild())
    elif backend["self_test"] != "ok":
        add(f"The C++ kernels give wrong answers: {backend['self_test']}.", _rebuild())
    if cuda["driver"] and cuda["torch_built_for"] is None:
        add(
            "There is an NVIDIA driver, but this torch is a CPU build.",
            f"{sys.executable} -m pip install --force-reinstall torch, then {_rebuild()}",
        )
    if cuda["self_test"] not in (None, "ok"):
        add(
            f"The CUDA kernels give wrong answers: {cuda['self_test']}.",
            "export MTLFAST_CUDA_BACKEND=none (plain torch on the GPU), and please report it",
        )
    if cuda["available"] and not cuda["kernels"] and cuda["source"]["setting"] != "none":
        add(
            f"The GPU is balanced by the reference, which is slow: {cuda['source']['reason']}.",
            "pip install 'mtlfast[cupy]'",
        )
    packages = facts["packages"]["demo"]
    absent = [package for package, version in packages.items() if version is None]
    if absent:
        add(f"The demo needs {', '.join(absent)}.", "pip install 'mtlfast[demo]'")
    return missing


def _rebuild() -> str:
    source = Path(__file__).resolve().parent.parent
    if not (source / "setup.py").exists():
        return f"{sys.executable} -m pip install --no-build-isolation --force-reinstall mtlfast"
    return f"cd {source} && {sys.executable} -m pip install --no-build-isolation -e ."


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compiler() -> str | None:
    named = os.environ.get("CXX", "").split()
    for name in (*named[:1], "g++", "c++", "clang++"):
        found = _first_line(name, "--version")
        if found:
            return found
    return None


def _nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    paths = [str(Path(home) / "bin") for home in homes if home]
    path = os.pathsep.join([*paths, os.environ.get("PATH", "")])
    found = shutil.which("nvcc", path=path)
    release = re.search(r"release ([\d.]+)", _output(found, "--version") if found else "")
    return f"{release[1]} ({found})" if release else None


def _first_line(program: str, *arguments: str) -> str | None:
    path = shutil.which(program)
    lines = _output(path, *arguments).splitlines() if path else []
    return lines[0] if lines else None


def _output(program: str, *arguments: str) -> str:
    try:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=20
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _backend_line(backend: dict[str, Any]) -> str:
    if backend["backend"] != "native":
        return f"{backend['backend']}: {backend['reason']}"
    return f"native, built for torch {backend['built_for_torch']}"


def _cuda_line(cuda: dict[str, Any]) -> str:
    if cuda["torch_built_for"] is None:
        return "no: this torch is a CPU build"
    if not cuda["available"]:
        return f"torch is built for CUDA {cuda['torch_built_for']}, but it finds no GPU"
    runs = "the reference, in plain torch"
    if cuda["kernels"]:
        runs = f"mtlfast's CUDA kernels ({cuda['source']['backend']})"
    return f"{', '.join(cuda['devices'])}; gradients there are balanced by {runs}"


def _kernels_line(cuda: dict[str, Any]) -> str:
    """Which CUDA kernels run and why, or what there would be for a GPU."""
    source = cuda["source"]
    asked = "" if source["setting"] == "auto" else f"MTLFAST_CUDA_BACKEND={source['setting']}; "
    if cuda["available"]:
        return f"{asked}{source['backend']}: {source['reason']}"
    compiled = source["compiled"] or "none were compiled with this package"
    cupy = f"CuPy's NVRTC {source['nvrtc']}" if source["nvrtc"] else source["nvrtc_missing"]
    return f"{asked}{compiled}; {cupy}"
