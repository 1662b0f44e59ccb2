"""What a training loop says to the CUDA kernels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch

from mtlfast import ops, sketch_ops
from mtlfast.functional import aggregate
from mtlfast.weighting import Weighting, get

__all__ = ["warm_up"]

# Bytes of a table: in a kernel's small parameters, in its large ones, and in the device's
# memory.
_TABLES = (0, 4 * 1024, 33 * 1024)


def warm_up(
    num_tasks: int,
    dtypes: Iterable[torch.dtype] = (torch.float32,),
    methods: Sequence[Weighting | str] = (),
    device: torch.device | str | int = "cuda",
) -> None:
    """Loads the kernels that training will use, by small problems that use them.

    A CUDA graph that is being captured cannot load kernels. One step outside of the graph loads all
    that it needs; this function does it without a model. With CuPy's NVRTC it is also where the
    compiler's time goes, once for each machine.

    Args:
        num_tasks: K.
        dtypes: of the shared parameters.
        methods: weightings, which keep their state, or their names. One that needs inputs of its
            own must have run before, and is not for this function.
        device: a GPU.

    Raises:
        ImportError: MTLFAST_CUDA_BACKEND asks for kernels that cannot be had.
        RuntimeError: as the kernels raise.
    """
    place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    weights = torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64, device=place)
    entry = 8 * (num_tasks + 1) + 12  # bytes of a table for each tensor
    for dtype in dtypes:
        for at_least in _TABLES:
            row = [torch.ones(1, dtype=dtype, device=place)] * (at_least // entry + 1)
            for sums in ("float32", "float64"):
                with ops.use_sums(sums):
                    ops.gramian([row] * num_tasks)
            ops.combine([row] * num_tasks, weights)
            sketch = torch.zeros(1024, dtype=torch.float32, device=place)
            sketch_ops.sketch_(sketch, weights.new_zeros(1), row, 0, 0)
        for method in methods:
            weighting = copy.deepcopy(get(method))
            jacobian = torch.eye(num_tasks * weighting.num_batches, dtype=dtype, device=place)
            losses = torch.ones(num_tasks, dtype=torch.float64, device=place)
            aggregate(jacobian, weighting, losses)
