"""Peak memory by the allocator's own events."""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak", "peak_bytes"]


def peak(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes that ``step`` holds at once of what it has allocated from torch."""
    if device.type != "cuda":
        with tempfile.TemporaryDirectory() as folder:
            return peak_bytes(step, Path(folder) / "trace.json")
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_bytes(step: Callable[[], object], trace: Path) -> int:
    """The same on the CPU, by a profile that is written to ``trace``."""
    gc.collect()
    with _mute(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


@contextmanager
def _mute() -> Iterator[None]:
    """Drops what native code writes to standard error, as the profiler at its start and end."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
