"""What every weighting is: checked input in, ``[K]`` weights out, a state that can be saved."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from mtlfast import ops
from mtlfast.ops import TaskGrads
from mtlfast.weighting import checks, layout
from mtlfast.weighting.layout import Layout

REGISTRY: dict[str, type[Weighting]] = {}
"""Every method by name; a subclass of :class:`Weighting` that sets ``name`` enters by itself."""

STATUSES = ("ok", "degenerate", "not converged", "non-finite")
"""What a solver's int32 status means."""

_CONSTANTS = frozenset({bool, int, float, str})


class Call(NamedTuple):
    """One validated call, every tensor detached, contiguous and on ``device``."""

    num_tasks: int  # K; the Gramian's size is num_batches times that
    device: torch.device
    gramian: Tensor | None  # [B K, B K] float64
    losses: Tensor | None  # [K] float64
    inputs: Mapping[str, Tensor | None]  # as given


class Weighting(ABC):
    """Maps the Gramian ``G = J Jᵀ`` of K task gradients to K weights; the update is ``d = Jᵀw``.

    A subclass sets the class attributes, stores its options under the names of its ``__init__``
    arguments, and defines :meth:`_weights`. What it carries from call to call is one float64 vector
    on the device, described by ``state_layout``, and where ``draws`` is set a random counter; the
    rest (saving, loading, resetting, moving) follows from these.

    Attributes:
        name: key in :data:`REGISTRY` and in ``MultiTaskOptimizer(..., "name")``.
        family: what the method looks at: "constant", "gramian", "loss", "column", or "buffer" for
            more than one batch's gradients, in buffers or at once.
        paper: title, year and arXiv id; empty where there is none.
        needs_gramian: False where the weights do not depend on the Gramian.
        needs_losses: True where the losses must be given.
        weights_losses: True: a task-specific parameter gets ``w_k g_k``, as if the losses had been
            weighted; False: its own gradient ``g_k``.
        inputs: names of further keyword arguments of a call, such as "order".
        num_batches: B, on how many independent batches a step must see the K losses. The Gramian is
            then ``[B K, B K]``, one batch's tasks after another's, and there are B K weights.
        keeps_buffers: True where :meth:`transform` carries K rows of buffers from step to step, so
            that a step must bring the tensors of the step before.
        state_layout: names and shapes ("1", "K" or "KK") of the parts of the state, in the order of
            the solver's vector. All zeros is the fresh state.
        draws: True for a method with random numbers; it then has an option ``seed``.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    needs_gramian: bool = True
    needs_losses: bool = False
    weights_losses: bool = False
    inputs: tuple[str, ...] = ()
    num_batches: int = 1
    keeps_buffers: bool = False
    state_layout: Layout = ()
    draws: ClassVar[bool] = False
    seed: int | None = None

    _by_reference: ClassVar[frozenset[str]] = frozenset()  # attributes whose value never changes
    _status: Tensor | None = None
    _state: Tensor | None = None  # float64, laid out by state_layout
    _state_tasks: int = 0  # K of the state
    _rng: Tensor | None = None  # [2] int64: seed, number of calls that drew from it

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            return
        known = REGISTRY.get(cls.name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise TypeError(
                f"name: expected one that no other weighting has, found {cls.name!r}, "
                f"which is {known.__module__}.{known.__qualname__}"
            )
        REGISTRY[cls.name] = cls

    def __call__(
        self, gramian: Tensor | None, losses: Tensor | None = None, **inputs: Tensor | None
    ) -> Tensor:
        """Weights for one step; a method with a state advances it.

        Args:
            gramian: ``[K, K]`` inner products of the task gradients, any float dtype (computed in
                float64); ``[B K, B K]`` where ``num_batches`` is B > 1. May be None where
                ``needs_gramian`` is False and losses are given.
            losses: ``[K]`` task losses, any float dtype. Read only where the method uses them.
            **inputs: the method's own inputs, named in :attr:`inputs`.

        Returns:
            ``[K]`` (``[B K]``) float64 weights on the Gramian's device. All NaN where what the
            method reads holds NaN or Inf; the state is then left as it was.

        Raises:
            TypeError: an argument of the wrong type, or an input that the method does not take.
            ValueError: a wrong shape or dtype, or a missing argument. The state is unchanged.
        """
        num_tasks, device = self._check(gramian, losses)
        self.check_inputs(inputs)
        if gramian is not None and (gramian.dtype is not torch.float64 or gramian.requires_grad):
            gramian = gramian.detach().to(torch.float64)
        if gramian is not None and not gramian.is_contiguous():
            gramian = gramian.contiguous()
        if losses is not None:
            if losses.dtype is not torch.float64 or losses.requires_grad or losses.device != device:
                losses = losses.detach().to(device, torch.float64)
            losses = losses.contiguous()
        return self._weights(Call(num_tasks, device, gramian, losses, inputs))

    def check_inputs(self, inputs: Mapping[str, Tensor | None]) -> None:
        """Raises TypeError unless the method takes every one of these keyword arguments."""
        for key in inputs:
            if key not in self.inputs:
                takes = ", ".join(("gramian", "losses", *self.inputs))
                raise TypeError(
                    f"{key}: {type(self).__name__} expected only {takes}, found it as a keyword"
                )

    @abstractmethod
    def _weights(self, call: Call) -> Tensor:
        """Weights ``[K]`` (``[B K]``) float64 on ``call.device``."""

    @property
    def needs_task_grads(self) -> bool:
        """Whether a step needs the K gradients; if not, one joint backward is enough."""
        return self.needs_gramian

    @property
    def compares_raw(self) -> bool:
        """Whether it sees the task gradients through their Gramian only, and has no transform."""
        return type(self).transform is Weighting.transform

    def transform(self, task_grads: TaskGrads, losses: Tensor) -> TaskGrads:
        """What the method compares and combines: the task gradients, or buffers made of them.

        Called once a step before the weights; a method with buffers advances them here, and is
        given the same T tensors in every step, in the same places (new ones behind them).

        Args:
            task_grads: K (B K) sequences of T tensors, or None where a task does not reach one.
            losses: ``[K]`` float64.

        Returns:
            As ``task_grads``.
        """
        del losses
        return task_grads

    def own_weights(self, weights: Tensor, losses: Tensor) -> Tensor:
        """``[K]`` factors of the gradients that belong to one task alone.

        Args:
            weights: ``[K]``, what the method answered.
            losses: ``[K]`` float64.
        """
        del losses
        return weights if self.weights_losses else torch.ones_like(weights)

    def combine(
        self, task_grads: TaskGrads, weights: Tensor | None, out: list[Tensor | None] | None = None
    ) -> list[Tensor | None]:
        """The combined gradient ``Jᵀw``, as :func:`mtlfast.ops.combine`."""
        assert weights is not None
        return ops.combine(task_grads, weights, out)

    def combine_(
        self,
        params: list[Tensor],
        task_grads: TaskGrads,
        weights: Tensor | None,
        *,
        accumulate: bool = False,
    ) -> None:
        """Writes the combined gradient to ``p.grad``, as :func:`mtlfast.ops.combine_`."""
        assert weights is not None
        ops.combine_(params, task_grads, weights, accumulate=accumulate)

    @property
    def status(self) -> str:
        """How the last call went: "ok", "degenerate", "not converged" or "non-finite".

        It stays on the device until it is read here.
        """
        return STATUSES[0] if self._status is None else STATUSES[int(self._status.item())]

    def status_flag(self) -> str | Tensor:
        """The status of the last call without a copy to the host: "ok", or an int32 scalar."""
        return STATUSES[0] if self._status is None else self._status.clone()

    def prepare(self, device: torch.device) -> bool:
        """Draws the seed that the first call would draw, so that a :meth:`snapshot` holds it.

        Returns:
            Whether that changed anything.
        """
        if self._rng is not None:
            if self._rng.device == device:
                return False
            self._rng = self._rng.to(device)
        elif self.draws:
            if self.seed is None:
                seed = torch.randint(-(2**63), 2**63 - 1, ())
            else:
                seed = torch.tensor(self.seed, dtype=torch.int64)
            self._rng = torch.stack([seed, torch.zeros_like(seed)]).to(device)
        else:
            return False
        return True

    def parameters(self) -> Iterator[Parameter]:
        """Learned numbers that an optimizer of the user's moves; most methods have none."""
        return iter(())

    def snapshot(self) -> dict[str, Any]:
        """Everything this weighting is, for :meth:`restore`; made without a synchronisation."""
        return {key: self._kept(key, value) for key, value in vars(self).items()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to a :meth:`snapshot` of this weighting, which may be used again.

        The state stays in its place: a captured graph reads and writes it there.
        """
        before = {key: vars(self).get(key) for key in ("_state", "_rng", "_status")}
        vars(self).clear()
        for key, value in snapshot.items():
            place: Any = before.get(key)
            if _fits(place, value):
                setattr(self, key, place.copy_(value))
            else:
                setattr(self, key, self._kept(key, value))

    def reset(self) -> None:
        """Forgets the state, as if the weighting were new: the next call is the first."""
        self._status = self._state = self._rng = None

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and strings, loadable with ``torch.load(..., weights_only=True)``.

        Options are not part of it: load it into a weighting built with the same options.
        """
        tensors = {key: value.detach().clone() for key, value in self._state_tensors().items()}
        return {"method": self.name, **tensors}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            TypeError: ``state_dict`` is no mapping.
            ValueError: it is of another method, or an entry is missing, unknown or of the wrong
                shape, dtype or value. Nothing has changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected a dict, found {type(state_dict).__name__}")
        entries = dict(state_dict)
        method = entries.pop("method", None)
        if method != self.name:
            raise ValueError(f"state_dict['method']: expected {self.name!r}, found {method!r}")
        self._load(entries)
        self._status = None

    def __repr__(self) -> str:
        """The constructor call; options left at None or False are left out."""
        options = inspect.signature(type(self)).parameters
        values = {key: getattr(self, key) for key in options}
        shown = (
            f"{key}={value!r}"
            for key, value in values.items()
            if not (value is options[key].default and (value is None or value is False))
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    # For subclasses

    def _kept(self, key: str, value: Any) -> Any:
        """An attribute's value as a snapshot has it: a copy, where it could change."""
        if value is None or type(value) in _CONSTANTS or key in self._by_reference:
            return value
        return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)

    def _state_tensors(self) -> dict[str, Tensor]:
        """The state by name; empty for a method without one, or before it has one."""
        tensors: dict[str, Tensor] = {}
        if self._state is not None and bool(self._state.any()):
            tensors = layout.split(self.state_layout, self._state, self._state_tasks)
        return tensors if self._rng is None else {**tensors, "rng": self._rng}

    def _load(self, entries: dict[str, Any]) -> None:
        """Validates every entry, then takes them over."""
        keys = [key for key, _ in self.state_layout]
        found = keys if any(key in entries for key in keys) else []
        rng = None
        checks.entries(entries, [*found, *(["rng"] if self.draws and "rng" in entries else [])])
        if "rng" in entries:
            rng = checks.entry(entries, "rng", torch.int64, (2,))
        state, num_tasks = layout.join(self.state_layout, entries) if found else (None, 0)
        self._rng, self._state, self._state_tasks = rng, state, num_tasks

    def _flat(self, call: Call) -> Tensor:
        """The state as the solver takes it; zeros before the first call."""
        if self._state is None:
            size = layout.size(self.state_layout, call.num_tasks)
            self._state = torch.zeros(size, dtype=torch.float64, device=call.device)
            self._state_tasks = call.num_tasks
        if call.num_tasks != self._state_tasks:
            argument = "losses" if call.gramian is None else "gramian"
            raise ValueError(
                f"{argument}: expected {self._state_tasks} tasks as in earlier calls, "
                f"found {call.num_tasks}; reset() starts anew"
            )
        self._state = self._state.to(call.device)
        return self._state

    def _drawn(self, call: Call) -> Tensor:
        """The random counter as the solver takes it."""
        self.prepare(call.device)
        assert self._rng is not None  # draws is set
        return self._rng

    def _meetings(self, call: Call) -> tuple[Tensor | None, Tensor | None]:
        """The order in which the tasks meet, checked, or the random counter to draw it from."""
        order = call.inputs.get("order")
        if order is None:
            return None, self._drawn(call)
        return checks.orders("order", order, call.num_tasks).to(call.device), None

    def _solve(
        self,
        call: Call,
        options: Sequence[float],
        *,
        gramian: Tensor | None = None,
        losses: Tensor | None = None,
        inputs: Tensor | None = None,
        order: Tensor | None = None,
        rng: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor:
        """Calls the method's native or reference solver and keeps its status on the device.

        It is given the call's Gramian where the method needs one, unless another is passed.
        """
        if gramian is None and self.needs_gramian:
            gramian = call.gramian
        # A graph makes a new one: reading the old one would bind it to this call's.
        if is_dynamo_compiling() or self._status is None or self._status.device != call.device:
            self._status = torch.zeros((), dtype=torch.int32, device=call.device)
        return ops.solve(
            self.name,
            gramian,
            options=options,
            losses=losses,
            inputs=inputs,
            order=order,
            rng=rng,
            state=state,
            status=self._status,
        )

    def _check(self, gramian: Tensor | None, losses: Tensor | None) -> tuple[int, torch.device]:
        """K and the device of a call, or an error that names the argument."""
        batches = self.num_batches
        rows = 0  # by .shape: len() of a tensor takes a microsecond
        if gramian is not None:
            checks.floats("gramian", "[K, K]", gramian)
            shape = gramian.shape
            rows = shape[0] if len(shape) == 2 and shape[0] == shape[1] else 0
            if rows == 0 or rows % batches:
                size = "K" if batches == 1 else f"{batches} K"
                raise ValueError(f"gramian: expected shape [{size}, {size}], found {list(shape)}")
        elif self.needs_gramian:
            raise ValueError(f"gramian: {type(self).__name__} expected a tensor [K, K], found None")
        if losses is not None:
            checks.floats("losses", "[K]", losses)
            count = losses.shape[0] if losses.dim() == 1 else 0
            if count == 0 or (rows > 0 and count != rows // batches):
                wanted = rows // batches if rows > 0 else "K"
                raise ValueError(f"losses: expected shape [{wanted}], found {list(losses.shape)}")
            return count, losses.device if gramian is None else gramian.device
        if self.needs_losses:
            raise ValueError(f"losses: {type(self).__name__} expected a tensor [K], found None")
        if gramian is None:
            raise ValueError(
                f"gramian: {type(self).__name__} expected a tensor [K, K], or losses [K] instead, "
                f"found None"
            )
        return rows // batches, gramian.device


def _fits(place: object, value: object) -> bool:
    """Whether a value can be written to where another lies."""
    if not isinstance(place, Tensor) or not isinstance(value, Tensor):
        return False
    return place.shape == value.shape and place.device == value.device


def get(weighting: str | Weighting, /, **options: Any) -> Weighting:
    """A weighting by name, or the instance itself.

    Args:
        weighting: name of a method, such as "nash_mtl", or an instance. Case, "_" and "-" do not
            count: "NashMTL" is the same.
        **options: arguments of the method's class; only with a name.

    Raises:
        TypeError: neither a string nor a weighting, or options beside an instance.
        ValueError: no method has this name; the message lists those there are.
    """
    if isinstance(weighting, Weighting):
        if options:
            raise TypeError(
                f"options: expected none beside an instance, found {', '.join(options)}"
            )
        return weighting
    if not isinstance(weighting, str):
        raise TypeError(
            f"weighting: expected a name or a Weighting, found {type(weighting).__name__}"
        )
    plain = {_plain(name): method for name, method in REGISTRY.items()}
    method = plain.get(_plain(weighting))
    if method is None:
        raise ValueError(
            f"weighting: expected one of {', '.join(sorted(REGISTRY))}, found {weighting!r}"
        )
    return method(**options)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
