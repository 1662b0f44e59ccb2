"""Methods that carry buffers as large as the task gradients from step to step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mtlfast import capture
from mtlfast.ops import TaskGrads
from mtlfast.weighting import checks, layout
from mtlfast.weighting.base import Weighting

Rows = list[list["Tensor | None"]]
"""K rows of T tensors; None where nothing has arrived yet."""

_NON_FINITE = 3  # a solver's status: NaN or Inf came in, and the state was left alone


class Buffered(Weighting):
    """Keeps K rows of buffers, one for each task gradient, beside the solver's state.

    A subclass has a ``state_layout`` that is all zeros before the first step only. Its
    :meth:`transform` takes the old rows from :meth:`_previous`, makes new ones of them and hands
    those to :meth:`_arrive`; when the step's solver has spoken, :meth:`_settle` keeps the new rows,
    or the old ones where NaN or Inf came in. Old rows are never written to: a snapshot, and with it
    every way back after an error, holds them by reference. Only a CUDA graph writes to them, at the
    end of the one ``backward`` of its step, so that the next replay finds them there.

    Column t of the task gradients is the same parameter in every step. One that no task reaches in
    a step is None in all K rows: its buffers wait. New parameters stand behind the known ones.
    """

    keeps_buffers = True
    _by_reference: ClassVar[frozenset[str]] = frozenset({"_buffer", "_arriving"})
    _buffer: Rows | None = None
    _arriving: Rows | None = None  # new rows that the solver has not judged yet

    @property
    def compares_raw(self) -> bool:
        """False: what it compares are its buffers."""
        return False

    def reset(self) -> None:
        """Forgets buffers and state, as if the weighting were new: the next call is the first."""
        super().reset()
        self._buffer = self._arriving = None

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and strings, and under "buffer" K lists of T tensors or None.

        It is loadable with ``torch.load(..., weights_only=True)``. Options are not part of it: load
        it into a weighting built with the same options.
        """
        state = super().state_dict()
        if self.keeps_buffers and any(name in state for name, _ in self.state_layout):
            rows = self._buffer or []
            state["buffer"] = [[x if x is None else x.clone() for x in row] for row in rows]
        return state

    # For subclasses

    def _step_number(self, task_grads: TaskGrads, losses: Tensor) -> Tensor:
        """The number of this step, from 1: a float64 scalar on the gradients' device.

        The first number of the state is how many steps were made before.
        """
        device = next((g.device for row in task_grads for g in row if g is not None), losses.device)
        one = torch.ones((), dtype=torch.float64, device=device)
        return one if self._state is None else one + self._state[0].to(device)

    def _previous(self, task_grads: TaskGrads) -> Rows:
        """The buffers of the columns that a task reaches now, on the gradients' device.

        None where there is no buffer yet, or no task reaches the column.

        Raises:
            ValueError: other tasks, fewer tensors or other shapes than in earlier calls.
        """
        width = len(task_grads[0])
        if self._buffer is None:
            return [[None] * width for _ in task_grads]
        tasks, known = len(self._buffer), len(self._buffer[0])
        if len(task_grads) != tasks:
            raise ValueError(
                f"task_grads: expected {tasks} tasks as in earlier calls, "
                f"found {len(task_grads)}; reset() starts anew"
            )
        if width < known:
            raise ValueError(
                f"task_grads: expected at least the {known} tensors of earlier calls, "
                f"found {width}; reset() starts anew"
            )
        likes = [
            next((g for g in column if g is not None), None)
            for column in zip(*task_grads, strict=True)
        ]
        return [
            [
                self._fitted(f"task_grads[{k}][{t}]", row[t] if t < known else None, like)
                for t, like in enumerate(likes)
            ]
            for k, row in enumerate(self._buffer)
        ]

    def _fitted(self, name: str, buffer: Tensor | None, like: Tensor | None) -> Tensor | None:
        """A buffer on the device and in the dtype that go with the gradients that it meets."""
        if buffer is None or like is None:
            return None
        if buffer.shape != like.shape:
            raise ValueError(
                f"{name}: expected shape {list(buffer.shape)} as in earlier calls, "
                f"found {list(like.shape)}; reset() starts anew"
            )
        return buffer.to(like.device, self._buffer_dtype(like.dtype))

    def _buffer_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What the buffers of gradients of this dtype are kept in: the same, here."""
        return dtype

    def _arrive(self, rows: Rows) -> Rows:
        """Takes note of new rows, which are the method's own; returns them."""
        self._arriving = rows
        return rows

    def _settle(self) -> None:
        """Keeps the rows that arrived, unless the solver's status says that they are not finite.

        Without a synchronisation: on a device the old values are written over the new rows there.
        """
        arrived, self._arriving = self._arriving, None
        if arrived is None or self._status is None:
            return
        if _on_host(self._status):
            if int(self._status) == _NON_FINITE:
                return
        else:
            _take_back(self._status != _NON_FINITE, arrived, self._previous(arrived))
        if self._buffer is not None:
            arrived = [
                [*map(_newer, new_row, old_row), *new_row[len(old_row) :]]
                for new_row, old_row in zip(arrived, self._buffer, strict=True)
            ]
        self._buffer = arrived

    def _load(self, entries: dict[str, Any]) -> None:
        rows = None
        if entries and self.keeps_buffers:
            checks.entries(entries, [*(name for name, _ in self.state_layout), "buffer"])
            _, num_tasks = layout.join(self.state_layout, entries)
            rows = _checked(entries.pop("buffer"), num_tasks)
        super()._load(entries)
        self._buffer, self._arriving = rows, None
        if rows is not None:
            self._state_tasks = len(rows)


