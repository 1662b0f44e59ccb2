"""The list of CUDA kernels: in the text, in compiled images, and in the page about GPUs."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import compile_kernels
import kernel_names
import pytest

from mtlfast.kernels import images, text

PCGRAD = "mtlfast_solve_Pcgrad"

# ---- the text ------------------------------------------------------------------------------------


def names_that_the_host_asks_for() -> set[str]:
    """By the rules of csrc/cuda and the table of solvers, not by the list of kernels."""
    names = {"mtlfast_upload", "mtlfast_sketch_s", "mtlfast_sketch_l"}
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
    table = page[page.index("## Status") :]
    patterns = re.findall(r"`(mtlfast_[^`]+)`", table)
    names = [name for group in kernel_names.in_text().values() for name in group]
    unlisted = [name for name in names if not any(fnmatchcase(name, p) for p in patterns)]
    assert unlisted == []
    assert [p for p in patterns if not any(fnmatchcase(name, p) for name in names)] == []


PTXAS = """
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    16 bytes stack frame, 8 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""


def test_spills_are_seen() -> None:
    assert compile_kernels.spills(PTXAS) == {"first": 0, "second": 32}
    assert compile_kernels.registers(PTXAS) == 255


@pytest.mark.parametrize(
    ("script", "wrong"),
    [
        ("echo 'a warning'; exit 1", "a warning"),
        ("touch $OUT", "ptxas reported nothing"),
        ('touch $OUT; echo "$PTXAS"', "second spills 32 bytes on sm_90"),
        ('touch $OUT; echo "$PTXAS"', "COMBINE for sm_90: expected"),
    ],
)
def test_a_compiler_that_fails_is_seen(
    script: str, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = tmp_path / "nvcc"
    find_out = 'while [ "$1" != -o ]; do shift; done; OUT=$2'
    nvcc.write_text(f"#!/bin/sh\n{find_out}\n{script}\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PTXAS", PTXAS)
    _, found = compile_kernels.by_nvcc(str(nvcc), "COMBINE", 90)
    assert [message for message in found if wrong in message]


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
