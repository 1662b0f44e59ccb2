"""Which engine makes the task gradients of a step, and why."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mtlfast import capture
from mtlfast.jacobian import memory
from mtlfast.jacobian.batched import batched
from mtlfast.jacobian.compat import REENTRANT, Explained
from mtlfast.jacobian.factored import factored, paying
from mtlfast.jacobian.gradients import Jacobian
from mtlfast.jacobian.graph import Graph
from mtlfast.jacobian.linear import SMALLEST
from mtlfast.jacobian.notes import Plan
from mtlfast.jacobian.partial import at_features, compared
from mtlfast.jacobian.request import Request
from mtlfast.jacobian.sketched import sketched
from mtlfast.jacobian.stored import stored
from mtlfast.jacobian.streaming import streaming

_ENGINES: dict[str, Callable[[Request], Jacobian]] = {
    "stored": stored,
    "batched": batched,
    "factored": factored,
    "streaming": streaming,
    "sketched": sketched,
}
ENGINES = ("auto", *_ENGINES)
GRAMIAN_ONLY = ("factored", "streaming", "sketched")
"""Engines that never hold all K gradients: only for methods that see their Gramian alone."""
_KEPT = ("stored", "factored")
"""Engines of "auto" whose gradients can be added to those of another micro-batch."""


def differentiate(
    engine: str, request: Request, *, needs_rows: bool, adds: bool = False
) -> Jacobian:
    """The task gradients by an engine.

    Args:
        engine: its name, or "auto".
        request: what is asked for.
        needs_rows: whether the method reads the K gradients themselves.
        adds: whether they are added to kept ones of earlier micro-batches of the step.

    Raises:
        RuntimeError: the graph is that of a compiled model with donated buffers; or it has a
            reentrant checkpoint, and only "stored" can do without a part of a backward; or
            ``torch.vmap`` cannot differentiate it, under "batched".
        ValueError: no loss reaches any parameter, or features that no loss is computed from.
    """
    with Explained():
        return _differentiate(engine, request, needs_rows, adds)


def _differentiate(engine: str, request: Request, needs_rows: bool, adds: bool) -> Jacobian:
    if request.is_reentrant and (request.features or engine not in ("auto", "stored")):
        name, found = ("features", "them") if request.features else ("engine", repr(engine))
        raise RuntimeError(
            f"{name}: expected {'None' if request.features else 'auto or stored'} beside a "
            f"checkpoint with use_reentrant=True, found {found}; {REENTRANT}, use_reentrant=False "
            f"everything"
        )
    if request.features:
        return _because(at_features(request), "features were given")
    if engine != "auto":
        return _because(_ENGINES[engine](request), "it was asked for")
    if needs_rows:
        return _because(stored(request), "the method reads all task gradients")
    if request.is_reentrant:
        return _because(stored(request), REENTRANT)
    if request.compared is not None:
        return _because(compared(request), "gramian_params were given")
    if len(request.tasks.losses) == 1:
        return _because(stored(request), "there is one loss")
    return _carried_out(_planned(request, adds), request)


def _because(jacobian: Jacobian, reason: str) -> Jacobian:
    jacobian.reason = jacobian.reason or reason
    return jacobian


def _planned(request: Request, adds: bool) -> Plan:
    """What was chosen before, or, now and then, what is best now."""
    notes, key = request.notes, _key(request)
    plan = notes.plans.get(key)
    # A captured graph must not ask for free memory, and a step must keep its gradients' form.
    is_bound = adds or capture.under_way(request.tasks.losses[0])
    if plan is not None and is_bound and (plan.engine in _KEPT or not adds):
        return plan
    if plan is not None and plan.left and not is_bound:
        plan.left -= 1
        return plan
    return notes.choose(key, *_choice(request, is_bound))


def _key(request: Request) -> tuple[int, int]:
    return len(request.tasks.losses), len(request.params)


def _choice(request: Request, is_bound: bool) -> tuple[str, str]:
    """An engine and the reason, by sizes."""
    count, params = len(request.tasks.losses), request.params
    needed = {device: count * size for device, size in memory.by_device(params).items()}
    lacking = None if is_bound else memory.lacking(needed)
    if lacking is not None or any(p.dim() == 2 and p.numel() >= SMALLEST for p in params):
        graph = Graph(request.tasks)
        chosen = paying(graph, request)
        if lacking is not None and chosen:
            for layer in chosen:
                needed[layer.param.device] -= count * layer.param.nbytes
            lacking = memory.lacking(needed)
        if lacking is not None:
            return _lean(graph, request, *lacking)
        if chosen:
            return "factored", ""
    return "stored", "its K backwards cost least here"


def _lean(graph: Graph, request: Request, size: int, there: int) -> tuple[str, str]:
    """Block by block where the K gradients of the largest one fit, else in sketches."""
    why = f"K P = {memory.in_words(size)} do not fit in {memory.in_words(there)}"
    block = len(request.tasks.losses) * _largest_block(graph, request)
    if block <= memory.SHARE * there:
        return "streaming", why
    return "sketched", f"{why}, nor do {memory.in_words(block)} of the largest block"


def _largest_block(graph: Graph, request: Request) -> int:
    """Bytes of the parameters between two cuts of the graph; the most."""
    sizes = [
        (place, param.nbytes)
        for param in request.params
        if (place := graph.leaf_place(param)) is not None
    ]
    cut, largest = graph.cut(), 0
    for lower in graph.cuts(cut):
        inside = lower.above & ~cut.above
        largest = max(largest, sum(size for place, size in sizes if inside >> place & 1))
        cut = lower
    return largest


def _carried_out(plan: Plan, request: Request) -> Jacobian:
    """The plan's engine; "stored" where that cannot differentiate this graph."""
    if plan.engine == "stored":
        return _because(stored(request), plan.reason)
    try:
        return _because(_ENGINES[plan.engine](request), plan.reason)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        try:
            found = stored(request)
        except RuntimeError:
            raise error from None
        why = f"{plan.engine} failed: {str(error).splitlines()[0]}"
        request.notes.choose(_key(request), "stored", why)
        return _because(found, why)
