"""What torch cannot differentiate K times, or not with respect to chosen tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.autograd.graph import Node

from mtlfast.losses import TaskLosses

DONATED = (
    "engine: expected a graph that can be differentiated K times, found a compiled model that "
    "gives its saved tensors away in its first backward; set "
    "torch._functorch.config.donated_buffer = False before the model is compiled"
)
REENTRANT = "a reentrant checkpoint allows nothing but whole backwards"


def has_reentrant(tasks: TaskLosses) -> bool:
    """Whether some loss was computed through a checkpoint with ``use_reentrant=True``.

    The parameters inside of one are not in the graph. Asked for their gradients, torch raises; or
    it finds none, where nothing before the checkpoint is asked for.
    """
    found: set[Node] = {edge.node for edge in tasks.edges()}
    left = list(found)
    while left:
        for node, _ in left.pop().next_functions:
            if node is not None and node not in found:
                found.add(node)
                left.append(node)
    return any("CheckpointFunction" in type(node).__name__ for node in found)


@contextmanager
def explained() -> Iterator[None]:
    """Says what to do about a compiled model whose graph is gone after one backward.

    Raises:
        RuntimeError: torch's own, in these words.
    """
    try:
        yield
    except RuntimeError as error:
        if "donated buffers" in str(error):
            raise RuntimeError(DONATED) from error
        raise
