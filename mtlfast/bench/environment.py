"""Where and with what something was measured."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mtlfast import ops

__all__ = ["PEERS", "environment", "version_of"]

PEERS = ("torchjd", "LibMTL", "conflictfree", "gradnorm-pytorch", "pytorch_optimizer", "triton")
"""Distributions that the benchmarks compare with."""

SOURCES = ("csrc", "mtlfast", "benchmarks", ":!benchmarks/results")


def environment() -> dict[str, Any]:
    """Machine, versions, commit and date."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or os.environ.get("COMMIT"),
        "modified": bool(_git("status", "--porcelain", "--", *SOURCES)),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "peers": {name: version_of(name) for name in PEERS},
        "extension": _extension(),
        **ops.describe(),
    }


def version_of(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extension() -> str | None:
    """A hash of the extension that ran: with several installs it need not be the one expected."""
    spec = importlib.util.find_spec("mtlfast._C")
    if spec is None or spec.origin is None:
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that this package runs from, or None if it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
