"""DWA: more weight for the losses that fell least in the last epoch."""

from __future__ import annotations

from torch import Tensor

from mtlfast.weighting import checks, layout
from mtlfast.weighting.base import Call, Weighting


class DWA(Weighting):
    """Weights each task by how little its mean loss fell from one epoch to the next.

    With ``r_i`` the mean loss of the last epoch over that of the epoch before,
    ``w = K softmax(r / temperature)``. During the first two epochs all weights are 1. The caller
    says where an epoch ends::

        for epoch in range(epochs):
            for batch in loader:
                ...  # optimizer.backward(losses); optimizer.step()
            optimizer.weighting.end_epoch()

    Shapes: losses ``[K]`` -> weights ``[K]`` float64, sum K; a gramian is not read. A task-specific
    parameter gets ``w_k g_k``, as the weighted losses would give it.

    The paper's code (MTAN), TorchJD (whose ``step()`` is ``end_epoch()`` here) and LibMTL compare
    epochs. nash-mtl's and FAMO's code compare windows of 25 iterations and take the mean of the
    weighted losses: call ``end_epoch()`` every 25 steps, and divide the learning rate by K.

    Degenerate (see ``status``): a task whose mean loss was zero or has changed its sign has no
    rate and counts as r = 1. NaN or Inf in the losses gives NaN weights and leaves the state alone.
    Scaling a loss changes nothing, since rates are ratios. Use it as a cheap way to keep slow tasks
    in view. It fails where ``end_epoch()`` is never called (the weights stay 1), and where losses
    differ in scale: r is near 1 for all, so no weight leaves the range of about 0.5 to 2.

    State: batches of this epoch and their mean losses, epochs ended, mean losses of the last two.

    Args:
        temperature: above 0; a larger one makes the weights more equal. Default 2, as in the paper.

    Raises:
        TypeError, ValueError: an argument out of its range; at a call, K differs from earlier ones.

    Reference: Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019,
    arXiv 1803.10704.
    """

    name = "dwa"
    family = "loss"
    paper = "End-to-End Multi-Task Learning with Attention, 2019, arXiv 1803.10704"
    needs_gramian = False
    needs_losses = True
    weights_losses = True
    state_layout = (
        ("num_batches", "1"),
        ("num_epochs", "1"),
        ("mean_losses", "K"),
        ("last_losses", "K"),
        ("older_losses", "K"),
    )

    def __init__(self, temperature: float = 2.0) -> None:
        self.temperature = checks.number("temperature", temperature, 0, open_low=True)

    def _weights(self, call: Call) -> Tensor:
        return self._solve(call, (self.temperature,), losses=call.losses, state=self._flat(call))

    def end_epoch(self) -> None:
        """Ends the epoch: its mean losses are the last epoch's from now on.

        An epoch without a step counts as none.
        """
        if self._state is None:
            return
        parts = layout.split(self.state_layout, self._state, self._state_tasks)
        if not bool(parts["num_batches"]):
            return
        parts["num_batches"].zero_()
        parts["num_epochs"].add_(1.0).clamp_(max=2.0)  # 2 stands for any number above
        parts["older_losses"].copy_(parts["last_losses"])
        parts["last_losses"].copy_(parts["mean_losses"])
        parts["mean_losses"].zero_()
