"""How calls are timed on a GPU; and, to try the scripts without one, on fibers."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Call = Callable[[int], object]
"""Gets the number of the input set to work on: sets take turns, so that caches hold none."""

Times = dict[str, list[float]]
"""Seconds by the name of the call, one number for each round."""

MILLISECOND = 2_000_000  # ticks of a GPU's clock, about


class Gpu:
    """The current CUDA device."""

    fibers = False

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.properties = torch.cuda.get_device_properties(self.device)
        self.cache_bytes = int(getattr(self.properties, "L2_cache_size", 0)) or 64 << 20

    def sync(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, calls: dict[str, Call], rounds: int, sets: int = 1, warmup: int = 2) -> Times:
        """Device time of calls that do not wait for the device, all in turn, round after round.

        The device sleeps while the host launches, so that the time between launches is not counted.
        """
        for turn in range(warmup):
            for call in calls.values():
                call(turn % sets)
        events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
        self.sync()
        for turn in range(rounds):
            for name, call in calls.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                torch.cuda._sleep(MILLISECOND)  # type: ignore[no-untyped-call]
                start.record()
                call(turn % sets)
                end.record()
                events[name].append((start, end))
            self.sync()
        return {
            name: [start.elapsed_time(end) * 1e-3 for start, end in pairs]
            for name, pairs in events.items()
        }

    def wall(self, calls: dict[str, Call], rounds: int, sets: int = 1, warmup: int = 2) -> Times:
        """Time from an idle device to an idle device: for calls that wait for it on the way."""
        times: Times = {name: [] for name in calls}
        for turn in range(warmup + rounds):
            for name, call in calls.items():
                self.sync()
                start = time.perf_counter()
                call(turn % sets)
                self.sync()
                if turn >= warmup:
                    times[name].append(time.perf_counter() - start)
        return times

    def host(self, call: Call, rounds: int, sets: int = 1, repeats: int = 20) -> list[float]:
        """What a call keeps the host busy for, while the device works on earlier ones."""
        found = []
        for turn in range(rounds + 2):
            self.sync()
            start = time.perf_counter()
            for i in range(repeats):
                call(i % sets)
            if turn >= 2:
                found.append((time.perf_counter() - start) / repeats)
        self.sync()
        return found

    def graph(self, call: Call, sets: int = 1) -> Call:
        """The call from CUDA graphs, one for each input set."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            for number in range(sets):
                call(number)
        torch.cuda.current_stream().wait_stream(side)
        graphs = []
        for number in range(sets):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call(number)
            graphs.append(graph)
        return lambda number: graphs[number].replay()

    def free(self) -> None:
        torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        """For the table's head."""
        return {
            "gpu": self.properties.name,
            "multiprocessors": self.properties.multi_processor_count,
            "cache_bytes": self.cache_bytes,
            "memory_bytes": self.properties.total_memory,
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }


class Fibers(Gpu):
    """CPU tensors inside the tests' ``fibers()``; the times mean nothing."""

    fibers = True

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.cache_bytes = 1 << 14

    def sync(self) -> None:
        pass

    def seconds(self, calls: dict[str, Call], rounds: int, sets: int = 1, warmup: int = 2) -> Times:
        return self.wall(calls, min(rounds, 2), sets, min(warmup, 1))

    def graph(self, call: Call, sets: int = 1) -> Call:
        return lambda number: call(number % sets)

    def free(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"gpu": "none: fibers, whose times mean nothing"}


def copying(machine: Gpu, total_bytes: int) -> tuple[Call, float]:
    """A plain copy, and how many bytes it reads and writes: the floor for all that moves bytes."""
    source = torch.ones(total_bytes // 8, dtype=torch.float32, device=machine.device)
    target = torch.empty_like(source)
    return (lambda _: target.copy_(source)), 8.0 * source.numel()


def rate(times: list[float], moved: float) -> float:
    """Bytes per second, by the median."""
    return moved / statistics.median(times)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def gradients(
    machine: Gpu,
    num_tasks: int,
    sizes: list[int],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[list[Tensor]]:
    """K rows of random gradients with something in common, each tensor with memory of its own."""
    generator = torch.Generator(device=machine.device).manual_seed(seed)

    def drawn(size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=machine.device)

    rows: list[list[Tensor]] = [[] for _ in range(num_tasks)]
    for size in sizes:
        common = drawn(size)
        for k, row in enumerate(rows):
            row.append((drawn(size) * (1 + 0.1 * k) + 0.3 * (-1) ** k * common).to(dtype))
    return rows
