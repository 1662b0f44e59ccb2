"""Forwards the native build to CMakeLists.txt; everything else is in pyproject.toml.

Environment variables:
    MTLFAST_NO_EXTENSION=1  install the pure-Python package only.
    MTLFAST_CUDA            auto (default), on, off or kernels: see cmake/cuda.cmake.
    MTLFAST_CUDA_ARCHS      GPU architectures, e.g. "8.0;9.0+PTX"; default: those of nvcc and torch.
    CXX, CXXFLAGS           compiler and further flags.
    CMAKE_ARGS              further arguments of the configure step, e.g. -DMTLFAST_WERROR=ON.
"""

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OLDEST_CMAKE = (3, 21)  # as in CMakeLists.txt
OLDEST_SETUPTOOLS = 77  # as in pyproject.toml, which an older one cannot read
PIP = f"{sys.executable} -m pip install"


def fail(sentence: str) -> None:
    """Ends the build with a sentence instead of a traceback."""
    raise SystemExit(f"\nmtlfast: {sentence}\n")


def find_tool(name: str, oldest: tuple[int, ...] = (0,)) -> str:
    """Finds a build tool of this Python's environment, else one on PATH."""
    found = []
    for path in (sysconfig.get_path("scripts"), None):
        tool = shutil.which(name, path=path)
        if tool is None:
            continue
        # A script of another environment may not run in an isolated build: then the next one.
        answer = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"\d+(\.\d+)+", answer.stdout)
        if answer.returncode == 0 and version:
            if tuple(int(part) for part in version[0].split(".")) >= oldest:
                return tool
            found.append(f"{tool} is {version[0]}")
    if found:
        wanted = ".".join(map(str, oldest))
        fail(f"{name} >= {wanted} is needed and {found[0]}: run '{PIP} --upgrade {name}'.")
    fail(f"{name} is needed to build the C++ extension and was not found: run '{PIP} {name}'.")
    raise AssertionError


def find_compiler() -> str:
    """Returns the value of CXX, or the first C++ compiler on PATH."""
    named = os.environ.get("CXX", "")
    if named:
        if shutil.which(shlex.split(named)[0]) is None:
            fail(f"CXX is '{named}', which was not found: set CXX to an installed C++ compiler.")
        return named
    for name in ("g++", "c++", "clang++"):
        compiler = shutil.which(name)
        if compiler is not None:
            return compiler
    fail(
        "a C++20 compiler is needed and none was found: install one (on Debian and Ubuntu "
        "'apt-get install g++'), or set MTLFAST_NO_EXTENSION=1 to install without the C++ kernels."
    )
    raise AssertionError


class CMakeBuild(build_ext):
    """Configures, runs ninja, and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        if importlib.util.find_spec("torch") is None:
            fail(
                "torch was not found: the C++ kernels are built against the torch they will run "
                f"with. Run '{PIP} torch', then '{PIP} --no-build-isolation .' (without build "
                "isolation, because an isolated build does not see the installed torch)."
            )
        cmake = find_tool("cmake", OLDEST_CMAKE)
        ninja = find_tool("ninja")
        compiler = find_compiler()
        flags = os.environ.get("CXXFLAGS", "")

        # One build folder for each thing that CMake reads only at its first configure.
        key = repr((sys.executable, sys.version, compiler, flags, self.debug))
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        build_dir = ROOT / "build" / f"{sys.implementation.cache_tag}-{digest}"
        configure = [
            cmake,
            *("-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_BUILD_TYPE={'RelWithDebInfo' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DMTLFAST_CUDA={os.environ.get('MTLFAST_CUDA', 'auto')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        build = [cmake, "--build", str(build_dir)]
        if self.parallel:
            build += ["--parallel", str(self.parallel)]
        env = dict(os.environ, CXX=compiler)
        for command in (configure, build):
            if subprocess.run(command, env=env, check=False).returncode != 0:
                fail(
                    "the native build failed, for the reason given above. MTLFAST_NO_EXTENSION=1 "
                    "installs the package without the C++ kernels."
                )

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        self.copy_file(str(build_dir / f"_C{suffix}"), str(target))
        self.images = build_dir / "kernels"
        self.copy_images(self.images, target.parent / "kernels")

    def copy_extensions_to_source(self) -> None:
        """What --inplace and editable installations call after the build."""
        super().copy_extensions_to_source()
        self.copy_images(self.images, ROOT / "mtlfast" / "kernels")

    def copy_images(self, built: Path, target: Path) -> None:
        """Puts the compiled CUDA kernels, if any, in the place of earlier ones."""
        for pattern in ("*.cubin", "*.ptx", "images.json"):
            for old in target.glob(pattern):
                old.unlink()
        if not (built / "images.json").exists():
            return
        target.mkdir(parents=True, exist_ok=True)
        listed = json.loads((built / "images.json").read_text())
        kinds = [f"sm_{arch}.cubin" for arch in listed["cubins"]]
        kinds += [f"compute_{listed['ptx']}.ptx"] if listed["ptx"] else []
        names = [f"{group}.{kind}" for group in listed["kernels"] for kind in kinds]
        for name in (*names, "images.json"):
            self.copy_file(str(built / name), str(target / name))


class BuildPython(build_py):
    """Adds the text of the CUDA kernels, which CuPy's NVRTC compiles at run time."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in ("kernels", "solvers"):
            target = Path(self.build_lib) / "mtlfast" / "csrc" / folder
            target.mkdir(parents=True, exist_ok=True)
            for header in sorted((ROOT / "csrc" / folder).glob("*.h")):
                self.copy_file(str(header), str(target / header.name))


if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    fail(
        f"setuptools >= {OLDEST_SETUPTOOLS} is needed and {setuptools.__version__} was found: run "
        f"'{PIP} --upgrade setuptools'."
    )
native = os.environ.get("MTLFAST_NO_EXTENSION", "") in ("", "0")
setup(
    ext_modules=[Extension("mtlfast._C", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPython},
)
