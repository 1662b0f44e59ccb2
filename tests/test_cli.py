"""The command line beside the demo: version, methods, doctor."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import mtlfast
from mtlfast import doctor, ops
from mtlfast.cli import main
from mtlfast.weighting import REGISTRY


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mtlfast {ops.describe()['mtlfast']}\n"


def test_python_dash_m_and_light_import() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['mtlfast', '--version']\n"
        "try: runpy.run_module('mtlfast', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == f"mtlfast {ops.describe()['mtlfast']}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "mtlfast: error: COMMAND: expected one of demo, bench, doctor, methods, found none"),
        (["dmeo"], "mtlfast: error: COMMAND: invalid choice: 'dmeo'"),
        (["doctor", "--yaml"], "mtlfast: error: unrecognized arguments: --yaml"),
    ],
)
def test_wrong_commands(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "\nmtlfast: interrupted\n"


def test_methods_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Extra(mtlfast.Mean):
        name = "extra"
        family = "test"
        paper = "None, 2026"

    try:
        assert main(["methods"]) == 0
    finally:
        del REGISTRY["extra"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "class", "family", "needs", "paper"]
    rows = {line.split()[0]: line for line in lines[2:]}
    assert set(rows) == {*REGISTRY, "extra"}
    for name, row in rows.items():
        cls = REGISTRY.get(name, Extra)
        assert row.split()[1:3] == [cls.__name__, cls.family]
        assert row.rstrip().endswith(cls.paper)
        assert ("Gramian" in row) >= cls.needs_gramian
        assert ("losses" in row) >= cls.needs_losses
        if cls.num_batches > 1:
            assert f"{cls.num_batches} batches" in row
    assert "nothing" in rows["sum"]
    assert "KPIs" in rows["dtp"]
    assert "Gramian, buffers" in rows["moco"]
    assert "2001.06782" in rows["pcgrad"]


def test_doctor_agrees_with_the_backend(capsys: pytest.CaptureFixture[str]) -> None:
    facts = ops.describe()
    code = main(["doctor"])
    text = capsys.readouterr().out
    assert code == (0 if facts["backend"] == "native" else 1)
    for word in (torch.__version__, facts["mtlfast"], facts["backend"], "self-test ok"):
        assert word in text
    if facts["isa"]:
        assert facts["isa"] in text

    assert main(["doctor", "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert answer["versions"]["torch"] == torch.__version__
    assert answer["backend"]["backend"] == facts["backend"]
    assert answer["backend"]["self_test"] == "ok"
    assert answer["cuda"]["torch_built_for"] == torch.version.cuda
    assert answer["healthy"] is (code == 0)
    assert answer["packages"]["demo"]["scikit-learn"] is not None


def patient(**changes: Any) -> dict[str, Any]:
    return {
        "backend": "native",
        "isa": "avx2",
        "threads": 2,
        "torch": torch.__version__,
        "mtlfast": "1.2.3",
        "built_for_torch": torch.__version__,
        "cuda": False,
        "cuda_kernels": "none",
        "cuda_reason": "torch finds no GPU",
        "reason": None,
        **changes,
    }


def test_doctor_without_extension(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MTLFAST_BACKEND", raising=False)
    found = patient(backend="reference", isa=None, reason="mtlfast._C is not built")
    monkeypatch.setattr(ops, "describe", lambda: dict(found))
    monkeypatch.setattr(doctor, "_compiler", lambda: None)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "mtlfast._C is not built" in text
    assert "apt-get install g++" in text
    assert "pip install --no-build-isolation" in text
    assert "does not run" in text.splitlines()[-1]

    monkeypatch.setenv("MTLFAST_BACKEND", "reference")
    assert main(["doctor"]) == 1
    assert "unset MTLFAST_BACKEND" in capsys.readouterr().out


def test_doctor_finds_wrong_kernels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "describe", patient)
    monkeypatch.setattr(ops, "gramian", lambda task_grads: torch.zeros(2, 2))
    assert main(["doctor"]) == 1
    assert "gramian: expected [[25, 3], [3, 1]], found" in capsys.readouterr().out

    def broken(*_: object) -> None:
        raise RuntimeError("no such symbol")

    monkeypatch.setattr(ops, "gramian", broken)
    assert main(["doctor"]) == 1
    assert "RuntimeError: no such symbol" in capsys.readouterr().out


def test_doctor_names_missing_packages_and_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"demo": ("no-such-package",)})
    source = {
        "setting": "auto",
        "backend": "none",
        "reason": "there are no kernels",
        "compiled": None,
        "nvrtc": None,
        "nvrtc_missing": "CuPy is not installed",
    }
    gpu: dict[str, Any] = {
        "torch_built_for": "13.0",
        "available": True,
        "devices": ["GPU 0"],
        "driver": True,
        "kernels": False,
        "self_test": None,
        "source": source,
    }
    monkeypatch.setattr(doctor, "_cuda", lambda: gpu)
    main(["doctor"])
    text = capsys.readouterr().out
    assert "no-such-package (missing)" in text
    assert "pip install 'mtlfast[demo]'" in text
    assert "GPU 0; gradients there are balanced by the reference" in text
    assert "none: there are no kernels" in text
    assert "balanced by the reference, which is slow: there are no kernels." in text
    assert "pip install 'mtlfast[cupy]'" in text

    source.update(setting="compiled", backend="compiled", reason="the package has sm_90.cubin")
    gpu["kernels"] = True
    main(["doctor"])
    text = capsys.readouterr().out
    assert "GPU 0; gradients there are balanced by mtlfast's CUDA kernels (compiled)" in text
    assert "MTLFAST_CUDA_BACKEND=compiled; compiled: the package has sm_90.cubin" in text
    assert "which is slow" not in text

    source.update(setting="auto", compiled="sm_80, PTX for compute_80")
    gpu.update(available=False, kernels=False)
    main(["doctor"])
    assert "sm_80, PTX for compute_80; CuPy is not installed" in capsys.readouterr().out

    gpu.update(torch_built_for=None, available=False, devices=[])
    main(["doctor"])
    text = capsys.readouterr().out
    assert "CPU build" in text
    assert "There is an NVIDIA driver" in text
