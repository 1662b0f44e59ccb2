"""What the build decides about CUDA: whether, for which GPUs, and the list of what it made."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from test_build import ROOT, in_words, needs_source_tree, run

CMAKE = shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")
needs_cmake = pytest.mark.skipif(CMAKE is None, reason="cmake is not installed")


@needs_source_tree
@needs_cmake
class TestCuda:
    @staticmethod
    def decide(torch_cuda: str, nvcc: Path, wanted: str = "auto") -> tuple[int, str]:
        assert CMAKE is not None
        process = run(
            CMAKE,
            f"-DTORCH_CUDA={torch_cuda}",
            f"-DMTLFAST_NVCC={nvcc}",
            f"-DMTLFAST_CUDA={wanted}",
            *("-P", ROOT / "cmake" / "cuda.cmake"),
        )
        return process.returncode, in_words(process)

    @staticmethod
    def nvcc(folder: Path, version: str) -> Path:
        tool = folder / "nvcc"
        tool.write_text(
            f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.88'\n"
        )
        tool.chmod(0o755)
        return tool

    @pytest.mark.parametrize(
        ("torch_cuda", "nvcc", "sentence"),
        [
            ("", "13.0", "this torch is a CPU build"),
            ("12.8", None, "torch is built for CUDA 12.8 and no nvcc was found"),
            ("12.8", "13.0", "torch is built for CUDA 12.8 and"),
            ("13.0", "12.9", "install the CUDA 13 toolkit"),
            ("12.0", "12.0", "is CUDA 12.0, and the kernels need 12.1 or newer"),
        ],
    )
    def test_a_missing_part(
        self, tmp_path: Path, torch_cuda: str, nvcc: str | None, sentence: str
    ) -> None:
        tool = self.nvcc(tmp_path, nvcc) if nvcc else tmp_path / "none"
        code, said = self.decide(torch_cuda, tool)
        assert code == 0
        assert "building the CPU kernels only" in said
        assert sentence in said

        code, said = self.decide(torch_cuda, tool, wanted="on")
        assert code != 0
        assert "MTLFAST_CUDA=on, but" in said
        assert sentence in said

        code, said = self.decide(torch_cuda, tool, wanted="off")
        assert code == 0
        assert "turned off" in said

    @pytest.mark.parametrize("wanted", ["auto", "on"])
    def test_all_parts(self, tmp_path: Path, wanted: str) -> None:
        code, said = self.decide("13.2", self.nvcc(tmp_path, "13.0"), wanted)
        assert code == 0
        assert "agree on CUDA 13" in said

    def test_cuda_home_comes_first(self, tmp_path: Path) -> None:
        assert CMAKE is not None
        (tmp_path / "bin").mkdir()
        tool = self.nvcc(tmp_path / "bin", "11.4")
        script = ROOT / "cmake" / "cuda.cmake"
        process = run(CMAKE, "-DTORCH_CUDA=12.8", "-P", script, CUDA_HOME=str(tmp_path))
        assert f"{tool} is CUDA 11.4" in in_words(process)

    def test_wrong_setting(self, tmp_path: Path) -> None:
        code, said = self.decide("", tmp_path / "none", wanted="perhaps")
        assert code != 0
        assert "expected auto, on, off or kernels, found 'perhaps'" in said

    def test_kernels_for_a_cpu_build_of_torch(self, tmp_path: Path) -> None:
        code, said = self.decide("", self.nvcc(tmp_path, "13.0"), wanted="kernels")
        assert code == 0
        assert "whatever torch is" in said
        code, said = self.decide("", tmp_path / "none", wanted="kernels")
        assert code != 0
        assert "MTLFAST_CUDA=kernels, but no nvcc was found" in said


NVCC = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_110 sm_120"


@needs_source_tree
class TestArchitectures:
    @pytest.mark.parametrize(
        ("torch_says", "wanted", "answer"),
        [
            ("sm_70 sm_75 sm_80 sm_90a compute_90", "", "75;80;90 90"),
            ("sm_75 sm_120 sm_130 compute_130", "", "75;120 120"),
            ("", "", "75;80;86;90;100;120 120"),
            ("sm_75", "8.0;9.0+PTX", "80;90 90"),
            ("sm_75", "120 sm_90, 80", "80;90;120 "),
        ],
    )
    def test_choice(self, torch_says: str, wanted: str, answer: str) -> None:
        process = run(sys.executable, ROOT / "cmake/architectures.py", NVCC, torch_says, wanted)
        cubins, ptx = answer.split(" ")
        assert process.stdout == f"CUBINS={cubins}\nPTX={ptx}\n"

    @pytest.mark.parametrize(
        ("torch_says", "wanted", "sentence"),
        [
            ("", "Hopper", "expected architectures like 8.0, 90 or 12.0+PTX, found 'Hopper'"),
            ("", "7.0", "this nvcc and the kernels know (75, 80, 86, 90, 100, 110, 120), found '7"),
            ("", "8.7", "found '8.7'"),
            ("sm_70 sm_130", "", "nothing in common from 75 on"),
        ],
    )
    def test_sentences(self, torch_says: str, wanted: str, sentence: str) -> None:
        process = run(sys.executable, ROOT / "cmake/architectures.py", NVCC, torch_says, wanted)
        assert process.returncode != 0
        assert "Traceback" not in process.stderr
        assert sentence in in_words(process)


@needs_source_tree
class TestListOfImages:
    @staticmethod
    def make_list(folder: Path, **images: bytes) -> subprocess.CompletedProcess[str]:
        paths = []
        for name, content in images.items():
            group, _, rest = name.partition("_")
            path = folder / f"{group}.{rest}.{'cubin' if rest.startswith('sm') else 'ptx'}"
            path.write_bytes(content)
            paths.append(path)
        program = ROOT / "cmake/list_images.py"
        return run(sys.executable, program, folder / "images.json", "13.0", *paths)

    CUBIN = b"\0.text.mtlfast_b\0.text.mtlfast_a\0.nv.info.mtlfast_a\0"
    PTX = b".visible .entry mtlfast_a(\n.visible .entry mtlfast_b("

    def test_names(self, tmp_path: Path) -> None:
        process = self.make_list(
            tmp_path, g_sm_90=self.CUBIN, g_sm_75=self.CUBIN, g_compute_90=self.PTX
        )
        assert process.returncode == 0, process.stderr
        assert json.loads((tmp_path / "images.json").read_text()) == {
            "nvcc": "13.0",
            "cubins": [75, 90],
            "ptx": 90,
            "kernels": {"g": ["mtlfast_a", "mtlfast_b"]},
        }

    @pytest.mark.parametrize("other", [b"", b"\0.text.mtlfast_a\0"])
    def test_a_kernel_is_missing(self, tmp_path: Path, other: bytes) -> None:
        process = self.make_list(tmp_path, g_sm_75=self.CUBIN, g_sm_90=other)
        assert process.returncode != 0
        assert "g.sm_90.cubin: expected the kernels ['mtlfast_a', 'mtlfast_b']" in process.stderr
