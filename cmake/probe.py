"""Tells CMake, as KEY=VALUE lines, what it must know of this Python and its torch."""

import os
import sys
import sysconfig

OLDEST = (2, 6)


def probe() -> dict[str, str]:
    """Collects the values; exits with one sentence where something is missing."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        sys.exit(
            f"mtlfast is built against torch, which {sys.executable} does not have: run "
            f"'{sys.executable} -m pip install torch' first."
        )
    version = torch.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        sys.exit(
            f"mtlfast needs torch >= {OLDEST[0]}.{OLDEST[1]} and found {version}: run "
            f"'{sys.executable} -m pip install --upgrade torch'."
        )

    root = os.path.dirname(os.path.abspath(torch.__file__))
    python_include = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(python_include, "Python.h")):
        sys.exit(
            f"mtlfast needs Python's C headers, and {python_include} has no Python.h: install them "
            "(on Debian and Ubuntu 'apt-get install python3-dev')."
        )
    torch_include = os.path.join(root, "include")
    include_dirs = [
        torch_include,
        os.path.join(torch_include, "torch", "csrc", "api", "include"),
        python_include,
    ]
    if not os.path.exists(os.path.join(torch_include, "pybind11", "pybind11.h")):
        try:
            import pybind11
        except ModuleNotFoundError:
            sys.exit(
                "mtlfast needs pybind11, which this torch does not bring: run "
                f"'{sys.executable} -m pip install pybind11'."
            )
        include_dirs.append(pybind11.get_include())

    # torch.cuda.get_arch_list() answers only where there is a GPU; this, in every CUDA build.
    archs = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    return {
        "TORCH_VERSION": version,
        "TORCH_CUDA": torch.version.cuda or "",
        "TORCH_ARCHS": archs or "",
        "TORCH_CXX11_ABI": str(int(torch.compiled_with_cxx11_abi())),
        "TORCH_LIB_DIR": os.path.join(root, "lib"),
        "INCLUDE_DIRS": "|".join(include_dirs),
        "EXT_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
    }


for key, value in probe().items():
    print(f"{key}={value}")