def _newer(new: Tensor | None, old: Tensor | None) -> Tensor | None:
    return old if new is None else capture.carried(old, new)


def _on_host(flag: Tensor) -> bool:
    """Whether reading a flag costs no synchronisation, and no graph."""
    return flag.is_cpu and not is_compiling()


def _take_back(finite: Tensor, arrived: Rows, previous: Rows) -> None:
    """Writes the old values over new rows, which nobody else holds, unless these are finite."""
    for new_row, old_row in zip(arrived, previous, strict=True):
        for new, old in zip(new_row, old_row, strict=True):
            if new is not None and old is not None:
                torch.where(finite, new, old, out=new)
            elif new is not None:
                new.masked_fill_(~finite, 0.0)


def _checked(value: object, num_tasks: int) -> Rows | None:
    """Copies of the rows in a state_dict, of ``num_tasks`` tasks (-1: of any number)."""
    wanted = f"{'K' if num_tasks < 0 else num_tasks} lists of T finite floating tensors or None"
    message = f"state_dict['buffer']: expected {wanted}, found "
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise ValueError(f"{message}{type(value).__name__}")
    if not value:  # the solver was called, and no gradients were
        return None
    if num_tasks >= 0 and len(value) != num_tasks:
        raise ValueError(f"{message}{len(value)} lists")
    if any(len(row) != len(value[0]) for row in value):
        raise ValueError(f"{message}lists of {', '.join(str(len(row)) for row in value)}")
    for k, row in enumerate(value):
        for t, x in enumerate(row):
            if x is None:
                continue
            if not isinstance(x, Tensor):
                raise ValueError(f"{message}{type(x).__name__} in [{k}][{t}]")
            like = next(other[t] for other in value if other[t] is not None)
            if x.shape != like.shape or x.dtype != like.dtype or not x.is_floating_point():
                raise ValueError(f"{message}{x.dtype} of shape {list(x.shape)} in [{k}][{t}]")
            if not bool(x.isfinite().all()):
                raise ValueError(f"{message}NaN or Inf in [{k}][{t}]")
    return [[x if x is None else x.detach().clone() for x in row] for row in value]
