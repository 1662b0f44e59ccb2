"""The build, the packages, and what a person reads where a part is missing."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

needs_source_tree = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists(), reason="the tests run outside of the source tree"
)


def run(
    *command: str | Path, cwd: Path | None = None, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs a command with changed environment variables; None removes one."""
    env = {**os.environ, **variables}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={name: value for name, value in env.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def copy_package(target: Path) -> Path:
    """Copies the Python files of the package, without its extension."""
    ignored = shutil.ignore_patterns("*.so", "*.cubin", "*.ptx", "images.json", "__pycache__")
    return Path(shutil.copytree(ROOT / "mtlfast", target / "mtlfast", ignore=ignored))


def in_words(process: subprocess.CompletedProcess[str]) -> str:
    """What a process printed, with line breaks as spaces."""
    return " ".join((process.stdout + process.stderr).split())


# ---- the version ---------------------------------------------------------------------------------


@needs_source_tree
def test_version_is_written_once() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'^version = "(.+?)"', pyproject, re.MULTILINE)
    assert found is not None
    version = found[1]
    assert importlib.metadata.version("mtlfast") == version

    sources = [ROOT / "setup.py", ROOT / "CMakeLists.txt", ROOT / "Makefile"]
    for folder in ("mtlfast", "csrc", "cmake", ".ci"):
        sources += [
            path for path in (ROOT / folder).rglob("*") if path.suffix not in (".so", ".pyc")
        ]
    pattern = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.])")
    repeated = [
        str(path)
        for path in sources
        if path.is_file() and pattern.search(path.read_text(errors="ignore"))
    ]
    assert repeated == []


# ---- with and without the extension --------------------------------------------------------------

# An editable install would look for the extension in the source tree, not in the copy.
USE_TWICE = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
import torch, mtlfast
from mtlfast import ops
print("backend", ops.describe()["backend"])
J = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
print(mtlfast.aggregate(J, "pcgrad").tolist(), mtlfast.aggregate(J, "cagrad").tolist())
"""


def test_without_extension_warns_once_and_runs_on_the_reference(tmp_path: Path) -> None:
    copy_package(tmp_path)
    process = run(
        sys.executable,
        *("-W", "always", "-c", USE_TWICE),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        MTLFAST_BACKEND=None,
    )
    assert process.returncode == 0, process.stderr
    assert "backend reference" in process.stdout
    warned = [
        line for line in process.stderr.splitlines() if "Warning" in line and "mtlfast" in line
    ]
    assert len(warned) == 1, process.stderr
    assert "reference" in process.stderr


def test_without_extension_native_raises(tmp_path: Path) -> None:
    copy_package(tmp_path)
    process = run(
        sys.executable,
        *("-c", USE_TWICE),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        MTLFAST_BACKEND="native",
    )
    assert process.returncode != 0
    assert "ImportError" in process.stderr
    assert "MTLFAST_BACKEND" in process.stderr


@pytest.mark.parametrize("backend", [None, "auto", "native"])
def test_broken_extension_raises(tmp_path: Path, backend: str | None) -> None:
    package = copy_package(tmp_path)
    (package / f"_C{SUFFIX}").write_bytes(b"\x7fELF, and then nothing that a loader knows")
    process = run(
        sys.executable,
        *("-c", USE_TWICE),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        MTLFAST_BACKEND=backend,
    )
    assert process.returncode != 0
    assert "ImportError" in process.stderr
    assert "backend" not in process.stdout


def test_broken_extension_and_the_doctor(tmp_path: Path) -> None:
    package = copy_package(tmp_path)
    (package / f"_C{SUFFIX}").write_bytes(b"\x7fELF, and then nothing that a loader knows")
    doctor = """
import runpy, sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
sys.argv = ["mtlfast", "doctor"]
runpy.run_module("mtlfast", run_name="__main__")
"""
    process = run(sys.executable, "-c", doctor, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert in_words(process).startswith("mtlfast doctor: mtlfast._C is installed and cannot be")
    assert "pip install --no-build-isolation" in process.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime() -> None:
    """Two of them would ignore torch.set_num_threads and fight for the cores."""
    code = """
