"""The tables of whole training steps: time and memory over those of joint training."""

from __future__ import annotations

from benchmarks.marks import Results
from benchmarks.tables.base import Rows, Table, markdown
from mtlfast.bench.digits import three

__all__ = ["BREAKDOWN", "MEMORY", "TIME", "TINY", "methods"]

MODELS = {"MLP": "MLP", "convolutional": "CNN", "transformer": "transformer"}

LAST = "`gramian_params=`, last Linear or convolution"
ENGINES = {
    "`stored`": "stored",
    "`batched`": "batched",
    "`factored`": "factored",
    "`streaming`": "streaming",
    "`sketched`, S = 65536": "sketched",
    LAST: "gramian_params, last Linear",
    "`gramian_params=`, last encoder layer": "gramian_params, last layer",
    "`features=`": "features",
    "`update_every=10`": "update_every=10",
    "`auto`": "auto",
}

PEERS = {
    "TorchJD, chunks of 1": "TorchJD, chunks of 1",
    "TorchJD, one chunk": "TorchJD, one chunk",
    "TorchJD, default": "TorchJD, default",
    "TorchJD autogram": "TorchJD, autogram",
    "LibMTL": "LibMTL, default",
    "conflictfree": "conflictfree, one cat",
    "conflictfree, default": "conflictfree, default",
    "plain torch": "torch, stack + matmul",
}


def _over_joint(figure: str, contestants: dict[str, str]) -> Table:
    """The ratios of K = 2 / 4 / 8 in each cell."""
    cell = f'{{? cpu each "{figure}/<model>, K = *, <contestant>" .2f}}'
    last = cell.replace("<contestant>", "gramian_params, last convolution")
    return Table(
        rows={words: {"contestant": name} for words, name in contestants.items()},
        columns={words: cell.replace("<model>", model) for words, model in MODELS.items()},
        instead={(LAST, "convolutional"): last.replace("<model>", MODELS["convolutional"])},
    )


TIME = _over_joint(
    "step/time",
    {
        "K bare backwards and a forward": "K backwards",
        "bare vmap batch": "vmap batch",
        **ENGINES,
        **PEERS,
    },
)
"""Time over that of joint training."""

MEMORY = _over_joint(
    "memory/over",
    {
        **{words: name for words, name in ENGINES.items() if name != "update_every=10"},
        **PEERS,
    },
)
"""Peak memory over that of joint training."""


def _steps(results: Results) -> Rows:
    """The steps whose parts were measured."""
    rows = results.report("cpu").of("step/breakdown")
    cases = [r.case.removesuffix(", whole") for r in rows if r.case.endswith(", whole")]
    return {case: {"case": case} for case in cases}


PARTS = ("forward", "backwards", "gramian", "solve", "combine", "optimizer", "rest")
BREAKDOWN = Table(
    rows=_steps,
    corner="ms",
    columns={
        "whole step": '{cpu "step/breakdown/<case>, whole"}',
        **{part: f'{{? cpu "step/breakdown/<case>, {part}"}}' for part in PARTS},
    },
)
"""Where the time of a training step goes."""


def _of_tiny(results: Results) -> Rows:
    """Everyone's step on the tiny model."""
    rows = results.report("cpu").of("step/ms", model="tiny MLP")
    cases = [r.case for r in rows if not r.case.endswith("SGD")]
    return {case.removeprefix("tiny MLP, K = 2, "): {"case": case} for case in cases}


TINY = Table(
    rows=_of_tiny,
    columns={"ms": '{cpu "step/ms/<case>"}', "over joint": '{? cpu "step/time/<case>" .2f}'},
)
"""A model that is nothing but overhead."""


def methods(results: Results) -> list[str]:
    """Every peer's best mode over ours, by method, at four tasks."""
    rows = [
        r
        for r in results.report("cpu").of("step/methods", mode="best", engine="auto", K=4)
        if r.p50 is not None
    ]
    names = list(dict.fromkeys(r.versus for r in rows))
    found = {(str(r.labels["method"]), r.versus): three(r.p50 or 0.0) for r in rows}
    lines = [
        [method, *(found.get((method, name), "") for name in names)]
        for method in sorted({method for method, _ in found})
    ]
    return markdown([["method", *names], *lines])
