"""What torch cannot differentiate K times, or not with respect to chosen tensors."""

from __future__ import annotations

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
    starts = (r.node if isinstance(r, GradientEdge) else r.grad_fn for r in tasks.roots)
    nodes: list[Node] = [node for node in starts if node is not None]
    known = set(nodes)
    for node in nodes:  # which grow on the way
        for child, _ in node.next_functions:
            if child is not None and child not in known:
                known.add(child)
                nodes.append(child)
    return any("CheckpointFunction" in kind.__name__ for kind in set(map(type, nodes)))


class Explained:
    """Says what to do about a compiled model whose graph is gone after one backward.

    Raises:
        RuntimeError: torch's own, in these words.
    """

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Only an error is looked at."""
        if isinstance(error, RuntimeError) and "donated buffers" in str(error):
            raise RuntimeError(DONATED) from error
