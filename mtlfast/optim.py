"""The wrapper around a torch optimizer: the whole data flow of a balanced step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlfast import fused, jacobian, ops, options, scaling, shown
from mtlfast.diagnostics import StepInfo
from mtlfast.losses import Losses, TaskLosses
from mtlfast.nonfinite import POLICIES, Policy
from mtlfast.ops import TaskGrads
from mtlfast.pending import Pending, Written
from mtlfast.reuse import Held
from mtlfast.weighting import ColumnWise, Weighting, get
from mtlfast.wrapper import Wrapper


class MultiTaskOptimizer(Wrapper):
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

    With ``GradScaler``, hand over plain losses and the scaler, ``backward(losses, scaler=scaler)``,
    then ``scaler.step(optimizer)`` as ever. (Losses that were scaled before are what the method
    sees: right only where its weights do not depend on a common scale.)

    ``backward`` may be called several times before ``step``: task gradients and losses add up, and
    the method balances the sums as one step. A ``grad`` that is there before the first ``backward``
    is added to, as in torch. Where no task gradients are kept (the engines "streaming" and
    "sketched", ``features``, and ``gramian_params`` under "auto") a step's further micro-batches
    are weighted as its first one was; so they are by a method that needs no gradients.

    Args:
        inner: the optimizer that makes the step. Its parameters are the ones that are balanced.
        weighting: a method, such as ``mtlfast.PCGrad()``, or its name.
        shared_params: the parameters to balance; default: found at every step, as above. A given
            parameter is balanced also when a single loss reaches it; any other that several losses
            reach gets the sum of their gradients.
        engine: where the task gradients come from. "stored": K backwards, all gradients kept.
            "batched": one backward for all tasks by ``torch.vmap``. "factored": the gradients of
            linear layers stay products of their inputs and output gradients. "streaming": an exact
            Gramian block by block, then one backward of the weighted sum. "sketched": the same
            with random sketches, in memory that does not grow with the model. "auto" (default):
            "factored" where products cost less by a count of operations, else "stored"; what does
            not fit in memory is streamed, and only if a single block does not fit, sketched;
            ``last`` says which and why.
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

        update_every: the Gramian is computed in every n-th step; in the steps between its weights
            are used again, at the price of plain training (and of one backward through each
            task's own head).
        chunk_size: how many tasks the engine "batched" differentiates at once; default: all.
        sketch_size: S, a power of two: how long the sketches of the engine "sketched" are. Cosines
            have a standard error of about ``1/sqrt(S)``; norms are exact.

    Attributes:
        last: what the last ``backward`` saw (:class:`mtlfast.diagnostics.StepInfo`); None before.

    Raises:
        TypeError: ``inner`` is no optimizer, or ``weighting`` neither a method nor a name.
        ValueError: another argument has an unknown value; the method needs all task gradients and
            the engine does not keep them; or the optimizer or the method cannot be fused: another
            optimizer or a subclass, ``differentiable=True``, a method that combines columns, or
            one whose joint backward writes ``grad``.
    """

    _carried: ClassVar[tuple[str, ...]] = (
        *("inner", "weighting", "engine", "nonfinite", "fused_step", "max_grad_norm"),
        *("update_every", "chunk_size", "sketch_size", "_task_names", "_shared", "_compared"),
        "_scaled",
    )

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
        update_every: int = 1,
        chunk_size: int | None = None,
        sketch_size: int = 65536,
    ) -> None:
        if not isinstance(inner, torch.optim.Optimizer) or isinstance(inner, MultiTaskOptimizer):
            raise TypeError(
                f"inner: expected a torch.optim.Optimizer to wrap, found {type(inner).__name__}"
            )
        self.inner = inner
        self.weighting = get(weighting)
        self.engine = options.choice("engine", engine, jacobian.ENGINES)
        self.nonfinite = options.choice("nonfinite", nonfinite, POLICIES)
        self.update_every = options.count("update_every", update_every)
        self.chunk_size = None if chunk_size is None else options.count("chunk_size", chunk_size)
        self.sketch_size = options.sketch_size(sketch_size)
        self._task_names = options.names(task_names)
        self._shared = options.params("shared_params", shared_params, self.param_groups)
        self._compared = options.params("gramian_params", gramian_params, self.param_groups)
        options.compared(self.weighting, self._compared)
        options.engine(self.engine, self.weighting, self.update_every)
        self.fused_step = fused_step
        self.max_grad_norm = fused.check_norm(max_grad_norm, fused_step)
        if fused_step:
            fused.check(inner, self.weighting, nonfinite)
        self._scaled: dict[str, Any] | None = None  # the method before a step that may be skipped
        self._init_unsaved()

    def _init_unsaved(self) -> None:
        """What no checkpoint and no copy carries: hooks, and the step under way."""
        self._init_hooks()
        # GradScaler then leaves its checks to the step, which refuses: there is no grad to check.
        self._step_supports_amp_scaling = self.fused_step
        self.last: StepInfo | None = None
        self._policy = Policy(self.nonfinite)
        self._notes = jacobian.Notes()
        self._forget()
        self._held: Held | None = None

    def _restart(self) -> None:
        self._forget()
        self._held = self._scaled = None

    def _forget(self) -> None:
        self._pending: Pending | None = None
        # Weights of a step with a joint backward under way, and what it has written.
        self._step_weights: tuple[Tensor, Written] | None = None

    # ---- the step -------------------------------------------------------------------------------

    def backward(
        self,
        losses: Losses,
        *other_batches: Losses,
        features: Tensor | Sequence[Tensor] | None = None,
        scaler: Any = None,
        retain_graph: bool = False,
        **inputs: Tensor,
    ) -> None:
        """Differentiates K losses and fills ``.grad`` with the balanced gradient.

        With ``fused_step`` the gradient is left to :meth:`step`.

        Args:
            losses: K scalars of one step: a list, a tuple, a dict of names, or a tensor ``[K]``.
                The names of the first dict hold for all later ones, whatever their order. A tensor
                that is no ``torch.stack`` of losses has one graph for all of them, as losses have
                that one compiled function returns: every task then reaches every parameter, so
                name the shared ones by ``shared_params``.
            *other_batches: the same tasks' losses on further independent batches, for a method that
                compares batches: ``weighting.num_batches - 1`` of them.
            features: the shared representation, one tensor or several: the method compares the
                losses' gradients with respect to it, and one backward goes through what it was
                computed from. Instead of the engine and of ``gramian_params``.
            scaler: a ``GradScaler``. Hand over plain losses: they are scaled here, so that the
                method sees true losses and gradients, and ``grad`` is scaled as ``scaler.step``
                and ``scaler.unscale_`` expect it. Where the scaler then skips the step, the
                method's state goes back to what it was.
            retain_graph: keep the graph, for another optimizer's ``backward`` on the same losses.
            **inputs: the method's own inputs, such as ``order`` for PCGrad.

        Raises:
            TypeError: losses of the wrong type, or complex or sparse gradients.
            ValueError: no losses, a loss that is no scalar or has no graph, other task names than
                before, losses on several devices, losses of too few or too many batches, losses
                that reach no parameter, or features that no loss is computed from. After any error
                parameters, ``grad`` and the method's state are as they were.
            RuntimeError: the graph cannot be differentiated by the engine that was asked for; or a
                CUDA graph of the step is captured beside ``update_every``.
            FloatingPointError: NaN or Inf, under ``nonfinite="raise"``.
        """
        tasks = TaskLosses.read(losses, self._task_names)
        scale = scaling.factor(scaler, tasks.losses[0], self.weighting, self.fused_step)
        if scale is not None:
            tasks = dataclasses.replace(tasks, scale=scale)
        options.batches(self.weighting, 1 + len(other_batches))
        batches = [tasks, *(TaskLosses.read(other, tasks.names) for other in other_batches)]
        apart = {id(p) for p in self.weighting.parameters()}  # the method itself sees to their grad
        request = jacobian.Request(
            TaskLosses.join(batches),
            len(tasks.losses),
            [
                p
                for group in self.param_groups
                for p in group["params"]
                if p.requires_grad and id(p) not in apart
            ],
            self._shared,
            self._compared,
            retain_graph,
            options.features(features, self.weighting, self._compared),
            self.chunk_size,
            self.sketch_size,
            self._notes,
        )
        values = tasks.values()
        if other_batches:
            values = torch.stack([values, *(batch.values() for batch in batches[1:])]).mean(0)
        if not self.weighting.needs_task_grads and not self._policy.looks:
            self._weight(request, tasks, values, inputs)
        else:
            options.captured(self.update_every, values)
            under_way, held = self._under_way(request), self._held
            if under_way is None:
                self._undo_skipped()
            keeps = None if under_way is None else under_way.jacobian.is_kept
            if held is not None and held.serves(
                len(request.tasks.losses), keeps, self.update_every
            ):
                self._reuse(request, tasks, values, held, under_way)
            else:
                self._balance(request, tasks, values, inputs, under_way)
        if tasks.named:
            self._task_names = tasks.names

    def _balance(
        self,
        request: jacobian.Request,
        tasks: TaskLosses,
        values: Tensor,
        inputs: Mapping[str, Tensor],
        under_way: Pending | None,
    ) -> None:
        """Losses to task gradients to Gramian to weights to ``grad``; or nothing, by an error."""
        method = self.weighting
        found = jacobian.differentiate(
            self.engine,
            request,
            needs_rows=not method.compares_raw,
            adds=under_way is not None,
        )
        before = method.snapshot()
        step: Pending | None = None
        try:
            if under_way is None:
                counts = self._policy.counts
                step = Pending.start(found, values, method, before, counts, self.fused_step)
            else:
                step = under_way.further(found, values, method)
            grads = step.jacobian
            adds = step.adds
            split = request.split(grads.reach)
            seen = shown.show(method, self._policy, grads, split, tasks, step.losses)
            gramian = seen.gramian
            shared_params = [request.params[t] for t in split.shared]
            rows: TaskGrads = grads.select(split.shared)
            if not method.compares_raw:
                every = [p for group in self.param_groups for p in group["params"]]
                rows = shown.transformed(method, rows, seen, shared_params, every)
                gramian = ops.gramian(rows) if method.needs_gramian else None
            weights = None
            if not isinstance(method, ColumnWise):
                weights = scaling.weigh(method, gramian, seen.losses, inputs, tasks.scale)
            weights, own = shown.factors(method, weights, seen)
            plain = grads.is_plain or not method.compares_raw
            if self.fused_step:
                assert weights is not None
                # The Gramian is that of all shared parameters, unless some were chosen for it.
                known = gramian if self._compared is None and grads.seen is None else None
                parts = [fused.Part(shared_params, rows, weights, known)]
                if not plain:
                    parts = grads.parts(split.shared, weights, known)
                update = fused.Update((*parts, *grads.parts(split.own, own, None)))
            else:
                # Added at last, since that cannot be undone; where nothing is there it can.
                own_grads = grads.combine(split.own, own) if adds else []
                step.begin()
                if not adds:
                    grads.combine_(split.own, own, accumulate=False)
                if isinstance(method, ColumnWise):
                    method.combine_(shared_params, rows, accumulate=adds, **inputs)
                elif plain:
                    method.combine_(shared_params, rows, weights, accumulate=adds)
                else:
                    assert weights is not None
                    grads.combine_(split.shared, weights, accumulate=adds)
        except BaseException:
            if step is not None:
                step.undo()
            method.restore(before)
            raise
        if self.fused_step:
            if step.calls == 1 and self._pending is not None:
                self._pending.write()  # micro-batches that this one does not continue
            step.update = update
        elif adds:
            _add(request, split.own, own_grads)
        step.finish()
        self._pending = step
        if tasks.scale is not None and self._scaled is None:
            self._scaled = step.state
        if seen.kept is not None:
            self._policy.note(step.skip_counts, seen.kept, seen.losses)
        if weights is not None:
            self._held = Held(weights)
        seen = shown.Shown(step.losses, gramian, seen.kept)
        status = method.status_flag()
        self.last = StepInfo(tasks.names, grads.engine, grads.reason, *seen, weights, status)

    def _weight(
        self,
        request: jacobian.Request,
        tasks: TaskLosses,
        values: Tensor,
        inputs: Mapping[str, Tensor],
    ) -> None:
        """Losses to weights to one joint backward, for a method that compares no gradients.

        It sees one call a step: further micro-batches are weighted as the first one was.
        """
        self.weighting.check_inputs(inputs)
        params = request.params
        under_way = self._step_weights
        if under_way and not (len(under_way[0]) == len(values) and under_way[1].stands(params)):
            under_way = None
        if under_way is None:
            self._undo_skipped()
        before = self.weighting.snapshot()
        try:
            if under_way is None:
                weights = scaling.weigh(self.weighting, None, values, inputs, tasks.scale)
            else:
                weights = under_way[0]
            jacobian.weighted_(tasks, weights, params, retain_graph=request.retain_graph)
        except BaseException:
            self.weighting.restore(before)
            raise
        self._step_weights = (weights, Written.read(params))
        if tasks.scale is not None and under_way is None:
            self._scaled = before
        why, seen = "the method compares no gradients", shown.Shown(values)
        status = self.weighting.status_flag()
        self.last = StepInfo(tasks.names, "joint", why, *seen, weights, status)

    def _reuse(
        self,
        request: jacobian.Request,
        tasks: TaskLosses,
        values: Tensor,
        held: Held,
        under_way: Pending | None,
    ) -> None:
        """Known weights to one backward of the weighted sum; single tasks' parts get their own."""
        found = jacobian.reused(request)
        split = request.split(found.reach)
        seen = shown.show_again(self._policy, found, split, tasks, values)
        weights, own = shown.factors(self.weighting, held.weights, seen)
        assert weights is not None
        own_grads = found.combine(split.own, own)
        found.combine_(split.shared, weights, accumulate=True)
        _add(request, split.own, own_grads)
        if under_way is not None:
            under_way.finish()
        elif seen.kept is not None:
            self._policy.note(self._policy.counts, seen.kept, seen.losses)
        why, seen = f"with the weights of {held.origin}", seen._replace(losses=values)
        status = self.weighting.status_flag()
        self.last = StepInfo(tasks.names, found.engine, why, *seen, weights, status)

    def _under_way(self, request: jacobian.Request) -> Pending | None:
        """The step of which this call is one more micro-batch."""
        pending = self._pending
        if pending is None or not pending.continues(request.params, request.num_tasks):
            return None
        return pending

    def _undo_skipped(self) -> None:
        """Takes the method back to before a step that a scaler has skipped."""
        if self._scaled is not None:
            scaling.undo(self.weighting, self._scaled)
            self._scaled = None

    def _weighting_state(self) -> dict[str, Any]:
        if self._scaled is None:
            return super()._weighting_state()
        with scaling.undone(self.weighting, self._scaled):
            return super()._weighting_state()

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
        self._forget()
        self._scaled = None
        if self._held is not None:
            self._held = self._held.older()
        return result

    def _update(self) -> fused.Update | None:
        if self._pending is not None:
            return self._pending.update
        written = any(p.grad is not None for group in self.param_groups for p in group["params"])
        return fused.Update(()) if written else None

    def _evaluate(self, closure: Callable[[], Any]) -> Tensor:
        with torch.enable_grad():
            self.zero_grad()
            found = closure()
            self.backward(*(found if self.weighting.num_batches > 1 else (found,)))
        assert self.last is not None
        return self.last.objective

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of all parameters, and the task gradients kept so far."""
        self._forget()
        self._undo_skipped()
        self.inner.zero_grad(set_to_none)

    # ---- what it tells --------------------------------------------------------------------------

    @property
    def skip_counts(self) -> list[int]:
        """How often each task was dropped, under ``nonfinite="drop"``; empty before that."""
        return [] if self._policy.counts is None else self._policy.counts.tolist()


def _add(request: jacobian.Request, columns: Sequence[int], grads: Sequence[Tensor | None]) -> None:
    """Adds the gradients of some columns to what ``grad`` holds."""
    for t, grad in zip(columns, grads, strict=True):
        if grad is not None:
            jacobian.add(request.params[t], grad)
