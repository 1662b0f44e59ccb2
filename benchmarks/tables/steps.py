"""The tables of whole training steps: time and memory over those of joint training."""

from __future__ import annotations

from benchmarks.tables.base import Table

__all__ = ["MEMORY", "TIME"]

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
