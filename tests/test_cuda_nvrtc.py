"""Kernels compiled at run time: what NVRTC is told, what is kept, and what CuPy may lack."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import kernel_names
import pytest

from mtlfast.kernels import nvrtc, text

PCGRAD = "mtlfast_solve_Pcgrad"


class FakeNvrtc:
    """Compiles anything, and remembers it."""

    NVRTCError = type("NVRTCError", (RuntimeError,), {})

    def __init__(self) -> None:
        self.options: list[tuple[str, ...]] = []
        self.alive = 0
        self.fails = False

    def getSupportedArchs(self) -> tuple[int, ...]:  # noqa: N802
        return (75, 80, 90)

    def createProgram(self, *_: object) -> int:  # noqa: N802
        self.alive += 1
        return 7

    def compileProgram(self, program: int, options: tuple[str, ...]) -> None:  # noqa: N802
        self.options.append(options)
        if self.fails:
            raise self.NVRTCError("NVRTC_ERROR_COMPILATION")

    def getProgramLog(self, program: int) -> str:  # noqa: N802
        return "line 7: no"

    def getCUBIN(self, program: int) -> bytes:  # noqa: N802
        return b"cubin %d" % len(self.options)

    def getPTX(self, program: int) -> str:  # noqa: N802
        return "ptx"

    def destroyProgram(self, program: int) -> None:  # noqa: N802
        self.alive -= 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeNvrtc:
    compiler = FakeNvrtc()
    monkeypatch.setattr(nvrtc, "_probe", lambda: (compiler, "13.0"))
    monkeypatch.setenv("MTLFAST_CACHE_DIR", str(tmp_path / "cache"))
    return compiler


def test_one_kernel_is_compiled_for_the_device(fake: FakeNvrtc) -> None:
    assert nvrtc.image(PCGRAD, 90) == b"cubin 1"
    (options,) = fake.options
    assert {"-std=c++17", "-arch=sm_90", "-DMTLFAST_GROUP_SOLVE", "-DMTLFAST_ONLY"} <= set(options)
    assert f"-DMTLFAST_PICK_{PCGRAD}=MTLFAST_PICKED" in options
    assert f"-I{kernel_names.CSRC}" in options
    assert fake.alive == 0


def test_a_device_that_nvrtc_does_not_know_gets_ptx(fake: FakeNvrtc) -> None:
    assert nvrtc.image(PCGRAD, 120) == b"ptx\0"
    assert "-arch=compute_90" in fake.options[0]


def test_errors_carry_the_log(fake: FakeNvrtc) -> None:
    fake.fails = True
    with pytest.raises(RuntimeError, match=rf"could not compile {PCGRAD} .*\n.*line 7: no"):
        nvrtc.image(PCGRAD, 90)
    assert fake.alive == 0
    assert not list(nvrtc.cache_folder().glob("*"))


def test_cache(fake: FakeNvrtc, monkeypatch: pytest.MonkeyPatch) -> None:
    first = nvrtc.image(PCGRAD, 90)
    assert nvrtc.image(PCGRAD, 90) == first
    assert len(fake.options) == 1
    nvrtc.image(PCGRAD, 80)
    nvrtc.image("mtlfast_upload", 90)
    assert len(fake.options) == 3

    monkeypatch.setattr(nvrtc, "_probe", lambda: (fake, "13.1"))
    nvrtc.image(PCGRAD, 90)
    monkeypatch.setattr(text, "digest", lambda: "another text")
    nvrtc.image(PCGRAD, 90)
    assert len(fake.options) == 5
    assert len(list(nvrtc.cache_folder().iterdir())) == 5


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 200])
def test_a_damaged_cache_entry_is_made_again(fake: FakeNvrtc, damage: bytes) -> None:
    nvrtc.image(PCGRAD, 90)
    (entry,) = nvrtc.cache_folder().iterdir()
    entry.write_bytes(damage)
    assert nvrtc.image(PCGRAD, 90) == b"cubin 2"
    assert nvrtc.image(PCGRAD, 90) == b"cubin 2"


def test_a_cache_that_cannot_be_written(
    fake: FakeNvrtc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MTLFAST_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="set MTLFAST_CACHE_DIR"):
        assert nvrtc.image(PCGRAD, 90) == b"cubin 1"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTLFAST_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert nvrtc.cache_folder() == Path("/somewhere/mtlfast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert nvrtc.cache_folder() == Path.home() / ".cache" / "mtlfast"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "CuPy is not installed"),
        ("raise ImportError('libnvrtc.so.13: cannot open')", "cannot be loaded .libnvrtc.so.13"),
        ("import no_such_part", "cannot be loaded .No module named 'no_such_part'"),
        ("class nvrtc: getVersion = lambda: (11, 8)", "NVRTC is 11.8, older than 12.1"),
        ("class nvrtc: getVersion = lambda: (12, 4)", ""),
    ],
)
def test_what_cupy_lacks(
    module: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "cupy").mkdir()
    absent = "raise ModuleNotFoundError(name='cupy')"
    (tmp_path / "cupy" / "__init__.py").write_text(absent if module is None else "")
    (tmp_path / "cupy" / "cuda.py").write_text(module or "")
    monkeypatch.syspath_prepend(tmp_path)
    nvrtc._probe.cache_clear()
    try:
        if reason:
            assert re.search(reason, nvrtc.missing() or "")
            assert nvrtc.version() is None
            with pytest.raises(ImportError, match=r"pip install 'mtlfast\[cupy\]'"):
                nvrtc.image(PCGRAD, 90)
        else:
            assert nvrtc.missing() is None
            assert nvrtc.version() == "12.4"
    finally:
        nvrtc._probe.cache_clear()
        for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
            del sys.modules[name]


def test_nvrtc_of_cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cupy")
    if nvrtc.missing():
        pytest.skip(str(nvrtc.missing()))
    monkeypatch.setenv("MTLFAST_CACHE_DIR", str(tmp_path))
    assert kernel_names.in_machine_code(nvrtc.image(PCGRAD, 90)) == [PCGRAD]
