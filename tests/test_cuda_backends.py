"""Where CUDA kernels come from: which backend is chosen, and what then becomes of a call."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_cuda_kernels import PCGRAD, write_images
from torch._subclasses.fake_tensor import FakeTensorMode

from mtlfast import kernels, ops, reference
from mtlfast.kernels import images, nvrtc


@pytest.fixture(autouse=True)
def decide_anew() -> Iterator[None]:
    kernels.forget()
    ops._warn_of_slow_cuda.cache_clear()
    yield
    kernels.forget()


# ---- the choice ----------------------------------------------------------------------------------


def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, compiled: bool, cupy: bool) -> None:
    """Makes the package one with or without images, and CuPy there or not."""
    found = write_images(tmp_path, [80], ptx=None) if compiled else None
    monkeypatch.setattr(images, "find", lambda: found)
    probed = (object(), "13.0") if cupy else (None, "CuPy is not installed")
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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
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
    solvers: Any = reference.SOLVERS
    monkeypatch.setitem(solvers, "pcgrad", lambda *_: ("reference", 0))
    with ops.use_backend("reference"):
        assert answer(on_cuda) == "reference"
        assert ops.solve("pcgrad", on_cuda[0][0]) == "reference"


def test_describe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: Any) -> None:
    native.torch_version = torch.__version__
    offer(monkeypatch, tmp_path, compiled=True, cupy=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.current() == ("none", "torch finds no GPU")
    kernels.forget()
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
