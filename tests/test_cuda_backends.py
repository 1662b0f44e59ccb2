"""Where CUDA kernels come from: which backend is chosen, what is compiled, and what is kept."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import kernel_names
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mtlfast import kernels, ops, reference
from mtlfast.kernels import images, nvrtc, text

PCGRAD = "mtlfast_solve_Pcgrad"


@pytest.fixture(autouse=True)
def decide_anew() -> Iterator[None]:
    kernels.forget()
    ops._warn_of_slow_cuda.cache_clear()
    yield
    kernels.forget()


# ---- the text ------------------------------------------------------------------------------------


def names_that_the_host_asks_for() -> set[str]:
    """By the rules of csrc/cuda and the table of solvers, not by the list of kernels."""
    names = {"mtlfast_upload"}
    for size in "sl":
        for dtype in ("f32", "f64", "bf16", "f16"):
            names.add(f"mtlfast_combine_{dtype}_{size}")
            for rows in (2, 3, 4, 6, 8):
                names.add(f"mtlfast_gramian_{dtype}_k{rows}_{size}")
            if dtype != "f64":
                names.add(f"mtlfast_gramian_{dtype}_k12_{size}")
                for rows in (2, 3, 4, 6, 8):
                    names.add(f"mtlfast_gramian_{dtype}x_k{rows}_{size}")
    table = (kernel_names.CSRC / "solvers" / "table.h").read_text()
    solvers = [line.split(", ")[1].split(")")[0] for line in table.splitlines() if "  X(" in line]
    assert len(solvers) > 30
    return names | {f"mtlfast_solve_{solver}" for solver in solvers}


def test_text_has_every_kernel_that_the_host_asks_for() -> None:
    listed = [name for group in kernel_names.in_text().values() for name in group]
    assert len(set(listed)) == len(listed)
    assert names_that_the_host_asks_for() <= set(listed)


def test_a_kernel_is_looked_for_in_the_group_that_has_it() -> None:
    assert set(text.groups()) == set(kernel_names.in_text())
    for group, names in kernel_names.in_text().items():
        for name in names:
            assert group in text.groups_of(name)
            assert len(text.groups_of(name)) < len(text.groups())
    with pytest.raises(KeyError, match=r"no group of .* has a kernel mtlfast_nothing_f32"):
        text.groups_of("mtlfast_nothing_f32")


def test_status_table_has_every_kernel() -> None:
    page = (kernel_names.CSRC.parent / "docs" / "cuda.md").read_text()
    patterns = re.findall(r"^\| `(mtlfast_[^`]+)` \|", page, re.MULTILINE)
    names = [name for group in kernel_names.in_text().values() for name in group]
    unlisted = [name for name in names if not any(fnmatchcase(name, p) for p in patterns)]
    assert unlisted == []
    assert [p for p in patterns if not any(fnmatchcase(name, p) for name in names)] == []


# ---- images of the package -----------------------------------------------------------------------


def write_images(folder: Path, cubins: list[int], ptx: int | None) -> images.Images:
    groups = {"solve": [PCGRAD], "combine": ["mtlfast_upload"]}
    listed = {"nvcc": "13.0", "cubins": cubins, "ptx": ptx, "kernels": groups}
    (folder / "images.json").write_text(json.dumps(listed))
    for group in groups:
        for kind in [f"sm_{arch}.cubin" for arch in cubins] + [f"compute_{ptx}.ptx"] * bool(ptx):
            (folder / f"{group}.{kind}").write_bytes(f"{group} {kind}".encode())
    found = images.find(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("capability", "suffix"),
    [
        (75, "sm_75.cubin"),
        (80, "sm_80.cubin"),
        (86, "sm_86.cubin"),
        (89, "sm_86.cubin"),
        (90, None),
        (100, "sm_100.cubin"),
        (103, "sm_100.cubin"),
        (120, "compute_100.ptx"),
    ],
)
def test_image_for_a_device(tmp_path: Path, capability: int, suffix: str | None) -> None:
    found = write_images(tmp_path, [75, 80, 86, 100], ptx=100)
    assert found.suffix(capability) == suffix
    image = found.image(PCGRAD, capability)
    if suffix is None:
        assert image == b""
    else:
        assert image.rstrip(b"\0") == f"solve {suffix}".encode()
        assert image.endswith(b"\0") == suffix.endswith("ptx")  # the driver takes PTX as a string
    assert found.image("mtlfast_nothing", capability) == b""


def test_no_images(tmp_path: Path) -> None:
    assert images.find(tmp_path) is None


@pytest.mark.skipif(images.find() is None, reason="built without CUDA kernels")
def test_images_hold_every_kernel() -> None:
    found = images.find()
    assert found is not None
    groups = {group.lower(): names for group, names in kernel_names.in_text().items()}
    assert {group: list(names) for group, names in found.kernels.items()} == groups
    for name in names_that_the_host_asks_for():
        for arch in found.cubins:
            assert name in kernel_names.in_machine_code(found.image(name, arch))


# ---- NVRTC ---------------------------------------------------------------------------------------


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


# ---- the choice ----------------------------------------------------------------------------------


def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, compiled: bool, cupy: bool) -> None:
    """Makes the package one with or without images, and CuPy there or not."""
    found = write_images(tmp_path, [80], ptx=None) if compiled else None
    monkeypatch.setattr(images, "find", lambda: found)
    probed = (FakeNvrtc(), "13.0") if cupy else (None, "CuPy is not installed")
    monkeypatch.setattr(nvrtc, "_probe", lambda: probed)


@pytest.mark.parametrize(
    ("wanted", "compiled", "cupy", "capability", "backend", "reason"),
    [
        ("auto", True, True, 86, "compiled", "sm_80.cubin from nvcc 13.0"),
        ("auto", True, True, 90, "cupy", "compiles for sm_90"),
        ("auto", False, True, 80, "cupy", "compiles for sm_80"),
        ("auto", False, False, 80, "none", r"built without .*CuPy is not installed; pip install"),
        ("auto", True, False, 90, "none", r"\(sm_80\) are not for compute capability 9.0"),
        ("auto", True, True, 70, "none", "compute capability 7.0, and 7.5 is needed"),
        ("compiled", True, False, 80, "compiled", "sm_80"),
        ("cupy", True, True, 80, "cupy", "sm_80"),
        ("none", True, True, 80, "none", "MTLFAST_CUDA_BACKEND=none"),
        ("compiled", False, True, 80, "", "'compiled' was asked for, but .* was built without"),
        ("compiled", True, True, 90, "", "'compiled' was asked for, but .* not for .* 9.0"),
        ("cupy", True, False, 80, "", r"'cupy' was asked for, but CuPy is not .*mtlfast\[cupy\]"),
        ("cupy", True, True, 70, "", "'cupy' was asked for, but this GPU has"),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    wanted: str,
    compiled: bool,
    cupy: bool,
    capability: int,
    backend: str,
    reason: str,
) -> None:
    """An empty backend stands for an error."""
    offer(monkeypatch, tmp_path, compiled=compiled, cupy=cupy)
    if not backend:
        with pytest.raises(ImportError, match=f"MTLFAST_CUDA_BACKEND: {reason}"):
            kernels.choose(wanted, capability)
        return
    found = kernels.choose(wanted, capability)
    assert found.backend == backend
    assert re.search(reason, found.reason)
    assert (found.image is None) == (backend == "none")


def test_unknown_setting() -> None:
    expected = "MTLFAST_CUDA_BACKEND: expected one of auto, compiled, cupy, none, found 'hip'"
    with pytest.raises(ValueError, match=expected):
        kernels.check_setting("hip")


def test_the_extension_gets_images_by_name_and_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offer(monkeypatch, tmp_path, compiled=True, cupy=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8 - index, 9))
    extension: Any = ModuleType("extension")
    extension.set_compiler = lambda function: setattr(extension, "ask", function)
    assert kernels.ready(extension, 0)
    assert extension.ask(PCGRAD, 0) == b"solve sm_80.cubin"
    assert extension.ask("mtlfast_nothing", 0) == b""
    assert not kernels.ready(extension, 1)  # 7.9: no machine code, and too late for PTX
    assert extension.ask(PCGRAD, 1) == b""


# ---- the door ------------------------------------------------------------------------------------


@pytest.fixture
def on_cuda() -> Iterator[list[list[torch.Tensor | None]]]:
    """Task gradients that say they are on a GPU."""
    with FakeTensorMode():
        yield [[torch.ones(3, device="cuda")], [torch.ones(3, device="cuda")]]


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An extension that answers everything with its own name."""
    extension: Any = ModuleType("extension")
    extension.cuda = ModuleType("cuda")
    extension.cuda.set_compiler = lambda _: None
    extension.gramian = lambda _: "native"
    extension.solve = lambda *_: "native"
    extension.isa = lambda: "isa"
    monkeypatch.setattr(ops, "_native", extension)
    monkeypatch.setattr(ops, "_missing", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(reference, "gramian", lambda _: "reference")
    return extension


def answer(task_grads: Any) -> Any:
    """Who forms the Gramian."""
    return ops.gramian(task_grads)


def test_gradients_on_a_gpu_with_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: Any, on_cuda: Any
) -> None:
    offer(monkeypatch, tmp_path, compiled=True, cupy=False)
    answers: list[Any] = [ops.gramian(on_cuda), ops.solve("pcgrad", on_cuda[0][0])]
    with ops.use_backend("native"):
        answers.append(ops.gramian(on_cuda))
    assert answers == ["native"] * 3
    with ops.use_backend("reference"):
        assert answer(on_cuda) == "reference"


