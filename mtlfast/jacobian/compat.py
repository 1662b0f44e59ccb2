"""What torch cannot differentiate K times, or not with respect to chosen tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.autograd.graph import GradientEdge, Node

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
    found: set[Node | None] = {
        root.node if isinstance(root, GradientEdge) else root.grad_fn for root in tasks.roots
    }
    left = [node for node in found if node is not None]
    for node in left:  # which grows
        for child, _ in node.next_functions:
            if child not in found:
                found.add(child)
                if child is not None:
                    left.append(child)
    return any("CheckpointFunction" in kind.__name__ for kind in set(map(type, found)))


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
