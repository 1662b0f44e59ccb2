"""The tables of the kernels and the solvers."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.marks import Results
from benchmarks.tables.base import Rows, Table

__all__ = [
    "COLUMNS",
    "CONTESTS",
    "FLOOR",
    "FUSED",
    "GROWTH",
    "PEERS",
    "README",
    "SKETCHES",
    "TENSORS",
    "errors",
    "solvers",
]

LARGE = "P = 1e+07"

PARTS = f'cpu "kernels/parts/K = <K>, {LARGE}, '
FLOOR = Table(
    rows={str(k): {"K": k} for k in (2, 4, 8, 16)},
    corner="K",
    columns={
        "over the floor": f'{{cpu "kernels/floor/K = <K>, {LARGE}" .2f}}',
        "wanted": f'{{cpu "kernels/floor/K = <K>, {LARGE}" target .2f}}',
        "ms": f'{{{PARTS}whole" .1f}}',
        "Gramian": f'{{{PARTS}gramian" .1f}}',
        "solve (CAGrad)": f'{{{PARTS}solve" .2f}}',
        "combine": f'{{{PARTS}combine" .1f}}',
    },
)
"""Time over the floor, and the milliseconds of its parts."""

RATIO = f'cpu "kernels/peers/<method>, K = <K>, {LARGE}, TorchJD, '
METHODS: Rows = {
    "PCGrad": {"method": "pcgrad"},
    "CAGrad": {"method": "cagrad"},
}
BEST, DEFAULT = f'{{{RATIO}Gramian sum" .1f}} x', f'{{{RATIO}default" .1f}} x'
PEERS = Table(
    rows=METHODS,
    columns={
        f"K = {k}, {words}": text.replace("<K>", str(k))
        for k in (4, 8)
        for words, text in (("best mode", BEST), ("default", DEFAULT))
    },
)
"""TorchJD's time over ours."""

README = Table(
    rows={
        f"{words}, {whose}": {"before": before, "after": after}
        for words, before, endings in (
            (
                "PCGrad on given gradients, P = 1e7",
                "kernels/peers/pcgrad, ",
                {
                    "TorchJD's best mode": f", {LARGE}, TorchJD, Gramian sum",
                    "TorchJD's default": f", {LARGE}, TorchJD, default",
                    "`torch.stack` and two products": f", {LARGE}, torch, stack + matmul",
                },
            ),
            (
                "CAGrad on given gradients, P = 1e7",
                "kernels/peers/cagrad, ",
                {"TorchJD's best mode": f", {LARGE}, TorchJD, Gramian sum"},
            ),
            *(
                (
                    f"training step, {model}",
                    f"step/peers/{model}, ",
                    {"TorchJD's best mode": ", best mode of TorchJD / auto"},
                )
                for model in ("MLP", "CNN", "transformer")
            ),
            (
                "peak memory of a step, MLP",
                "memory/peers/MLP, ",
                {"TorchJD's best mode": ", best mode of TorchJD / auto"},
            ),
        )
        for whose, after in endings.items()
    },
    corner="theirs over ours",
    columns={
        f"K = {k}": f"{{cpu {key} .2f}} ({{cpu spread {key} .2f}})"
        for k, key in ((k, f'"<before>K = {k}<after>"') for k in (4, 8))
    },
)
"""The short one of README.md."""


def _cases(figure: str, ending: str = "") -> Callable[[Results], Rows]:
    """A row for every case of a figure, without the ending that they have in common."""

    def rows(results: Results) -> Rows:
        found = [r for r in results.report("cpu").of(figure) if r.case.endswith(ending)]
        return {r.case.removesuffix(ending): {"case": r.case.removesuffix(ending)} for r in found}

    return rows


GROWN, FLOOR_OF_IT = (f'"kernels/growth/<case>, {name}"' for name in ("mtlfast", "floor"))
GROWTH = Table(
    rows=_cases("kernels/growth", ", mtlfast"),
    columns={
        "ms": f"{{cpu {GROWN}}}",
        "floor, ms": f"{{cpu {FLOOR_OF_IT}}}",
        "over the floor": f"{{cpu {GROWN} / {FLOOR_OF_IT} .2f}}",
    },
)
"""Time against the number of parameters."""

TENSORS = Table(rows=_cases("kernels/tensors"), columns={"ms": '{cpu "kernels/tensors/<case>"}'})
"""Time against the number of tensors."""

