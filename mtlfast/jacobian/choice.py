"""Which engine makes the task gradients of a step, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mtlfast.jacobian.batched import batched
from mtlfast.jacobian.compat import REENTRANT, explained
from mtlfast.jacobian.gradients import Jacobian
from mtlfast.jacobian.partial import at_features, compared
from mtlfast.jacobian.request import Request
from mtlfast.jacobian.sketched import sketched
from mtlfast.jacobian.stored import stored
from mtlfast.jacobian.streaming import streaming

_ENGINES: dict[str, Callable[[Request], Jacobian]] = {
    "stored": stored,
    "batched": batched,
    "streaming": streaming,
    "sketched": sketched,
}
ENGINES = ("auto", *_ENGINES)
GRAMIAN_ONLY = ("factored", "streaming", "sketched")
"""Engines that never hold all K gradients: only for methods that see their Gramian alone."""


def differentiate(engine: str, request: Request, *, needs_rows: bool) -> Jacobian:
    """The task gradients by an engine.

    Args:
        engine: its name, or "auto".
        request: what is asked for.
        needs_rows: whether the method reads the K gradients themselves.

    Raises:
        RuntimeError: the graph is that of a compiled model with donated buffers; or it has a
            reentrant checkpoint, and only "stored" can do without a part of a backward; or
            ``torch.vmap`` cannot differentiate it, under "batched".
        ValueError: no loss reaches any parameter, or features that no loss is computed from.
    """
    with explained():
        return _differentiate(engine, request, needs_rows)


def _differentiate(engine: str, request: Request, needs_rows: bool) -> Jacobian:
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
    return _because(stored(request), "its K backwards cost least here")


def _because(jacobian: Jacobian, reason: str) -> Jacobian:
    return dataclasses.replace(jacobian, reason=jacobian.reason or reason)
