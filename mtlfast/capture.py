"""What a captured CUDA graph needs: state that lies where its replays read and write it."""

from __future__ import annotations

import torch
from torch import Tensor


def under_way(tensor: Tensor) -> bool:
    """Whether work on this tensor is recorded into a CUDA graph just now."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def carried(old: Tensor | None, new: Tensor) -> Tensor:
    """What the next step is to start from: ``new``.

    While a graph is captured it is written into ``old``, where the graph has read it: a replay
    runs no Python that could remember another tensor.
    """
    if old is None or old.shape != new.shape or not under_way(new):
        return new
    return old.copy_(new)
