"""The one door to the native code: picks it, or the reference, for every K x P and K x K operation.

Environment, read when the package is imported:
    MTLFAST_BACKEND: "auto" (default: native where it can run), "native" (anything that would fall
        back raises) or "reference".
    MTLFAST_ISA: "auto" (default), "avx512", "avx2" or "baseline": the CPU kernels to run.
    MTLFAST_CUDA_BACKEND: where the CUDA kernels come from, see :mod:`mtlfast.kernels`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mtlfast import kernels, reference
from mtlfast.operators import tracing

TaskGrads = Sequence[Sequence["Tensor | None"]]
"""K sequences of T tensors; None where a task does not reach a tensor."""

_BACKENDS = ("auto", "native", "reference")
_REINSTALL = (
    "Reinstall it from its source folder: pip install --no-build-isolation --no-deps "
    "--force-reinstall ."
)


def _load_native() -> tuple[ModuleType | None, str | None]:
    """The extension, or None and the reason why it is not there. A broken one raises."""
    try:
        native = importlib.import_module("mtlfast._C")
    except ModuleNotFoundError as error:
        if error.name != "mtlfast._C":
            raise
        return None, "the native extension mtlfast._C was not built"
    except ImportError as error:
        raise ImportError(
            f"mtlfast._C is installed and cannot be loaded ({error}). It was probably built for "
            f"another torch than {torch.__version__}. {_REINSTALL}"
        ) from error
    built_for = str(native.torch_version).split("+")[0].split(".")[:2]
    if built_for != torch.__version__.split("+")[0].split(".")[:2]:
        raise ImportError(
            f"mtlfast._C was built for torch {native.torch_version}, this is torch "
            f"{torch.__version__}. {_REINSTALL}"
        )
    return native, None


def _check_backend(backend: str, source: str) -> str:
    if backend not in _BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(_BACKENDS)}, found {backend!r}")
    if backend == "native" and _native is None:
        raise ImportError(f"{source}: 'native' was asked for, but {_missing}. {_REINSTALL}")
    return backend


_native, _missing = _load_native()
_backend = _check_backend(os.environ.get("MTLFAST_BACKEND") or "auto", "MTLFAST_BACKEND")
if _native is None and _backend == "auto":
    warnings.warn(
        f"mtlfast runs on its plain torch reference, which is slow: {_missing}. {_REINSTALL}",
        RuntimeWarning,
        stacklevel=2,
    )


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Forces the backend inside a ``with`` block, for all threads; meant for tests.

    Args:
        backend: "auto", "native" or "reference". Under "native", whatever would fall back to the
            reference raises RuntimeError.

    Raises:
        ImportError: "native", and there is no extension.
        ValueError: another name.
    """
    global _backend
    previous, _backend = _backend, _check_backend(backend, "backend")
    try:
        yield
    finally:
        _backend = previous


@contextlib.contextmanager
def use_isa(isa: str) -> Iterator[None]:
    """Forces the CPU kernels' instruction set inside a ``with`` block; meant for tests.

    Args:
        isa: one of :func:`supported_isas`, or "auto".

    Raises:
        ImportError: there is no extension.
        ValueError: this CPU does not have the instruction set.
    """
    native = _require_native("isa")
    previous = native.isa()
    native.force_isa(isa)
    try:
        yield
    finally:
        native.force_isa(previous)


@contextlib.contextmanager
def use_sums(sums: str) -> Iterator[None]:
    """Forces what CUDA kernels add the Gramian's products in, inside a ``with`` block.

    Args:
        sums: "float32", "float64", or "auto": by the size of the problem.

    Raises:
        ValueError: another word.
    """
    if _native is None:
        yield
        return
    _native.cuda.force_sums(sums)
    try:
        yield
    finally:
        _native.cuda.force_sums("auto")


def supported_isas() -> list[str]:
    """Instruction sets whose kernels this CPU can run, best first; empty without the extension."""
    return [] if _native is None else list(_native.supported_isas())


def version() -> str:
    """The version of the installed package; "not installed" for a bare source folder."""
    try:
        return metadata.version("mtlfast")
    except metadata.PackageNotFoundError:
        return "not installed"


