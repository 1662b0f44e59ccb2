"""What a page says of a method beside its docstring, read off the method itself."""

from __future__ import annotations

from mtlfast.weighting import ColumnWise, Weighting


def table(method: Weighting) -> list[str]:
    """A table of what the optimizer and the caller must know."""
    rows = [
        ("by name", f'`"{method.name}"`'),
        ("needs", needs(method)),
        ("costs", costs(method)),
        ("task-specific parameters get", own_gradients(method)),
    ]
    if method.inputs:
        rows.append(("inputs of a call", ", ".join(f"`{name}=`" for name in method.inputs)))
    if method.draws:
        rows.append(("random numbers", "`torch.manual_seed`, or the option `seed`"))
    return ["| | |", "|---|---|", *(f"| {cell(a)} | {cell(b)} |" for a, b in rows)]


def wraps(method: Weighting) -> bool:
    """Whether it has another method inside."""
    return isinstance(vars(method).get("weighting"), Weighting)


def needs(method: Weighting) -> str:
    """What the method reads, in short."""
    if wraps(method):
        return "what the wrapped method needs"
    if isinstance(method, ColumnWise):
        found = ["every element of the task gradients"]
    elif not method.compares_raw:
        found = ["G of its K x P buffers"] if method.needs_gramian else ["K x P buffers"]
    else:
        found = ["G"] * method.needs_gramian
    found += ["L"] * method.needs_losses
    text = ", ".join(found) or "nothing"
    return f"{text} ({method.num_batches} batches)" if method.num_batches > 1 else text


def costs(method: Weighting) -> str:
    """Backwards of a step."""
    if wraps(method):
        return "what the wrapped method costs"
    if not method.needs_task_grads:
        return "one joint backward a step"
    if method.num_batches > 1:
        return f"{method.num_batches} K backwards a step, K for each batch"
    return "K backwards a step"


def own_gradients(method: Weighting) -> str:
    """What a parameter that one task alone reaches gets."""
    if wraps(method):
        return "as from the wrapped method"
    if type(method).own_weights is not Weighting.own_weights:
        return "their task's gradient, scaled as described below"
    if method.weights_losses:
        return "`w_k g_k`, as weighted losses give"
    return "`g_k`, their task's own gradient"


def state(method: Weighting) -> list[str]:
    """The entries of ``state_dict``, beyond the method's name."""
    shapes = {"1": "", "K": " `[K]`", "KK": " `[K, K]`"}
    entries = [f"`{name}`{shapes[shape]}" for name, shape in method.state_layout]
    entries += ["`rng` `[2]` int64"] * method.draws
    entries += ["`buffer`, K lists of T tensors"] * method.keeps_buffers
    entries += ["`weighting`, that of the wrapped method"] * wraps(method)
    if not entries:
        return []
    return [f"In `state_dict()`: {', '.join(entries)}; float64 where nothing else is said."]


def cell(text: str) -> str:
    """Text of a table's cell."""
    return text.replace("|", "\\|")