import re, mtlfast
from mtlfast import ops
ops.describe()
maps = open("/proc/self/maps").read()
print(sorted(set(re.findall(r"\\S*lib(?:gomp|iomp5|omp)[-.]\\S*", maps))))
"""
    process = run(sys.executable, "-W", "ignore", "-c", code)
    assert process.returncode == 0, process.stderr
    libraries = process.stdout.strip()
    assert libraries.count("/") > 0
    assert libraries.count(", ") == 0, libraries


@needs_source_tree
def test_instruction_sets_share_no_functions() -> None:
    """Of an inline function in two units the linker keeps one copy: perhaps the AVX-512 one."""
    objects = sorted((ROOT / "build").glob("*/CMakeFiles/isa_*.dir/csrc/cpu/isa_kernels.cpp.o"))
    nm = shutil.which("nm")
    if not objects or nm is None:
        pytest.skip("needs nm and the object files of a build in the source tree")
    for path in objects:
        process = run(nm, "--demangle", "--defined-only", path)
        assert process.returncode == 0, process.stderr
        weak = [line for line in process.stdout.splitlines() if re.search(r" [WwVu] ", line)]
        assert weak == [], path


# ---- what setup.py says --------------------------------------------------------------------------


class Bare:
    """A source tree and a Python that has setuptools, and nothing else unless a test adds it."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self.tree.mkdir()
        for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "LICENSE"):
            shutil.copy(ROOT / name, self.tree)
        for name in ("README.md", "CHANGELOG.md"):
            (self.tree / name).touch()
        for name in ("cmake", "csrc"):
            shutil.copytree(ROOT / name, self.tree / name)
        copy_package(self.tree)

        venv = folder / "venv"
        process = run(sys.executable, "-m", "venv", "--without-pip", venv)
        assert process.returncode == 0, process.stderr
        self.python = venv / "bin" / "python"
        self.modules = folder / "modules"
        self.modules.mkdir()
        spec = importlib.util.find_spec("setuptools")
        assert spec is not None
        assert spec.origin is not None
        packages = Path(spec.origin).parent.parent
        for pattern in ("setuptools", "setuptools-*", "_distutils_hack", "pkg_resources"):
            for path in packages.glob(pattern):
                (self.modules / path.name).symlink_to(path)
        self.path = folder / "path"
        self.path.mkdir()

    def add_torch(self, version: str = "99.0") -> None:
        """Adds a torch that can be imported and does nothing."""
        (self.modules / "torch").mkdir()
        (self.modules / "torch" / "__init__.py").write_text(f"__version__ = {version!r}\n")

    def add_tool(self, name: str, says: str) -> None:
        """Adds a program that answers --version."""
        tool = self.path / name
        tool.write_text(f"#!/bin/sh\necho '{says}'\n")
        tool.chmod(0o755)

    def execute(
        self, *words: str | Path, **variables: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Runs this Python in the source tree."""
        settings: dict[str, str | None] = {
            "PYTHONPATH": str(self.modules),
            "PATH": str(self.path),
            "CXX": None,
            "MTLFAST_NO_EXTENSION": None,
        }
        return run(self.python, *words, cwd=self.tree, **{**settings, **variables})

    def build_fails(self, **variables: str | None) -> str:
        """Builds the extension, which must end in a sentence; returns it."""
        process = self.execute("setup.py", "--quiet", "build_ext", "--inplace", **variables)
        assert process.returncode != 0
        assert "Traceback" not in process.stderr
        sentence = in_words(process)
        assert sentence.startswith("mtlfast: "), sentence
        return sentence


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path)


@needs_source_tree
class TestSentences:
    def test_missing_torch(self, bare: Bare) -> None:
        sentence = bare.build_fails()
        assert "torch was not found" in sentence
        assert "-m pip install torch" in sentence
        assert "--no-build-isolation" in sentence

    def test_old_setuptools(self, bare: Bare) -> None:
        code = """
import runpy, sys, setuptools
setuptools.__version__ = "65.5.0"
sys.argv = ["setup.py", "build"]
runpy.run_path("setup.py", run_name="__main__")
"""
        process = bare.execute("-c", code)
        assert process.returncode != 0
        assert "Traceback" not in process.stderr
        assert "setuptools >= 77 is needed and 65.5.0 was found" in in_words(process)

    def test_missing_cmake(self, bare: Bare) -> None:
        bare.add_torch()
        sentence = bare.build_fails()
        assert "cmake" in sentence
        assert "pip install cmake" in sentence

    def test_old_cmake(self, bare: Bare) -> None:
        bare.add_torch()
        bare.add_tool("cmake", says="cmake version 3.10.2")
        sentence = bare.build_fails()
        assert "is 3.10.2" in sentence
        assert "pip install --upgrade cmake" in sentence

    def test_missing_ninja(self, bare: Bare) -> None:
        bare.add_torch()
        bare.add_tool("cmake", says="cmake version 4.0.0")
        sentence = bare.build_fails()
        assert "pip install ninja" in sentence

    @pytest.mark.parametrize("compiler", [None, "no-such-compiler -O1"])
    def test_missing_compiler(self, bare: Bare, compiler: str | None) -> None:
        bare.add_torch()
        bare.add_tool("cmake", says="cmake version 4.0.0")
        bare.add_tool("ninja", says="1.13.0")
        sentence = bare.build_fails(CXX=compiler)
        if compiler is None:
            assert "apt-get install g++" in sentence
            assert "MTLFAST_NO_EXTENSION=1" in sentence
        else:
            assert f"CXX is '{compiler}'" in sentence

    def test_cmake_asks_for_torch_too(self, bare: Bare) -> None:
        process = bare.execute("cmake/probe.py")
        assert process.returncode != 0
        assert in_words(process).startswith("mtlfast is built against torch")

    def test_old_torch(self, bare: Bare) -> None:
        bare.add_torch("2.5.1+cpu")
        process = bare.execute("cmake/probe.py")
        assert process.returncode != 0
        assert "mtlfast needs torch >= 2.6 and found 2.5.1+cpu" in in_words(process)

    def test_no_extension_asks_for_nothing(self, bare: Bare) -> None:
        process = bare.execute("setup.py", "--quiet", "build", MTLFAST_NO_EXTENSION="1")
        assert process.returncode == 0, process.stderr
        assert list((bare.tree / "build").rglob("__init__.py"))
        for folder in ("kernels", "solvers"):  # the text that is compiled at run time
            (built,) = (bare.tree / "build").rglob(f"mtlfast/csrc/{folder}")
            headers = {path.name for path in (ROOT / "csrc" / folder).glob("*.h")}
            assert {path.name for path in built.iterdir()} == headers

    def test_sdist_needs_no_torch(self, bare: Bare) -> None:
        code = "from setuptools import build_meta; print(build_meta.build_sdist('out'))"
        process = bare.execute("-c", code)
        assert process.returncode == 0, process.stderr
        (archive,) = (bare.tree / "out").glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            names = {name.partition("/")[2] for name in tar.getnames()}
        assert {"CMakeLists.txt", "setup.py", "cmake/probe.py", "csrc/bindings.cpp"} <= names
        assert {"LICENSE", "mtlfast/py.typed", "mtlfast/__init__.py"} <= names
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
        assert sources <= names
        assert not [name for name in names if name.endswith((".so", ".pyc", ".cubin", ".ptx"))]
