"""The rows of the GPU's table, section by section: the most important ones first."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import mtlfast
from benchmarks.gpu import engines, machine, peers
from benchmarks.gpu.machine import Call, Gpu
from mtlfast import ops
from mtlfast.bench import methods, workloads
from mtlfast.bench.models import MODELS
from mtlfast.bench.rows import Report, Row, row

FLOOR = "1. over the floor: bytes of each gradient once, at the copy bandwidth; 200 tensors"
SMALL = "2. P = 1e6 in 60 tensors, K = 4, CAGrad: where overhead decides"
TORCHJD = "3. TorchJD 0.18's jac_to_grad over ours, from idle to idle; same gradients"
OPTIMIZER = "4. pytorch_optimizer's PCGrad over ours, its work after the K backwards; K = 8"
TRITON = "5. the same kernels in Triton over ours, its better variant"
TORCH = "6. plain torch over ours, P = 1e8 in 200 tensors"
SOLVERS = "7. device time of a method's call on a Gramian"

LARGE, SIXTH, MEDIUM = 100_000_000, 1_000_000, 20_000_000
Section = Callable[[], None]


class Bench:
    """What the sections share."""

    def __init__(self, gpu: Gpu, report: Report) -> None:
        self.gpu = gpu
        self.report = report
        self.shrink = 200_000 if gpu.fibers else 1  # of all sizes
        self.rounds = 2 if gpu.fibers else 20

    def sections(self) -> list[tuple[str, Section]]:
        """Names and what they run, in this order."""
        found: list[tuple[str, Section]] = []
        for dtype in (torch.float32, torch.bfloat16):
            for num_tasks, target in ((4, 1.15), (8, 1.15), (2, 1.15), (16, 1.25), (40, 1.6)):
                if not self.gpu.fibers or num_tasks <= 8:
                    found.append((FLOOR, partial(self.floor, num_tasks, dtype, target)))
            if dtype == torch.float32:
                found.append((SMALL, self.small))
        for total in (SIXTH, LARGE):
            for name in peers.METHODS:
                found.extend(
                    (TORCHJD, partial(self.torchjd, name, num_tasks, total)) for num_tasks in (4, 8)
                )
            found.append((OPTIMIZER, partial(self.optimizer, total)))
        found.append((TORCH, self.torch))
        found.extend((SOLVERS, partial(self.solvers, num_tasks)) for num_tasks in (4, 8, 40))
        rounds = max(2, self.rounds // 2)
        found.extend(
            (engines.TIME, partial(engines.measure, name, self.gpu, self.report, rounds))
            for name in MODELS
        )
        return found

    def sizes(self, total: int, count: int) -> list[int]:
        """Ragged; few and small ones on fibers."""
        count = 9 if self.gpu.fibers else count
        return [
            max(1, size // self.shrink) for size in workloads.tensor_sizes(total, num_tensors=count)
        ]

    def floor(self, num_tasks: int, dtype: torch.dtype, target: float) -> None:
        """The whole balance and each kernel alone; Triton's beside them."""
        total = MEDIUM if num_tasks == 40 else LARGE
        sizes = self.sizes(total, 200)
        rows = machine.gradients(self.gpu, num_tasks, sizes, dtype)
        out: list[Tensor | None] = [torch.empty_like(g) for g in rows[0]]
        weighting = mtlfast.CAGrad()
        weights = weighting(ops.gramian(rows))

        def balance(_: int) -> None:
            ops.combine(rows, weighting(ops.gramian(rows)), out)

        itemsize, count = rows[0][0].element_size(), sum(sizes)
        gigabyte = (1 << 30) // self.shrink
        copy, moved = machine.copying(self.gpu, 4 * gigabyte)
        calls: dict[str, Call] = {
            "copy": copy,
            "balance": balance,
            "gramian": lambda _: ops.gramian(rows),
            "combine": lambda _: ops.combine(rows, weights, out),
        }
        triton, says = self.triton(rows, out, weights)
        times = self.gpu.seconds({**calls, **triton}, self.rounds)
        best = machine.rate(times["copy"], moved)
        case = f"K = {num_tasks}, P = {total:.0e}, {str(dtype).split('.')[1]}"
        for name, reads, goal in (
            ("balance", 2 * num_tasks + 1, target),
            ("gramian", num_tasks, None),
            ("combine", num_tasks + 1, None),
        ):
            bytes_ = reads * count * itemsize
            seconds = statistics.median(times[name])
            self.report.add(
                row(
                    FLOOR,
                    f"{case}, {name}",
                    "x",
                    [s * best / bytes_ for s in times[name]],
                    target=goal,
                    detail=f"{seconds * 1e3:.3f} ms; {bytes_ / seconds / 1e9:.0f} of "
                    f"{best / 1e9:.0f} GB/s",
                )
            )
        if not triton:
            self.report.add(Row(TRITON, case, "x", detail=says))
            return
        for name in ("gramian", "combine"):
            found = {key: value for key, value in times.items() if key.startswith(f"triton {name}")}
            variant, better = min(found.items(), key=lambda item: statistics.median(item[1]))
            self.report.add(
                row(
                    TRITON,
                    f"{case}, {name}",
                    "x",
                    [a / b for a, b in zip(better, times[name], strict=True)],
                    target=1.0,
                    at_least=True,
                    versus="Triton",
                    detail=f"{statistics.median(better) * 1e3:.3f} ms ({variant[7:]}); {says}",
                )
            )

    def triton(
        self, rows: list[list[Tensor]], out: list[Tensor | None], weights: Tensor
    ) -> tuple[dict[str, Call], str]:
        """Its calls by name and how far its Gramian is from ours; or none, and why."""
        if self.gpu.fibers:
            return {}, "Triton needs a GPU"
        if importlib.util.find_spec("triton") is None:
            return {}, "Triton is missing"
        module: Any = importlib.import_module("mtlfast.bench.peers.triton_kernels")
        programs = 4 * self.gpu.properties.multi_processor_count
        other = module.TritonBalance(rows, out, programs)
        expected = ops.gramian(rows)
        calls: dict[str, Call] = {}
        errors = []
        for variant in ("dot", "broadcast"):
            if variant == "broadcast" and len(rows) > 8:
                continue  # its sums would not fit the registers
            error = float((other.gramian(variant) - expected).abs().max() / expected.abs().max())
            errors.append(f"{variant} differs by {error:.0e}")
            calls[f"triton gramian {variant}"] = partial(_ignoring, other.gramian, variant)
        calls["triton combine"] = partial(_ignoring, other.combine, weights)
        return calls, ", ".join(errors)

    def small(self) -> None:
        """Device, host and graph."""
        sizes = self.sizes(SIXTH, workloads.NUM_TENSORS)
        bytes_ = 4 * 4 * sum(sizes)
        sets = min(16, 1 + 2 * self.gpu.cache_bytes // bytes_)
        data = [machine.gradients(self.gpu, 4, sizes, seed=s) for s in range(sets)]
        out: list[list[Tensor | None]] = [[torch.empty_like(g) for g in rows[0]] for rows in data]
        weighting = mtlfast.CAGrad()

        def balance(number: int) -> None:
            rows = data[number]
            ops.combine(rows, weighting(ops.gramian(rows)), out[number])

        rounds = 5 * self.rounds
        balance(0)
        weights = [weighting(ops.gramian(rows)) for rows in data]
        parts: dict[str, Call] = {
            "balance": balance,
            "gramian": lambda number: ops.gramian(data[number]),
            "combine": lambda number: ops.combine(data[number], weights[number], out[number]),
        }
        for name, samples in self.gpu.seconds(parts, rounds, sets, warmup=sets).items():
            goal = 30 if name == "balance" else None
            self.report.add(
                row(SMALL, f"device, {name}", "us", [s * 1e6 for s in samples], target=goal)
            )
        samples = self.gpu.host(balance, rounds // 5 + 1, sets)
        self.report.add(row(SMALL, "host", "us", [s * 1e6 for s in samples], target=60))
        times = self.gpu.seconds({"graph": self.gpu.graph(balance, sets)}, rounds, sets)
        self.report.add(
            row(SMALL, "inside a graph", "us", [s * 1e6 for s in times["graph"]], target=20)
        )

    def into_grad(self, num_tasks: int, total: int) -> peers.IntoGrad:
        count = 200 if total == LARGE else workloads.NUM_TENSORS
        return peers.IntoGrad(machine.gradients(self.gpu, num_tasks, self.sizes(total, count)))

    def torchjd(self, name: str, num_tasks: int, total: int) -> None:
        case = f"{name}, K = {num_tasks}, P = {total:.0e}"
        if importlib.util.find_spec("torchjd") is None:
            self.report.add(Row(TORCHJD, case, "x", detail="TorchJD is missing"))
            return
        into = self.into_grad(num_tasks, total)
        make, make_peer = peers.METHODS[name]
        ours = into.ours(make())
        for mode, optimized in (("Gramian-sum", True), ("default", False)):
            try:
                aggregator = make_peer(importlib.import_module("torchjd.aggregation"), num_tasks)
                peer = into.torchjd(aggregator, optimized)
                error = peers.difference(into, ours, peer)
                times = self.gpu.wall({"ours": ours, "peer": peer}, max(2, self.rounds // 3), 1, 1)
            except Exception as error_:
                says = f"{type(error_).__name__}: {error_}".splitlines()[0][:90]
                self.report.add(Row(TORCHJD, f"{case}, {mode}", "x", detail=says))
                continue
            self.versus(TORCHJD, f"{case}, {mode}", times, 5.0 if total == SIXTH else 1.2, error)

    def optimizer(self, total: int) -> None:
        case = f"PCGrad, P = {total:.0e}"
        if importlib.util.find_spec("pytorch_optimizer") is None:
            self.report.add(Row(OPTIMIZER, case, "x", detail="pytorch_optimizer is missing"))
            return
        into = self.into_grad(8, total)
        ours, peer = into.ours(mtlfast.PCGrad()), into.pytorch_optimizer()
        error = peers.difference(into, ours, peer)
        times = self.gpu.wall({"ours": ours, "peer": peer}, max(2, self.rounds // 3), 1, 1)
        self.versus(OPTIMIZER, case, times, 8.0, error)

    def versus(
        self, figure: str, case: str, times: machine.Times, target: float, error: float
    ) -> None:
        ms = {name: statistics.median(samples) * 1e3 for name, samples in times.items()}
        self.report.add(
            row(
                figure,
                case,
                "x",
                [a / b for a, b in zip(times["peer"], times["ours"], strict=True)],
                target=target,
                at_least=True,
                versus="TorchJD" if figure == TORCHJD else "pytorch_optimizer",
                detail=f"{ms['peer']:.3f} ms against {ms['ours']:.3f}; differ by {error:.0e}",
            )
        )

    def torch(self) -> None:
        for num_tasks in (4, 8):
            rows = machine.gradients(self.gpu, num_tasks, self.sizes(LARGE, 200))
            out = [torch.empty_like(g) for g in rows[0]]
            weighting = mtlfast.CAGrad()
            calls: dict[str, Call] = {
                "ours": peers.ours(rows, weighting, out),
                "stack, J @ J.T, w @ J": peers.plain(rows, weighting),
            }
            if num_tasks == 4:
                calls["_foreach"] = peers.foreach(rows, weighting, out)
            times = self.gpu.wall(calls, max(2, self.rounds // 2))
            for name in list(calls)[1:]:
                self.report.add(
                    row(
                        TORCH,
                        f"K = {num_tasks}, {name}",
                        "x",
                        [a / b for a, b in zip(times[name], times["ours"], strict=True)],
                        versus="torch",
                        detail=f"{statistics.median(times[name]) * 1e3:.3f} ms",
                    )
                )

    def solvers(self, num_tasks: int) -> None:
        calls: dict[str, Call] = {}
        for name in methods.names():
            method = methods.make(name)
            if self.gpu.fibers and num_tasks * method.num_batches > 8:
                continue
            given = [g.to(self.gpu.device) for g in methods.gramians(method, num_tasks)]
            losses = None
            if method.needs_losses:
                losses = torch.linspace(1, 2, num_tasks, device=self.gpu.device).double()
            calls[name] = lambda number, m=method, g=given, x=losses: m(g[number], x)  # type: ignore[misc]
        if not calls:
            return
        times = self.gpu.seconds(calls, self.rounds, sets=16)
        for name, samples in times.items():
            self.report.add(
                row(SOLVERS, f"{name}, K = {num_tasks}", "us", [s * 1e6 for s in samples])
            )


def _ignoring(call: Callable[[Any], object], argument: object, _: int) -> object:
    return call(argument)
