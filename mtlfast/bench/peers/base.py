"""What a suite asks of a peer."""

from __future__ import annotations

import importlib
import random
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mtlfast.bench.environment import version_of
from mtlfast.bench.setting import Setting

if TYPE_CHECKING:
    from mtlfast.bench.models import EngineModel
    from mtlfast.bench.steps import Step

__all__ = ["PEERS", "Into", "Modes", "Peer", "names", "wanted"]

PEERS = (
    "torchjd",
    "libmtl",
    "conflictfree",
    "gradnorm_pytorch",
    "pytorch_optimizer",
    "plain",
    "triton",
)
"""Their modules here; ``plain`` is what a careful user writes in torch without any of them."""

Modes = Mapping[str, tuple[Callable[[], object], Callable[[], object]]]
"""By the name of a mode, what is not timed (it empties ``.grad``), and what is."""


class Into:
    """K task gradients, and parameters whose empty ``.grad`` they are balanced into.

    Attributes:
        task_grads: K rows of tensors, each with memory of its own.
        params: Leaves of the same shapes.
    """

    def __init__(self, task_grads: list[list[Tensor]]) -> None:
        self.task_grads = task_grads
        self.params: list[Tensor] = [g.clone().requires_grad_() for g in task_grads[0]]

    def clear(self) -> None:
        """Empties every ``.grad``."""
        for param in self.params:
            param.grad = None

    def write(self, grads: Sequence[Tensor]) -> None:
        """Makes tensors of the parameters' shapes their ``.grad``, without a copy."""
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad


class Peer(ABC):
    """One peer. Methods are called by our names: ``"pcgrad"``, ``"cagrad"``, ...

    A subclass overrides what the peer has. Each function imports the peer itself, and may raise:
    the suites then name it as missing, with what it said.

    Attributes:
        name: What it is called in rows and by ``--peers``.
        package: Its distribution; None for torch itself.
        differs: What it computes that ours does not, by method or by ``"method, mode"``.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    differs: ClassVar[Mapping[str, str]] = {}

    def difference(self, method: str, mode: str = "") -> str:
        """What it computes that ours does not; empty where it is the same."""
        return self.differs.get(f"{method}, {mode}", self.differs.get(method, ""))

    def balances(self, method: str, into: Into) -> Modes:
        """Ways to balance into empty ``.grad``: its best mode and its default at least."""
        del method, into
        return {}

    def steps(self, method: str, model: EngineModel) -> Mapping[str, Callable[[], Step]]:
        """By mode, what makes its training step; :meth:`difference` tells what it computes."""
        del method, model
        return {}

    def weights(self, method: str, num_tasks: int) -> tuple[str, Callable[[Tensor], Any]] | None:
        """What it is called with and the call, with a state of its own; None: has none.

        ``"gramian"`` and ``"jacobian"``, float64: weights come back. ``"direction"``: called with a
        float32 Jacobian, the combined gradient comes back.
        """
        del method, num_tasks
        return None

    def order(self, method: str, num_tasks: int) -> Tensor | None:
        """``[K, K]``: in which its tasks meet after :meth:`seed`; None where nothing depends on it.

        A row begins with its own index where it skips that.
        """
        del method, num_tasks
        return None

    @staticmethod
    def seed() -> None:
        """Seeds all that a peer may draw from."""
        torch.manual_seed(1)
        random.seed(1)

    @classmethod
    def version(cls) -> str | None:
        """Of what is installed."""
        return version_of(cls.package) if cls.package else None


def wanted(setting: Setting) -> list[Peer]:
    """The peers that a run compares with."""
    return [peer for peer in _all() if setting.wants(peer.name)]


def names() -> list[str]:
    """What ``--peers`` may name."""
    return [peer.name for peer in _all()]


def _all() -> list[Peer]:
    return [importlib.import_module(f"mtlfast.bench.peers.{module}").PEER for module in PEERS]