def describe() -> dict[str, Any]:
    """What runs, and why: versions, backend, instruction set, threads, CUDA.

    Returns:
        A dict with the keys "mtlfast", "torch", "built_for_torch", "backend", "isa", "threads",
        "cuda", "cuda_kernels" ("compiled", "cupy" or "none", for the current GPU), "cuda_reason"
        (why) and "reason" (None where the native code runs).
    """
    native = _native if _backend != "reference" else None
    asked = "the reference was asked for" if _backend == "reference" else None
    cuda_kernels, cuda_reason = "none", asked or _missing
    if native is not None:
        cuda_kernels, cuda_reason = kernels.current()
    return {
        "mtlfast": version(),
        "torch": torch.__version__,
        "built_for_torch": None if _native is None else str(_native.torch_version),
        "backend": "reference" if native is None else "native",
        "isa": None if native is None else native.isa(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.is_available(),
        "cuda_kernels": cuda_kernels,
        "cuda_reason": cuda_reason,
        "reason": asked or _missing,
    }


def gramian(task_grads: TaskGrads) -> Tensor:
    """Inner products of the task gradients, in one pass over their elements.

    Args:
        task_grads: K sequences of T tensors of any shapes, or None where a task does not reach a
            tensor. float32, float64, bfloat16 or float16; one dtype and shape per tensor.

    Returns:
        ``[K, K]`` float64 on the gradients' device. Sums are float64; where many tasks meet long
        tensors, chunks of at most 256 products a lane are float32, for an error of about 1e-7 of
        the norms' product. Bitwise the same for any number of threads. Not differentiable.

    Raises:
        TypeError: an entry is no dense real floating-point tensor, or dtypes differ across tasks.
        ValueError: no tasks, or numbers, shapes or devices that differ across tasks.
    """
    lists = rows(task_grads)
    if is_compiling() and tracing.rows_are_traced(lists):
        return tracing.gramian(lists)
    native = route(lists)
    return native.gramian(lists) if native else reference.gramian(lists)


def combine(
    task_grads: TaskGrads, weights: Tensor, out: list[Tensor | None] | None = None
) -> list[Tensor | None]:
    """The weighted sum of the task gradients, ``d = Jᵀw``, in one pass over their elements.

    Sums are float64, rounded to the gradients' dtype as torch rounds. A task whose weight is
    exactly 0 is not read, so that its NaN or Inf does not come through.

    Args:
        task_grads: as for :func:`gramian`.
        weights: ``[K]`` float64 on the gradients' device.
        out: T tensors to write to (an entry may be None where no task reaches the tensor).

    Returns:
        T tensors; None where no task reaches the tensor. ``out`` where it was given.

    Raises:
        TypeError, ValueError: as :func:`gramian`; or weights or an entry of ``out`` do not fit.
    """
    lists = rows(task_grads)
    _check_arguments(weights, "out", out)
    if is_compiling() and tracing.rows_are_traced(lists):
        return tracing.combine(lists, weights, out)
    native = route(lists)
    if native is None:
        return reference.combine(lists, weights, out)
    combined: list[Tensor | None] = native.combine(lists, weights, out)
    return combined


def combine_(
    params: list[Tensor], task_grads: TaskGrads, weights: Tensor, *, accumulate: bool = False
) -> None:
    """Writes the weighted sum of the task gradients into ``p.grad`` of every parameter.

    Args:
        params: T tensors. Where no task reaches one, its ``grad`` is left alone.
        task_grads: as for :func:`gramian`, of the parameters' shapes and dtypes.
        weights: ``[K]`` float64 on the gradients' device.
        accumulate: add to a ``grad`` that is there, instead of overwriting it.

    Raises:
        TypeError, ValueError: as :func:`combine`.
    """
    lists = rows(task_grads)
    _check_arguments(weights, "params", params)
    native = route(lists)
    if native is None:
        reference.combine_(params, lists, weights, accumulate=accumulate)
    else:
        native.combine_into_grad(params, lists, weights, accumulate)


def solve(
    name: str,
    gramian: Tensor | None,
    *,
    options: Sequence[float] = (),
    losses: Tensor | None = None,
    inputs: Tensor | None = None,
    order: Tensor | None = None,
    rng: Tensor | None = None,
    state: Tensor | None = None,
    status: Tensor | None = None,
) -> Tensor:
    """Runs the K x K solver of a method.

    Args:
        name: the solver, as in ``csrc/solvers/table.h``.
        gramian: ``[K, K]`` float64, contiguous; None for a solver that needs the losses only.
        options: the solver's numbers, in the order of its header.
        losses: ``[K]`` float64.
        inputs: ``[K]`` float64, the method's own numbers of this call.
        order: ``[K, K]`` int64.
        rng: ``[2]`` int64 (seed, counter), advanced in place.
        state: the solver's float64 state, changed in place.
        status: int32 scalar tensor that takes the outcome: 0 ok, 1 degenerate, 2 not converged,
            3 non-finite input.

    Returns:
        ``[K]`` float64 weights on the Gramian's device, or the losses'.
    """
    given = losses if gramian is None else gramian
    if is_compiling() and tracing.is_traced((given,)):
        return tracing.solve(name, gramian, options, losses, inputs, order, rng, state, status)
    native = _native if _backend != "reference" else None
    if native is not None and (given is None or _is_served(native, given)):
        weights: Tensor = native.solve(
            name, gramian, options, losses, inputs, order, rng, state, status
        )
        return weights
    if given is not None:
        _fall_back("a Gramian or losses", given)
    weights, outcome = reference.SOLVERS[name](gramian, options, losses, inputs, order, rng, state)
    if status is not None:
        status.fill_(outcome)
    return weights


def rows(task_grads: TaskGrads) -> TaskGrads:
    """Lists or tuples, which keep their tensors alive; other sequences are read once."""
    if isinstance(task_grads, (list, tuple)) and all(
        isinstance(row, (list, tuple)) for row in task_grads
    ):
        return task_grads
    if isinstance(task_grads, (Tensor, str)) or not isinstance(task_grads, Sequence):
        raise TypeError(
            f"task_grads: expected a sequence of K sequences of tensors, "
            f"found {type(task_grads).__name__}"
        )
    for k, row in enumerate(task_grads):
        if isinstance(row, (Tensor, str)) or not isinstance(row, Sequence):
            raise TypeError(
                f"task_grads[{k}]: expected a sequence of tensors or None, "
                f"found {type(row).__name__}"
            )
    return [list(row) for row in task_grads]


def _check_arguments(weights: object, name: str, tensors: object) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights: expected a tensor, found {type(weights).__name__}")
    if tensors is not None and not isinstance(tensors, list):
        raise TypeError(f"{name}: expected a list of tensors, found {type(tensors).__name__}")


def route(task_grads: TaskGrads) -> ModuleType | None:
    """The extension, or None where the reference has to do it: asked for, or another device."""
    if _backend == "reference" or _native is None:
        return None
    for row in task_grads:
        for tensor in row:
            if tensor is not None:
                if not isinstance(tensor, Tensor) or _is_served(_native, tensor):
                    return _native
                _fall_back("task gradients", tensor)
                return None
    return _native


def _is_served(native: ModuleType, tensor: Tensor) -> bool:
    """Whether the extension has kernels for the tensor's device; ImportError as kernels.ready."""
    if tensor.is_cpu:
        return True
    return tensor.is_cuda and kernels.ready(native.cuda, tensor.get_device())


def _require_native(argument: str) -> ModuleType:
    if _native is None:
        raise ImportError(f"{argument}: needs the native extension, but {_missing}. {_REINSTALL}")
    return _native


def _fall_back(what: str, tensor: Tensor) -> None:
    """Lets the reference do it, unless that is forbidden; slow CUDA is worth a warning."""
    if _native is None or _backend == "reference":
        return
    why = kernels.source(tensor.get_device()).reason if tensor.is_cuda else ""
    if _backend == "native":
        raise RuntimeError(
            f"MTLFAST_BACKEND: 'native' forbids the reference, and there is no kernel for {what} "
            f"on {tensor.device}" + (f": {why}" if why else "")
        )
    if tensor.is_cuda and kernels.setting() == "auto":
        _warn_of_slow_cuda(str(tensor.device), why)


@functools.cache
def _warn_of_slow_cuda(device: str, why: str) -> None:
    warnings.warn(
        f"mtlfast balances gradients on {device} with its plain torch reference, which is slow: "
        f"{why}. MTLFAST_CUDA_BACKEND=none says that this is meant.",
        RuntimeWarning,
        stacklevel=5,
    )
