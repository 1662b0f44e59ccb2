"""The losses of one step, as the user has them: a list, a tuple, a dict of names, or a tensor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

Losses = Sequence[Tensor] | Mapping[str, Tensor] | Tensor


@dataclass(frozen=True)
class TaskLosses:
    """K checked losses.

    Attributes:
        names: K names; "0", "1", ... where there are none.
        losses: K scalars with a graph, in the order of the names.
        named: whether the names are the user's.
        roots: where the K backwards start: the losses, or the nodes that they were stacked from.
        scale: a scalar that every backward is multiplied by, against underflow; None: 1.
    """

    names: tuple[str, ...]
    losses: tuple[Tensor, ...]
    named: bool
    roots: tuple[Tensor | GradientEdge, ...]
    scale: Tensor | None = None

    @classmethod
    def read(
        cls, losses: Losses, task_names: Sequence[str] | None, scale: Tensor | None = None
    ) -> TaskLosses:
        """Checks what a user hands to ``backward``.

        Args:
            losses: list, tuple, dict of names, or tensor ``[K]``.
            task_names: the K names to expect; a dict is brought into their order.
            scale: as the attribute.

        Raises:
            TypeError: not losses at all, or a complex or integer one.
            ValueError: no losses, other names or another number than expected, a loss that is no
                scalar or has no graph, or losses on several devices.
        """
        roots: tuple[Tensor | GradientEdge, ...] | None = None
        names: tuple[str, ...] = ()
        named = task_names is not None
        if isinstance(losses, list):  # the usual case first: asking abstract classes takes longer
            values = tuple(losses)
        elif isinstance(losses, Mapping):
            named = True
            found = {str(name): loss for name, loss in losses.items()}
            names = tuple(found) if task_names is None else tuple(task_names)
            if set(found) != set(names) or len(found) != len(losses):
                raise ValueError(
                    f"losses: expected the tasks {', '.join(names)}, found {', '.join(found)}"
                )
            values = tuple(found[name] for name in names)
        elif isinstance(losses, Tensor):
            if losses.dim() != 1:
                raise ValueError(
                    f"losses: expected a tensor [K] with one scalar per task, "
                    f"found shape {list(losses.shape)}"
                )
            values = losses.unbind()
            roots = _stacked(losses)
        elif isinstance(losses, Sequence) and not isinstance(losses, str):
            values = tuple(losses)
        else:
            raise TypeError(
                f"losses: expected a list, a tuple, a dict or a tensor [K], "
                f"found {type(losses).__name__}"
            )
        if not values:
            raise ValueError("losses: expected at least one, found none")
        if not names:
            names = tuple(task_names or map(str, range(len(values))))
            if len(names) != len(values):
                raise ValueError(
                    f"losses: expected {len(names)}, one for each of {', '.join(names)}, "
                    f"found {len(values)}"
                )
        for name, loss in zip(names, values, strict=True):
            _check(name, loss, values[0])
        return cls(names, values, named, values if roots is None else roots, scale)

    @classmethod
    def join(cls, batches: Sequence[TaskLosses]) -> TaskLosses:
        """The losses of several batches in one row: all tasks of the first batch, of the next..."""
        if len(batches) == 1:
            return batches[0]
        return cls(
            tuple(name for batch in batches for name in batch.names),
            tuple(loss for batch in batches for loss in batch.losses),
            batches[0].named,
            tuple(root for batch in batches for root in batch.roots),
            batches[0].scale,
        )

    def values(self) -> Tensor:
        """The losses' values, ``[K]`` float64, without their graph."""
        losses = [loss.reshape(()) if loss.dim() else loss for loss in self.losses]
        return torch.stack(losses).detach().double()

    def seeds(self) -> list[Tensor]:
        """K gradients to start the backwards with: ones, or the scale."""
        if self.scale is None:
            return [torch.ones_like(loss) for loss in self.losses]
        return [self.scale.to(loss).expand_as(loss) for loss in self.losses]

    def edges(self) -> list[GradientEdge]:
        """The K roots as edges of the graph."""
        return [
            root if isinstance(root, GradientEdge) else get_gradient_edge(root)
            for root in self.roots
        ]


_EDGES_CAN_START = "GradientEdge" in str(
    inspect.signature(torch.autograd.grad).parameters["outputs"]
)


def _stacked(losses: Tensor) -> tuple[GradientEdge, ...] | None:
    """The nodes of ``torch.stack``'s inputs, or None where the tensor came about otherwise.

    Behind the stack every loss seems to reach whatever any loss reaches, with a gradient of zeros.
    """
    node = losses.grad_fn
    if node is None or node.name() != "StackBackward0" or not _EDGES_CAN_START:
        return None
    edges = [GradientEdge(fn, number) for fn, number in node.next_functions if fn is not None]
    return tuple(edges) if len(edges) == len(losses) else None


def _check(task: str, loss: object, first: object) -> None:
    if (
        isinstance(loss, Tensor)
        and loss.is_floating_point()
        and loss.numel() == 1
        and loss.requires_grad
        and (loss is first or not isinstance(first, Tensor) or loss.device == first.device)
    ):
        return
    name = f"losses[{task if task.isdigit() else repr(task)}]"
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name}: expected a scalar tensor, found {type(loss).__name__}")
    if not loss.is_floating_point():
        raise TypeError(f"{name}: expected a real floating-point scalar, found {loss.dtype}")
    if loss.numel() != 1:
        raise ValueError(f"{name}: expected a scalar, found shape {list(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError(
            f"{name}: expected a loss with a graph, found one without requires_grad (was it "
            f"detached, or computed under no_grad?)"
        )
    assert isinstance(first, Tensor)
    raise ValueError(f"{name}: expected a loss on {first.device}, found {loss.device}")
