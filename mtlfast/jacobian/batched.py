"""The engine "batched": one backward for all losses at once, by ``torch.vmap``."""

from __future__ import annotations

import re
import traceback
import warnings
from pathlib import Path

import torch
from torch import Tensor

from mtlfast.jacobian.gradients import Jacobian, TaskGradients
from mtlfast.jacobian.graph import Graph
from mtlfast.jacobian.heads import Heads
from mtlfast.jacobian.request import Request

_NO_RULE = "There is a performance drop because we have not yet implemented the batching rule"
_CANNOT = re.compile(r"vmap|[Bb]atching rule|BatchedTensor|that doesn't have storage")
"""How torch words what ``vmap`` cannot do."""


def batched(request: Request) -> Jacobian:
    """K backwards through what single tasks own, then one for all tasks, or one for each chunk.

    Returns:
        K rows of T gradients. The graph is freed by the last backward.

    Raises:
        RuntimeError: ``torch.vmap`` cannot differentiate the graph.
        ValueError: no loss reaches any parameter.
    """
    graph = Graph(request.tasks)
    heads = Heads.differentiate(request, graph, graph.cut())
    count = len(heads.rows)
    size = min(request.chunk_size or count, count)
    for first in range(0, count, size):
        chunk = range(first, min(first + size, count))
        keep = request.retain_graph or chunk.stop < count
        arriving = [heads.cotangents[k] for k in chunk]
        for k in chunk:
            heads.cotangents[k] = []
        for t, grads in _pull(heads, arriving, keep):
            for k, grad in zip(chunk, grads, strict=True):
                if heads.reach[t] >> k & 1:
                    heads.rows[k][t] = grad
    return Jacobian(request.params, heads.rows, heads.reach, "batched")


def _pull(
    heads: Heads, arriving: TaskGradients, retain_graph: bool
) -> list[tuple[int, list[Tensor]]]:
    """Gradients of the parameters below the cut, for some tasks; ``arriving`` is emptied."""
    params = [heads.request.params[t] for t in heads.below]
    found: list[tuple[int, list[Tensor]]] = []
    if len(arriving) == 1:
        grads = heads.pull(heads.cut, arriving.pop(), params, retain_graph=retain_graph)
        for t, grad in zip(heads.below, grads, strict=True):
            if grad is not None:
                found.append((t, [grad]))
        return found
    stacks = [stacked(column) for column in zip(*arriving, strict=True)]
    arriving.clear()
    if not params or all(stack is None for stack in stacks):
        return found
    arrived: list[int] = []

    def one(*grads: Tensor | None) -> list[Tensor]:
        made = heads.pull(heads.cut, grads, params, retain_graph=retain_graph)
        arrived[:] = [t for t, grad in zip(heads.below, made, strict=True) if grad is not None]
        return [grad for grad in made if grad is not None]

    dims = tuple(None if stack is None else 0 for stack in stacks)
    with warnings.catch_warnings():
        # An operator without a rule is called once for each task: right, and no news to the user.
        warnings.filterwarnings("ignore", message=_NO_RULE)
        # What a checkpoint computes again draws what it drew in the forward.
        try:
            made = torch.vmap(one, in_dims=dims, randomness="same")(*stacks)
        except RuntimeError as error:
            if not isinstance(error, NotImplementedError) and not _CANNOT.search(str(error)):
                raise
            raise RuntimeError(
                f"engine: expected a graph that torch.vmap can differentiate, found "
                f"{_operator(error)} ({str(error).strip().splitlines()[0]}); use engine='stored'"
            ) from error
    return [(t, separate(grads)) for t, grads in zip(arrived, made, strict=True)]


def stacked(column: tuple[Tensor | None, ...]) -> Tensor | None:
    """The tasks' gradients at one edge, with zeros for a task that does not reach it."""
    like = next((grad for grad in column if grad is not None), None)
    if like is None:
        return None
    zeros = torch.zeros_like(like) if any(grad is None for grad in column) else like
    return torch.stack([zeros if grad is None else grad for grad in column])


def separate(grads: Tensor) -> list[Tensor]:
    """Views of a tensor ``[K, ...]``, each with memory of its own."""
    rows = list(grads.unbind())
    step = grads.stride(0) if len(rows) > 1 else rows[0].numel()
    if step < rows[0].numel() or not torch.ops.aten.is_non_overlapping_and_dense(rows[0]):
        rows = list(grads.contiguous().unbind())
    return rows


def _operator(error: RuntimeError) -> str:
    """What stopped ``vmap``: an operator, or the code of a custom function or a hook."""
    found = re.search(r"aten::\w+", str(error))
    if found:
        return found.group()
    if "compiled backward" in str(error):
        return "a compiled model"
    library = Path(torch.__file__).parent
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    for code, line in reversed(frames):
        path = Path(code.co_filename)
        if path.is_relative_to(library):
            continue
        if path == Path(__file__):
            break
        return f"{getattr(code, 'co_qualname', code.co_name)} in {path.name}, line {line}"
    return "an operator without a batching rule"
