"""``mtlfast bench mine``: your own model and losses through every engine and some methods.

``--import MODULE:FUNCTION`` (``FILE.py:FUNCTION``) names a function without arguments, such as
:data:`mtlfast.bench.command.EXAMPLE`. It returns ``(optimizer, losses)``: the plain optimizer, and
a function that makes the K losses of the next batch in any form that
``MultiTaskOptimizer.backward`` takes. Two things may be added:

- ``(model, optimizer, losses)``: the model's buffers, such as those of BatchNorm, are then restored
  as well, and its layers are called by their names.
- ``losses`` may return ``(losses, features)``, with the tensor (or the tensors) that the tasks
  share, to measure ``features=`` too.

The function is called once. Before every measured step the parameters, the state of the optimizer,
the buffers and the random numbers of torch, NumPy and Python go back to the same state, so that all
contestants see the same; at the end they are what the function left. A loader goes on from batch to
batch. Gradients are compared on one and the same graph, whatever the loader does.
"""

from __future__ import annotations

from mtlfast.bench.mine.study import main

__all__ = ["main"]
