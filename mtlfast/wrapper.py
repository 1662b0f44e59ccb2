"""What makes the wrapper an optimizer: the wrapped one's groups, state and checkpoints."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlfast.weighting import Weighting

_STATE_KEY = "mtlfast"
_HIDDEN = {
    "shared_params": "_shared",
    "gramian_params": "_compared",
    "task_names": "_task_names",
}
"""Where arguments are kept that are no attributes of the same name."""


class Wrapper(torch.optim.Optimizer):
    """Shares ``param_groups``, ``state`` and ``defaults`` with the optimizer that it wraps.

    A subclass sets ``inner``, ``weighting`` and ``_task_names``, names in ``_carried`` what its
    copies and pickles carry, and defines :meth:`_init_unsaved`, which it calls where it is made,
    and :meth:`_restart`.
    """

    _carried: ClassVar[tuple[str, ...]]

    inner: torch.optim.Optimizer
    weighting: Weighting
    _task_names: tuple[str, ...] | None

    def _init_hooks(self) -> None:
        """Hooks, which no checkpoint and no copy carries, as in torch."""
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._optimizer_state_dict_pre_hooks = OrderedDict()
        self._optimizer_state_dict_post_hooks = OrderedDict()
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        self._patch_step_function()

    @abstractmethod
    def _init_unsaved(self) -> None:
        """What no checkpoint and no copy carries, :meth:`_init_hooks` among it."""

    @abstractmethod
    def _restart(self) -> None:
        """Drops all that is kept of the steps so far."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's own list."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The wrapped optimizer's own state."""
        return self.inner.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's own defaults."""
        return self.inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.inner.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group to the wrapped optimizer."""
        self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's ``state_dict`` with the method's state under "mtlfast".

        ``torch.load(..., weights_only=True)`` takes it.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = dict(self.inner.state_dict())
        state_dict[_STATE_KEY] = {
            "weighting": self._weighting_state(),
            "task_names": list(self._task_names or ()),
        }
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def _weighting_state(self) -> dict[str, Any]:
        """The method's state after the last step that was made."""
        return self.weighting.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            ValueError: an entry is missing or does not fit; nothing has changed then.
        """
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else dict(changed)
        ours = state_dict.pop(_STATE_KEY, None)
        names = ours.get("task_names") if isinstance(ours, Mapping) else None
        if (
            not isinstance(ours, Mapping)
            or set(ours) != {"weighting", "task_names"}
            or not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
        ):
            raise ValueError(
                f"state_dict[{_STATE_KEY!r}]: expected what MultiTaskOptimizer.state_dict() "
                f"returned, found {ours!r:.60}; a plain optimizer's goes to "
                f"optimizer.inner.load_state_dict"
            )
        before = self.weighting.snapshot()
        self.weighting.load_state_dict(ours["weighting"])
        try:
            self.inner.load_state_dict(state_dict)
        except BaseException:
            self.weighting.restore(before)
            raise
        self._task_names = tuple(names) or None
        self._restart()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or pickle carries; hooks and the step under way stay behind."""
        return {name: self.__dict__[name] for name in self._carried}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._init_unsaved()

    def __repr__(self) -> str:
        """Method, engine, options that are not the default, and the wrapped optimizer."""
        lines = [f"weighting={self.weighting!r}"]
        for name, option in inspect.signature(type(self)).parameters.items():
            value = vars(self).get(name, vars(self).get(_HIDDEN.get(name, ""), option.default))
            if option.kind is not option.KEYWORD_ONLY:
                continue
            if name in ("shared_params", "gramian_params") and value is not None:
                lines.append(f"{name}=<{len(value)} parameters>")
            elif name == "engine" or value != option.default:
                lines.append(f"{name}={value!r}")
        lines.append(f"inner={self.inner!r}".replace("\n", "\n  "))
        return f"{type(self).__name__}(\n  " + ",\n  ".join(lines) + "\n)"