CONTESTS = Table(
    rows=_cases("kernels/peers"),
    columns={
        "its time over ours": '{cpu "kernels/peers/<case>"}',
        "p20 to p80": '{cpu spread "kernels/peers/<case>"}',
        "its ms": '{cpu "kernels/peers-time/<case>"}',
    },
)
"""Everyone who balances given gradients."""

COLUMN_RATIO = f'cpu "kernels/columns/K = 4, {LARGE}<threads>, <method>" .2f'
COLUMN_TIME = f'cpu "kernels/columns-time/K = 4, {LARGE}<threads>, <method>" .1f'
COLUMN_PEER = f'? cpu min "kernels/columns-peers/<peer>, K = 4, {LARGE}, TorchJD*" .0f'
COLUMNS = Table(
    rows={
        "GradDrop": {"method": "graddrop", "peer": "graddrop"},
        "GradDrop, leaky": {"method": "graddrop, leak", "peer": "none"},
        "TrimmedMean(1)": {"method": "trimmed_mean", "peer": "trimmed_mean"},
    },
    columns={
        "1 thread": f"{{{COLUMN_RATIO}}} ({{{COLUMN_TIME}}} ms)".replace("<threads>", ", 1 thread"),
        "all threads": f"{{{COLUMN_RATIO}}} ({{{COLUMN_TIME}}} ms)".replace("<threads>", ""),
        "against TorchJD's": f"{{{COLUMN_PEER}}} x",
    },
)
"""Column kernels over their floor."""

SKETCH = f'cpu "kernels/sketch/K = 1, {LARGE}<dtype><threads>, S = <S>" .2f'
SKETCH_TIME = f'cpu "kernels/sketch-time/K = 1, {LARGE}<dtype><threads>, S = <S>" .1f'
SKETCHES = Table(
    rows={
        "S = 65536, float32": {"S": 65536, "dtype": ""},
        "S = 65536, bfloat16": {"S": 65536, "dtype": ", bfloat16"},
        "S = 1024, float32": {"S": 1024, "dtype": ""},
    },
    columns={
        "1 thread": f"{{{SKETCH}}} ({{{SKETCH_TIME}}} ms)".replace("<threads>", ", 1 thread"),
        "all threads": f"{{{SKETCH}}} ({{{SKETCH_TIME}}} ms)".replace("<threads>", ""),
    },
)
"""Folding over a read."""

FUSED = Table(
    rows={
        f"{optimizer}, torch {words}": {"optimizer": optimizer, "mode": mode}
        for optimizer in ("SGD with momentum", "AdamW")
        for words, mode in (("`fused=True`", "fused=True"), ("default", "default"))
    },
    columns={
        f"K = {k}": f'{{cpu "kernels/fused/<optimizer>, K = {k}, {LARGE}, torch, <mode>" .2f}}'
        for k in (2, 8)
    },
)
"""Torch's optimizers after a combination, over the fused step."""


def solvers(results: Results) -> list[str]:
    """Microseconds of a call of each method, and TorchJD's at K = 8."""
    rows = results.rows("cpu", "solvers/call/*")
    methods = sorted({str(r.labels["method"]) for r in rows})
    table = Table(
        rows={name: {"method": name} for name in methods},
        corner="method",
        columns={
            **{f"K = {k}": f'{{cpu "solvers/call/<method>, K = {k}" .1f}}' for k in (2, 8, 40)},
            "TorchJD's, K = 8": (
                '{? cpu "solvers/peer calls/<method>, K = 8, TorchJD" .0f} '
                '({? cpu "solvers/peers/<method>, K = 8, TorchJD" .0f} x)'
            ),
        },
    )
    return table(results)


def errors(results: Results) -> list[str]:
    """How far everyone's direction is from the true one, K = 8."""
    kinds = {
        "lengths alike": "random",
        "all gradients x 1e-6": "random, G x 1e-12",
        "x 1e6": "random, G x 1e12",
        "lengths over four decades": "uneven",
    }
    rows = results.report("cpu").of("solvers/error", K=8, kind="random")
    table = Table(
        rows={
            f"{r.labels['method']}, {r.labels['contestant']}": {
                "method": r.labels["method"],
                "name": r.labels["contestant"],
            }
            for r in rows
        },
        corner="method, whose",
        columns={
            words: f'{{cpu "solvers/error/<method>, K = 8, {kind}, <name>" .0e}}'
            for words, kind in kinds.items()
        },
    )
    return table(results)
