"""The wrapper around a torch optimizer: the whole data flow of a balanced step."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlfast import capture, fused, jacobian, ops
from mtlfast.diagnostics import StepInfo
from mtlfast.jacobian import TaskGradients
from mtlfast.losses import Losses, TaskLosses
from mtlfast.pending import Blocks, Pending, Written, transformed
from mtlfast.weighting import ColumnWise, Weighting, get

_NONFINITE = ("propagate", "drop", "raise")
_STATE_KEY = "mtlfast"


class MultiTaskOptimizer(torch.optim.Optimizer):
    """Any torch optimizer, with the gradients of K losses balanced over what they share.

    It is a ``torch.optim.Optimizer`` and shares ``param_groups``, ``state`` and ``defaults`` with
    the optimizer that it wraps, so that learning-rate schedulers, ``GradScaler``, gradient clipping
    and checkpoints work as before::

        optimizer = mtlfast.MultiTaskOptimizer(torch.optim.AdamW(params, lr=1e-3), mtlfast.CAGrad())
        for batch in loader:
            losses = model_losses(batch)  # K scalars
            optimizer.zero_grad()
            optimizer.backward(losses)    # in place of sum(losses).backward()
            optimizer.step()

    A parameter that two or more losses reach is shared: its gradient is ``Σ_k w_k g_k`` with the
    method's weights. One that a single loss reaches is task-specific and gets that loss's own
    gradient, times its weight for the methods that weight losses (``weighting.weights_losses``).
    A parameter that no loss reaches keeps its ``grad``.

    With ``GradScaler``, scale each loss: ``backward([scaler.scale(loss) for loss in losses])``. The
    method then sees scaled losses and gradients: right for methods whose weights do not depend on a
    common scale, wrong for those that divide by the losses or compare them with fixed numbers (UW,
    IMTLL, IMTL, SI, STCH, COSMOS, DBMTL, MGDA with a normalization).

    ``backward`` may be called several times before ``step``: task gradients and losses add up, and
    the method balances the sums as one step. A ``grad`` that is there before the first ``backward``
    is added to, as in torch. The task gradients, K times the memory of the gradients, are kept
    until ``step`` or ``zero_grad``.

    Args:
        inner: the optimizer that makes the step. Its parameters are the ones that are balanced.
        weighting: a method, such as ``mtlfast.PCGrad()``, or its name.
        shared_params: the parameters to balance; default: found at every step, as above. A given
            parameter is balanced also when a single loss reaches it; any other that several losses
            reach gets the sum of their gradients.
        engine: where the task gradients come from: "stored" (K backwards) or "auto".
        gramian_params: the parameters whose gradients the method compares, such as the last
            shared layer for GradNorm; default: all shared parameters.
        nonfinite: what NaN or Inf in one task's loss or gradient does: "propagate" it, as torch
            does; "drop" that task from the step, decided on the device; or "raise"
            FloatingPointError before anything has changed, at the price of a synchronisation.
        task_names: K names for messages and ``last``; default: the keys of a dict of losses.
        fused_step: make the combination part of ``step``: ``backward`` writes no ``grad``, and
            ``step`` reads task gradients, parameters and state and writes the latter two in one
            pass. For exactly ``torch.optim.SGD``, ``Adam`` and ``AdamW``, with the arithmetic of
            their single-tensor code up to rounding (16-bit numbers are rounded once, when they
            are written); their state and ``state_dict`` are as ever, so that it may be switched
            between runs. Between ``backward`` and ``step`` there is no
            ``grad`` to clip, to scale (``GradScaler`` is refused) or to clear by the model's
            ``zero_grad``: use ``max_grad_norm`` and this optimizer's ``zero_grad``. A ``grad``
            that other code has written is added, in a step that is not fused.
        max_grad_norm: the largest norm of the gradient of all parameters, as
            ``torch.nn.utils.clip_grad_norm_`` has it, computed from Gramians (``|Jᵀw|² = wᵀGw``)
            and applied on the device; only with ``fused_step``. Where the tasks' gradients cancel
            to a fraction ``f`` of their lengths, its relative error is that of the Gramian (see
            :func:`mtlfast.ops.gramian`) over ``f²``.

    Attributes:
        last: what the last ``backward`` saw (:class:`mtlfast.diagnostics.StepInfo`); None before.

    Raises:
        TypeError: ``inner`` is no optimizer, or ``weighting`` neither a method nor a name.
        ValueError: another argument has an unknown value, or the optimizer or the method cannot be
            fused: another optimizer or a subclass, ``differentiable=True``, a method that combines
            columns, or one whose joint backward writes ``grad``.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        weighting: Weighting | str,
        *,
        shared_params: Iterable[Tensor] | None = None,
        engine: str = "auto",
        gramian_params: Iterable[Tensor] | None = None,
        nonfinite: str = "propagate",
        task_names: Sequence[str] | None = None,
        fused_step: bool = False,
        max_grad_norm: float | None = None,
    ) -> None:
        if not isinstance(inner, torch.optim.Optimizer) or isinstance(inner, MultiTaskOptimizer):
            raise TypeError(
                f"inner: expected a torch.optim.Optimizer to wrap, found {type(inner).__name__}"
            )
        for name, value, known in (
            ("engine", engine, jacobian.ENGINES),
            ("nonfinite", nonfinite, _NONFINITE),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}")
        self.inner = inner
        self.weighting = get(weighting)
        self.engine = engine
        self.nonfinite = nonfinite
        self._task_names = _names(task_names)
        self._shared = self._checked("shared_params", shared_params)
        self._compared = self._checked("gramian_params", gramian_params)
        if self._compared is not None and not self.weighting.compares_raw:
            raise ValueError(
                f"gramian_params: {type(self.weighting).__name__} compares all shared parameters "
                f"and expected None, found {len(self._compared)}"
            )
        self.fused_step = fused_step
        self.max_grad_norm = fused.check_norm(max_grad_norm, fused_step)
        if fused_step:
            fused.check(inner, self.weighting, nonfinite)
        self._init_unsaved()

    def _init_unsaved(self) -> None:
        """What no checkpoint and no copy carries: hooks, as in torch, and the step under way."""
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._optimizer_state_dict_pre_hooks = OrderedDict()
        self._optimizer_state_dict_post_hooks = OrderedDict()
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        self._patch_step_function()
        # GradScaler then leaves its checks to the step, which refuses: there is no grad to check.
        self._step_supports_amp_scaling = self.fused_step
        self.last: StepInfo | None = None
        self._pending: Pending | None = None
        self._skip_counts: Tensor | None = None
        self._last_losses: Tensor | None = None
        self._step_weights: tuple[Tensor, Written] | None = (
            None  # of a step with a joint backward under way
        )

    # ---- the step -------------------------------------------------------------------------------

    def backward(self, losses: Losses, *other_batches: Losses, **inputs: Tensor) -> None:
        """Differentiates K losses and fills ``.grad`` with the balanced gradient.

        With ``fused_step`` the gradient is left to :meth:`step`.

        Args:
            losses: K scalars of one step: a list, a tuple, a dict of names, or a tensor ``[K]``.
                The names of the first dict hold for all later ones, whatever their order. A tensor
                that is no ``torch.stack`` of losses has one graph for all of them: every task then
                reaches every parameter, so name the shared ones by ``shared_params``.
            *other_batches: the same tasks' losses on further independent batches, for a method that
                compares batches: ``weighting.num_batches - 1`` of them.
            **inputs: the method's own inputs, such as ``order`` for PCGrad.

        Raises:
            TypeError: losses of the wrong type, or complex or sparse gradients.
            ValueError: no losses, a loss that is no scalar or has no graph, other task names than
                before, losses on several devices, losses of too few or too many batches, or losses
                that reach no parameter. After any error parameters, ``grad`` and the method's state
                are as they were.
            FloatingPointError: NaN or Inf, under ``nonfinite="raise"``.
        """
        tasks = TaskLosses.read(losses, self._task_names)
        wanted = self.weighting.num_batches
        if len(other_batches) + 1 != wanted:
            raise ValueError(
                f"losses: {type(self.weighting).__name__} expected the losses of {wanted} "
                f"independent batch{'es' * (wanted > 1)}, found {len(other_batches) + 1}"
            )
        batches = [tasks, *(TaskLosses.read(other, tasks.names) for other in other_batches)]
        apart = {id(p) for p in self.weighting.parameters()}  # the method itself sees to their grad
        params = [
            p
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad and id(p) not in apart
        ]
        if self.weighting.needs_task_grads or self.nonfinite != "propagate":
            self._balance(batches, params, inputs)
        else:
            self._weight(tasks, params, inputs)
        if tasks.named:
            self._task_names = tasks.names

    def _weight(
        self, tasks: TaskLosses, params: list[Tensor], inputs: Mapping[str, Tensor]
    ) -> None:
        """Losses to weights to one joint backward, for a method that compares no gradients.

        It sees one call a step: further micro-batches are weighted as the first one was.
        """
        self.weighting.check_inputs(inputs)
        values = tasks.values()
        under_way = self._step_weights
        before = self.weighting.snapshot()
        try:
            if under_way and len(under_way[0]) == len(values) and under_way[1].stands(params):
                weights = under_way[0]
            else:
                weights = self.weighting(None, values, **inputs)
            jacobian.weighted_(tasks.losses, weights, params)
        except BaseException:
            self.weighting.restore(before)
            raise
        self._step_weights = (weights, Written.read(params))
        status = self.weighting.status_flag()
        self.last = StepInfo(tasks.names, "joint", values, weights, None, None, status)

    def _balance(
        self, batches: list[TaskLosses], params: list[Tensor], inputs: Mapping[str, Tensor]
    ) -> None:
        """Losses to task gradients to Gramian to weights to ``grad``; or nothing, by an error."""
        tasks = batches[0]
        method = self.weighting
        task_grads = jacobian.stored(TaskLosses.join(batches), params)
        values = torch.stack([batch.values() for batch in batches]).mean(0)
        before = method.snapshot()
        step: Pending | None = None
        try:
            step = self._accumulate(params, task_grads, values)
            blocks = Blocks.split(
                params, step.task_grads, len(values), self._shared, self._compared
            )
            losses, gramian = step.losses, None
            rows: ops.TaskGrads = blocks.shared
            if method.compares_raw or self.nonfinite != "propagate":
                gramian = ops.gramian(blocks.compared)
            kept = self._finite(tasks.names, gramian, blocks, losses)
            if kept is not None and gramian is not None:
                # A dropped task counts as one with a zero gradient and the loss that it had before.
                losses = self._finite_losses(losses, kept)
                kept_rows = kept.repeat(len(batches))
                gramian = torch.where(kept_rows & kept_rows[:, None], gramian, 0.0)
            if not method.compares_raw:
                if kept is not None:
                    rows = jacobian.masked(rows, kept_rows)
                every = [p for group in self.param_groups for p in group["params"]]
                rows = transformed(method, rows, losses, blocks.shared_params, every)
                gramian = ops.gramian(rows) if method.needs_gramian else None
            weights = None
            if not isinstance(method, ColumnWise):
                weights = method(gramian, losses, **inputs)
            own = self._own_weights(weights, losses, len(batches))
            if kept is not None:
                own = torch.where(kept_rows, own, 0.0)
                weights = None if weights is None else torch.where(kept_rows, weights, 0.0)
            own_grads: list[Tensor | None] = []
            if not self.fused_step:
                own_grads = ops.combine(blocks.own, own)
                step.begin()
                if isinstance(method, ColumnWise):
                    method.combine_(blocks.shared_params, rows, accumulate=step.adds, **inputs)
                else:
                    method.combine_(blocks.shared_params, rows, weights, accumulate=step.adds)
        except BaseException:
            if step is not None:
                step.undo()
            method.restore(before)
            raise
        for param, grad in zip(blocks.own_params, own_grads, strict=not self.fused_step):
            if grad is not None:
                param.grad = grad if param.grad is None else param.grad.add_(grad)
        if self.fused_step:
            assert weights is not None
            if step.calls == 1 and self._pending is not None:
                self._pending.write()  # micro-batches that this one does not continue
            # The Gramian is that of all shared parameters, unless some were chosen for it.
            known = gramian if self._compared is None else None
            shared_part = fused.Part(blocks.shared_params, rows, weights, known)
            own_part = fused.Part(blocks.own_params, blocks.own, own)
            step.update = fused.Update((shared_part, own_part))
        step.finish()
        self._pending = step
        if kept is not None:
            self._skip_counts = capture.carried(self._skip_counts, step.skipped(kept))
            self._last_losses = capture.carried(self._last_losses, losses)
        status = method.status_flag()
        self.last = StepInfo(tasks.names, "stored", step.losses, weights, gramian, kept, status)

    def _own_weights(self, weights: Tensor | None, losses: Tensor, num_batches: int) -> Tensor:
        """``[B K]`` factors of the gradients that belong to one task: their mean over batches."""
        if weights is None:
            own = torch.ones_like(losses)
        else:
            own = self.weighting.own_weights(weights[: len(losses)], losses)
        return own.repeat(num_batches) / num_batches if num_batches > 1 else own

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes the wrapped optimizer's step.

        Args:
            closure: for optimizers that evaluate several times, such as LBFGS: it clears nothing,
                computes the losses and returns them, in any form that :meth:`backward` takes (a
                sequence of B such where the method compares B batches). Here the gradients are
                cleared, balanced, and ``Σ_k w_k L_k`` is what the optimizer sees.

        Returns:
            What the wrapped optimizer's step returns.

        Raises:
            RuntimeError: ``GradScaler`` calls it with ``fused_step``.
            ValueError: an option of a parameter group can no longer be fused.
        """
        evaluate = None if closure is None else lambda: self._evaluate(closure)
        if self.fused_step:
            result = fused.step(self, self.inner, self._update, self.max_grad_norm, evaluate)
        elif evaluate is None:
            result = self.inner.step()
        else:
            # LBFGS takes a tensor, whatever the annotation of its closure says.
            result = self.inner.step(evaluate)  # type: ignore[arg-type]
        self._pending = self._step_weights = None
        return result

    def _update(self) -> fused.Update | None:
        return None if self._pending is None else self._pending.update

    def _evaluate(self, closure: Callable[[], Any]) -> Tensor:
        with torch.enable_grad():
            self.zero_grad()
            found = closure()
            self.backward(*(found if self.weighting.num_batches > 1 else (found,)))
        assert self.last is not None
        return self.last.objective

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of all parameters, and the task gradients kept so far."""
        self._pending = self._step_weights = None
        self.inner.zero_grad(set_to_none)

    def _accumulate(
        self, params: list[Tensor], task_grads: TaskGradients, losses: Tensor
    ) -> Pending:
        """The step under way with these task gradients added, or a new one.

        Another micro-batch takes the method back to before the step, of which it sees one.
        """
        if self._pending is not None and self._pending.continues(params, len(losses)):
            if self.weighting.keeps_buffers and capture.under_way(losses):
                raise RuntimeError(
                    f"losses: expected one backward in a captured step of "
                    f"{type(self.weighting).__name__}, whose buffers the first one has moved on, "
                    f"found a second"
                )
            self.weighting.restore(self._pending.state)
            return self._pending.plus(task_grads, losses)
        self.weighting.prepare(losses.device)
        grads = [param.grad for param in params]
        return Pending(
            params,
            task_grads,
            losses,
            base=[None if g is None or self.fused_step else g.clone() for g in grads],
            state=self.weighting.snapshot(),
            skip_counts=None if self._skip_counts is None else self._skip_counts.clone(),
        )

    def _finite(
        self, names: Sequence[str], gramian: Tensor | None, blocks: Blocks, losses: Tensor
    ) -> Tensor | None:
        """``[K]``: which tasks stay, by the policy for NaN and Inf; None where all do."""
        if self.nonfinite == "propagate" or gramian is None:
            return None
        squares = gramian.diagonal() + ops.gramian(blocks.others).diagonal()
        finite = squares.isfinite().view(-1, len(losses)).all(0)  # in every batch
        kept = finite & losses.to(gramian.device).isfinite()
        if self.nonfinite == "drop":
            return kept
        bad = [name for name, keep in zip(names, kept.tolist(), strict=True) if not keep]
        if bad:
            raise FloatingPointError(
                f"losses: expected finite losses and gradients, found NaN or Inf in task "
                f"{', '.join(bad)}"
            )
        return None

    def _finite_losses(self, losses: Tensor, kept: Tensor) -> Tensor:
        """The losses, with a dropped task's last finite one, or the others' mean if it had none."""
        known = self._last_losses
        if known is None or known.shape != losses.shape:
            known = torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)
        return torch.where(kept, losses, known)

    @property
    def skip_counts(self) -> list[int]:
        """How often each task was dropped, under ``nonfinite="drop"``; empty before that."""
        return [] if self._skip_counts is None else self._skip_counts.tolist()

    def _checked(self, name: str, params: Iterable[Tensor] | None) -> tuple[Tensor, ...] | None:
        if params is None:
            return None
        if isinstance(params, Tensor) or not isinstance(params, Iterable):
            raise TypeError(
                f"{name}: expected an iterable of parameters, found {type(params).__name__}"
            )
        chosen = tuple(params)
        if not chosen:
            raise ValueError(f"{name}: expected at least one parameter, found none")
        known = {id(p) for group in self.param_groups for p in group["params"]}
        for i, param in enumerate(chosen):
            if id(param) not in known:
                raise ValueError(
                    f"{name}[{i}]: expected a parameter of the wrapped optimizer, found another"
                )
        return chosen

    # ---- what makes it an optimizer -------------------------------------------------------------

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
            "weighting": self.weighting.state_dict(),
            "task_names": list(self._task_names or ()),
        }
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

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
        self._pending = self._step_weights = None
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or pickle carries; hooks and the step under way stay behind."""
        options = ("inner", "weighting", "engine", "nonfinite", "fused_step", "max_grad_norm")
        read = ("_task_names", "_shared", "_compared")
        return {name: self.__dict__[name] for name in options + read}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._init_unsaved()

    def __repr__(self) -> str:
        """Method, engine and wrapped optimizer."""
        inner = repr(self.inner).replace("\n", "\n  ")
        return (
            f"MultiTaskOptimizer(\n  weighting={self.weighting!r},\n  engine={self.engine!r},\n"
            f"  inner={inner}\n)"
        )


def _names(task_names: Sequence[str] | None) -> tuple[str, ...] | None:
    if task_names is None:
        return None
    if isinstance(task_names, str) or not isinstance(task_names, Sequence):
        raise TypeError(
            f"task_names: expected a sequence of names, found {type(task_names).__name__}"
        )
    names = tuple(task_names)
    if not names or len(set(names)) != len(names) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"task_names: expected different names, found {list(names)}")
    return names
