"""Checks of what a user hands to ``MultiTaskOptimizer`` and to its ``backward``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mtlfast import capture, jacobian
from mtlfast.weighting import Weighting


def choice(name: str, value: object, known: Sequence[str]) -> str:
    """One of some words, or ValueError."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}")
    return value


def count(name: str, value: object, least: int = 1) -> int:
    """A whole number from ``least`` on, or TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, found {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, found {value}")
    return value


def sketch_size(value: object) -> int:
    """A power of two from 1024 on, or TypeError or ValueError."""
    size = count("sketch_size", value, 1024)
    if size & (size - 1):
        raise ValueError(f"sketch_size: expected a power of two, found {size}")
    return size


def engine(name: str, method: Weighting, update_every: int) -> None:
    """Raises ValueError where the method needs more than the engine gives."""
    kind = type(method).__name__
    if method.compares_raw:
        if update_every > 1 and not method.needs_task_grads:
            raise ValueError(
                f"update_every: expected 1 for {kind}, which needs no task gradients, "
                f"found {update_every}"
            )
        return
    what = "combines single columns" if method.family == "column" else "has buffers or a transform"
    if name in jacobian.GRAMIAN_ONLY:
        raise ValueError(
            f"engine: expected auto, stored or batched for {kind}, which {what} and needs all K "
            f"task gradients at once, found {name!r}"
        )
    if update_every > 1:
        raise ValueError(
            f"update_every: expected 1 for {kind}, which {what} at every step, found {update_every}"
        )


def batches(method: Weighting, found: int) -> None:
    """Raises ValueError unless the method compares this many batches."""
    wanted = method.num_batches
    if found != wanted:
        raise ValueError(
            f"losses: {type(method).__name__} expected the losses of {wanted} independent "
            f"batch{'es' * (wanted > 1)}, found {found}"
        )


def captured(update_every: int, losses: Tensor) -> None:
    """Raises RuntimeError where a CUDA graph would replay one kind of step for ever."""
    if update_every > 1 and capture.under_way(losses):
        raise RuntimeError(
            f"update_every: expected 1 in a captured step, which is replayed as it is, "
            f"found {update_every}"
        )


def compared(method: Weighting, params: tuple[Tensor, ...] | None) -> None:
    """Raises ValueError where parameters to compare were chosen for a method that uses all."""
    if params is not None and not method.compares_raw:
        raise ValueError(
            f"gramian_params: {type(method).__name__} compares all shared parameters "
            f"and expected None, found {len(params)}"
        )


def features(
    found: object, method: Weighting, gramian_params: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """The features as a tuple, or TypeError or ValueError; empty where none were given."""
    if found is None:
        return ()
    if isinstance(found, Tensor):
        found = (found,)
    if not isinstance(found, Sequence) or not all(isinstance(z, Tensor) for z in found):
        raise TypeError(
            f"features: expected a tensor or a sequence of tensors, found {type(found).__name__}"
        )
    if not found:
        raise ValueError("features: expected at least one tensor, found none")
    if gramian_params is not None:
        raise ValueError("features: expected None beside gramian_params, found both")
    if not method.compares_raw:
        raise ValueError(
            f"features: expected None for {type(method).__name__}, which needs the gradients of "
            f"all shared parameters, found {len(found)}"
        )
    return tuple(found)


def params(
    name: str, found: Iterable[Tensor] | None, groups: Iterable[Mapping[str, Any]]
) -> tuple[Tensor, ...] | None:
    """Parameters of the wrapped optimizer, or TypeError or ValueError."""
    if found is None:
        return None
    if isinstance(found, Tensor) or not isinstance(found, Iterable):
        raise TypeError(f"{name}: expected an iterable of parameters, found {type(found).__name__}")
    chosen = tuple(found)
    if not chosen:
        raise ValueError(f"{name}: expected at least one parameter, found none")
    known = {id(p) for group in groups for p in group["params"]}
    for i, param in enumerate(chosen):
        if id(param) not in known:
            raise ValueError(
                f"{name}[{i}]: expected a parameter of the wrapped optimizer, found another"
            )
    return chosen


def names(task_names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Different names, or TypeError or ValueError."""
    if task_names is None:
        return None
    if isinstance(task_names, str) or not isinstance(task_names, Sequence):
        raise TypeError(
            f"task_names: expected a sequence of names, found {type(task_names).__name__}"
        )
    found = tuple(task_names)
    if not found or len(set(found)) != len(found) or not all(isinstance(n, str) for n in found):
        raise ValueError(f"task_names: expected different names, found {list(found)}")
    return found