def test_gradients_on_a_gpu_without_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: Any, on_cuda: Any
) -> None:
    offer(monkeypatch, tmp_path, compiled=False, cupy=False)
    with pytest.warns(RuntimeWarning, match=r"on cuda:0 .*CuPy is not installed.*mtlfast\[cupy\]"):
        assert answer(on_cuda) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert answer(on_cuda) == "reference"
    with (
        ops.use_backend("native"),
        pytest.raises(RuntimeError, match=r"task gradients on cuda:0: .*CuPy is not installed"),
    ):
        ops.gramian(on_cuda)
    with (
        ops.use_backend("native"),
        pytest.raises(RuntimeError, match=r"a Gramian or losses on cuda:0: .*CuPy"),
    ):
        ops.solve("pcgrad", on_cuda[0][0])

    kernels.forget()
    monkeypatch.setattr(kernels, "_setting", "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the reference was asked for
        assert answer(on_cuda) == "reference"
    kernels.forget()
    monkeypatch.setattr(kernels, "_setting", "cupy")
    with pytest.raises(ImportError, match="MTLFAST_CUDA_BACKEND: 'cupy' was asked for"):
        ops.gramian(on_cuda)


def test_describe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: Any) -> None:
    native.torch_version = torch.__version__
    offer(monkeypatch, tmp_path, compiled=True, cupy=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.current() == ("none", "torch finds no GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    found = ops.describe()
    assert found["cuda_kernels"] == "compiled"
    assert "sm_80" in found["cuda_reason"]

    kernels.forget()
    monkeypatch.setattr(kernels, "_setting", "cupy")
    found = kernels.describe()
    assert (found["backend"], found["compiled"], found["nvrtc"]) == ("none", "sm_80", None)
    assert "'cupy' was asked for" in found["reason"]
    with ops.use_backend("reference"):
        assert ops.describe()["cuda_reason"] == "the reference was asked for"
