"""GradDrop: of every parameter's K gradients one sign is kept, by chance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mtlfast import column_ops
from mtlfast.ops import TaskGrads
from mtlfast.weighting import checks
from mtlfast.weighting.column_wise import ColumnWise


class GradDrop(ColumnWise):
    """Keeps of every column of the Jacobian either the positive or the negative entries, by chance.

    With ``P = (1 + Σ_k g_k / Σ_k |g_k|) / 2``, the share of the positive entries, and U uniform in
    (0, 1), drawn for each column: where ``P > U`` the positive entries are kept, else the negative
    ones (M_k), ``d = Σ_k (l_k + (1 - l_k) M_k) g_k``. The leak l_k is what comes through of task k
    even so: 0 drops all that is not kept, 1 drops nothing, which is the sum.

    Shapes: task gradients ``[K, P]`` -> combined gradient ``[P]``; there are no task weights. A
    call takes ``uniform=``, ``[P]`` in [0, 1): U over the columns of all tensors that some task
    reaches, one tensor after another. Without it U is a hash of the seed, the number of the call
    and the column, which the kernel computes on the way: on a GPU the same numbers as on the CPU.

    TorchJD's is the same (its ``leak`` is a tensor ``[K]``). LibMTL and the official code decide on
    the gradient of the shared representation, times the sign of its activation; Samsung's code
    multiplies what is kept by l_k instead of ``1 - l_k``. An exact tie of P and U, which drawn
    numbers never meet, keeps the negative side; the paper then drops both.

    Degenerate: a column of zeros gives 0; otherwise one side is always kept. A column that holds
    NaN or Inf gives NaN, as it does in the peers. Use it where tasks pull single parameters in
    opposite directions at similar lengths. It fails where their gradients differ much in length,
    since the longest then decides nearly every sign; and the update is random, so that a single
    step may oppose a task.

    State: seed and counter of the random numbers, on the gradients' device, where the kernels read
    and advance them.

    Args:
        leak: a number in [0, 1], or K of them. Default 0.
        seed: 64-bit seed of the random numbers. Default None: drawn at the first use from torch's
            global generator, hence reproducible by ``torch.manual_seed``.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, another number of leaks than
            tasks.

    Reference: Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign
    Dropout", NeurIPS 2020, arXiv 2010.06808.
    """

    name = "graddrop"
    paper = (
        "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout, 2020, "
        "arXiv 2010.06808"
    )
    inputs = ("uniform",)
    draws = True
    _by_reference = frozenset({"_spread"})
    _spread: Tensor | None = None  # [K], the leaks on a device
    _spread_of: tuple[list[float], torch.device] | None = None  # which leaks, and where

    def __init__(self, leak: float | Sequence[float] = 0.0, seed: int | None = None) -> None:
        self.leak: float | list[float]
        if isinstance(leak, Tensor):
            leak = leak.tolist()
        if isinstance(leak, Sequence) and not isinstance(leak, str):
            if len(leak) == 0:
                raise ValueError("leak: expected a number or K numbers, found none")
            self.leak = [_share(f"leak[{k}]", value) for k, value in enumerate(leak)]
        else:
            self.leak = _share("leak", leak)
        self.seed = checks.seed(seed)

    def combine(
        self,
        task_grads: TaskGrads,
        weights: Tensor | None = None,
        out: list[Tensor | None] | None = None,
        **inputs: Tensor | None,
    ) -> list[Tensor | None]:
        """The combined gradient, as :func:`mtlfast.column_ops.graddrop`; takes ``uniform=``."""
        del weights
        leak, uniform, rng = self._arguments(task_grads, inputs)
        return column_ops.graddrop(task_grads, leak=leak, uniform=uniform, rng=rng, out=out)

    def combine_(
        self,
        params: list[Tensor],
        task_grads: TaskGrads,
        weights: Tensor | None = None,
        *,
        accumulate: bool = False,
        **inputs: Tensor | None,
    ) -> None:
        """Writes the combined gradient to ``p.grad``; takes ``uniform=``."""
        del weights
        leak, uniform, rng = self._arguments(task_grads, inputs)
        column_ops.graddrop_(
            params, task_grads, leak=leak, uniform=uniform, rng=rng, accumulate=accumulate
        )

    def _arguments(
        self, task_grads: TaskGrads, inputs: dict[str, Tensor | None]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Leak, uniform and rng of one call, as the kernel takes them."""
        self.check_inputs(inputs)
        device = column_ops.device_of(task_grads)
        uniform = inputs.get("uniform")
        rng = None
        if uniform is None:
            self.prepare(device)
            rng = self._rng
        elif isinstance(uniform, Tensor) and uniform.device.type == "cpu" and not is_compiling():
            outside = ~((uniform >= 0) & (uniform < 1)).flatten()
            if bool(outside.any()):
                found = uniform.flatten()[outside][0].item()
                raise ValueError(f"uniform: expected numbers in [0, 1), found {found}")
        return self._leaks(len(task_grads), device), uniform, rng

    def _leaks(self, num_tasks: int, device: torch.device) -> Tensor | None:
        """``[K]`` float64; None where nothing leaks. Copied to a device once, not in every step."""
        leak = self.leak
        if isinstance(leak, list):
            if len(leak) != num_tasks:
                raise ValueError(
                    f"leak: expected {num_tasks} numbers, one for each task, found {len(leak)}"
                )
        else:
            leak = [leak] * num_tasks
        if not any(leak):
            return None
        if self._spread is not None and self._spread_of == (leak, device) and not is_compiling():
            return self._spread
        spread = torch.tensor(leak, dtype=torch.float64, device=device)
        if not is_compiling():  # what a graph makes is the graph's
            self._spread, self._spread_of = spread, (list(leak), device)
        return spread


def _share(key: str, value: object) -> float:
    share = checks.number(key, value)
    if not 0 <= share <= 1:
        raise ValueError(f"{key}: expected a number in [0, 1], found {share}")
    return share
