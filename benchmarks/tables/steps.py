"""The tables of whole training steps: time and memory over those of joint training."""

from __future__ import annotations

from benchmarks.tables.base import Table

__all__ = ["MEMORY", "TIME"]

MODELS = {"MLP": "MLP", "convolutional": "CNN", "transformer": "transformer"}

ENGINES = {
    "`stored`": "stored",
    "`batched`": "batched",
    "`factored`": "factored",
    "`streaming`": "streaming",
    "`sketched`, S = 65536": "sketched",
    "`gramian_params=`, the last layer": "gramian_params, *",
    "`features=`": "features",
    "`update_every=10`": "update_every=10",
    "`auto`": "auto",
}

TORCHJD = {
    "TorchJD, chunks of 1": "TorchJD, chunks of 1",
    "TorchJD, one chunk": "TorchJD, one chunk",
    "TorchJD, default": "TorchJD, default",
    "TorchJD autogram": "TorchJD, autogram",
}


def _over_joint(figure: str, contestants: dict[str, str]) -> Table:
    """The ratios of K = 2 / 4 / 8 in each cell."""
    return Table(
        rows={words: {"contestant": name} for words, name in contestants.items()},
        columns={
            heading: f'{{? cpu each "{figure}/{model}, K = *, <contestant>" .2f}}'
            for heading, model in MODELS.items()
        },
    )


TIME = _over_joint(
    "step/time",
    {
        "K bare backwards and a forward": "K backwards",
        "bare vmap batch": "vmap batch",
        **ENGINES,
        **TORCHJD,
    },
)
"""Time over that of joint training."""

MEMORY = _over_joint(
    "memory/over",
    {
        **{words: name for words, name in ENGINES.items() if name != "update_every=10"},
        **TORCHJD,
    },
)
"""Peak memory over that of joint training."""
