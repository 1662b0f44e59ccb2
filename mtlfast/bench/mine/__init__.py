"""``mtlfast bench mine``: your own model and losses through every engine and some methods.

Write a function without arguments that returns your optimizer and a function that makes the losses
of the next batch, and name it by ``--import MODULE:FUNCTION`` or ``--import FILE.py:FUNCTION``::

    def make_step():
        model = Net().to("cpu")  # or "cuda": the place is yours to choose
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batches = itertools.cycle(loader)

        def losses():
            x, depth, labels = next(batches)
            out = model(x)
            return {"depth": l1_loss(out.depth, depth), "labels": cross_entropy(out.labels, labels)}

        return optimizer, losses

The losses are K scalars as ``MultiTaskOptimizer.backward`` takes them: a list, a tuple, a dict of
names, or a tensor ``[K]``. Two things may be added:

- ``return model, optimizer, losses``: the model's buffers, such as those of BatchNorm, are then
  restored as well, and its layers are called by their names.
- ``losses`` may return ``(losses, features)``, with the tensor (or the tensors) that the tasks
  share, to measure ``features=`` too.

``make_step`` is called once. Before every measured step the parameters, the state of the optimizer,
the buffers and the random numbers of torch, NumPy and Python go back to the same state, so that
all contestants see the same; at the end they are what ``make_step`` left. A loader goes on from
batch to batch. Gradients are compared on one and the same graph, whatever the loader does.
"""

from __future__ import annotations

from mtlfast.bench.mine.study import main

__all__ = ["main"]
