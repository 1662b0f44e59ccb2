"""Which backend and instruction set run, by environment variable and by context."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from kernel_cases import ISAS, assert_same, float64

from mtlfast import ops, reference

SHOW = "from mtlfast import ops; d = ops.describe(); print(d['backend'], d['isa'], d['reason'])"
NEEDS_NATIVE = pytest.mark.skipif(not ISAS, reason="needs the native extension")
ONES = torch.ones(3)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MTLFAST_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@NEEDS_NATIVE
def test_environment_chooses_the_instruction_set() -> None:
    """And at::parallel_for really starts threads: without OpenMP flags it is silently serial."""
    threads = """
import os, torch
torch.set_num_threads(1)
rows = [[torch.ones(1_000_000)]] * 2
before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else -1
torch.set_num_threads(3)
assert ops.gramian(rows)[0, 1] == 1_000_000
print(-2 if before < 0 else len(os.listdir("/proc/self/task")) - before)
"""
    result = run(SHOW + threads, MTLFAST_ISA=ISAS[-1], MTLFAST_BACKEND="native")
    shown, started = result.stdout.splitlines()
    assert shown == f"native {ISAS[-1]} None"
    assert int(started) in (2, -2)


@NEEDS_NATIVE
def test_unknown_instruction_set() -> None:
    result = run(SHOW, MTLFAST_ISA="avx1024")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "MTLFAST_ISA: expected one that this CPU has (auto, " in last
    assert "found 'avx1024'" in last


def test_environment_chooses_the_reference() -> None:
    result = run(SHOW, MTLFAST_BACKEND="reference", MTLFAST_ISA="")
    assert result.stdout == "reference None the reference was asked for\n"


def test_unknown_backend() -> None:
    result = run(SHOW, MTLFAST_BACKEND="fast")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    expected = "MTLFAST_BACKEND: expected one of auto, native, reference, found 'fast'"
    assert last == f"ValueError: {expected}"


@NEEDS_NATIVE
def test_contexts_nest_and_restore() -> None:
    before = ops.describe()
    with ops.use_backend("reference"):
        assert ops.describe()["backend"] == "reference"
        assert ops.describe()["isa"] is None
        with ops.use_backend("native"):
            for isa in ISAS:
                with ops.use_isa(isa):
                    assert ops.describe()["isa"] == isa
                    with ops.use_isa("auto"):
                        assert ops.describe()["isa"] == ISAS[0]
                    assert ops.describe()["isa"] == isa
    with pytest.raises(ZeroDivisionError), ops.use_backend("reference"), ops.use_isa(ISAS[-1]):
        raise ZeroDivisionError
    assert ops.describe() == before


def test_contexts_refuse_unknown_names() -> None:
    before = ops.describe()
    expected = "backend: expected one of auto, native, reference, found 'cuda'"
    with pytest.raises(ValueError, match=expected), ops.use_backend("cuda"):
        pass
    if ISAS:
        expected = r"expected one that this CPU has \(auto, .*baseline\), found 'neon'"
        with pytest.raises(ValueError, match=expected), ops.use_isa("neon"):
            pass
    assert ops.describe() == before


def test_describe() -> None:
    described = ops.describe()
    assert set(described) == {
        "mtlfast",
        "torch",
        "built_for_torch",
        "backend",
        "isa",
        "threads",
        "cuda",
        "cuda_kernels",
        "cuda_reason",
        "reason",
    }
    assert described["torch"] == torch.__version__
    assert described["threads"] == torch.get_num_threads()
    assert described["cuda"] == torch.cuda.is_available()
    assert (described["isa"] is None) == (described["backend"] == "reference")


@NEEDS_NATIVE
def test_instruction_sets() -> None:
    assert ISAS[-1] == "baseline"
    assert set(ISAS) <= {"avx512", "avx2", "baseline"}
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("AVX2", "AVX512"):
        assert "avx2" in ISAS
    assert capability != "AVX512" or "avx512" in ISAS


@pytest.mark.parametrize("name", ["auto", "native", "reference"])
def test_the_backend_that_is_asked_for_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native answer must not come from the reference, nor the reverse."""
    if name != "reference" and not ISAS:
        pytest.skip("needs the native extension")
    called = []
    for function in ("gramian", "combine", "combine_"):
        monkeypatch.setattr(reference, function, lambda *a, f=function, **k: called.append(f))
    with ops.use_backend(name):
        ops.gramian([[ONES]])
        ops.combine([[ONES]], float64(1))
        ops.combine_([ONES.clone()], [[ONES]], float64(1))
    assert called == (["gramian", "combine", "combine_"] if name == "reference" else [])


def test_native_forbids_other_devices() -> None:
    meta = torch.ones(3, device="meta")
    weights = torch.ones(1, dtype=torch.float64, device="meta")
    if ISAS:
        for call in (
            lambda: ops.gramian([[None, meta]]),
            lambda: ops.combine([[None, meta]], weights),
            lambda: ops.combine_([meta, meta], [[None, meta]], weights),
            lambda: ops.solve("pcgrad", weights[None]),
        ):
            with (
                ops.use_backend("native"),
                pytest.raises(RuntimeError, match=r"'native' forbids the reference.* on meta"),
            ):
                call()
    with ops.use_backend("auto"):
        found = ops.gramian([[meta]])
    assert (found.device.type, found.shape, found.dtype) == ("meta", (1, 1), torch.float64)


def test_answers_agree_between_backends_in_one_process() -> None:
    rows = [[torch.randn(100)], [torch.randn(100)]]
    answers = []
    for name in ("reference", "native") if ISAS else ("reference",):
        with ops.use_backend(name):
            answers.append(ops.combine(rows, float64(0.5, 0.25)))
    assert_same(answers[0], answers[-1])
