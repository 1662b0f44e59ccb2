"""LibMTL 1.1.5 (Lin and Zhang 2023, arXiv 2203.14338), the published release.

Its weightings are halves of a model that its trainer completes; here they get the other half over
an ``EngineModel``. Two things are mended, without which nothing of it runs today: its package
imports a module that torchvision no longer has, so its weightings alone are imported; and it wants
gradients of zero where ``zero_grad`` now leaves None.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mtlfast.bench.models import EngineModel
from mtlfast.bench.peers.base import Into, Modes, Peer
from mtlfast.bench.steps import LEARNING_RATE, Step

__all__ = ["PEER", "LibMTL"]

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "cagrad": ("CAGrad", {"calpha": 0.5, "rescale": 0}),
    "dwa": ("DWA", {"T": 2.0}),
    "gls": ("GLS", {}),
    "graddrop": ("GradDrop", {"leak": 0.0}),
    "gradnorm": ("GradNorm", {"alpha": 1.5}),
    "gradvac": ("GradVac", {"beta": 0.5}),
    "imtl": ("IMTL", {}),
    "mgda": ("MGDA", {"mgda_gn": "none"}),
    "pcgrad": ("PCGrad", {}),
    "rlw": ("RLW", {"dist": "Normal"}),
    "sum": ("EW", {}),
    "uw": ("UW", {}),
}
"""Its classes and its defaults, but for ``rescale``: its own divides by 1 + c²."""

OF_GRADIENTS = ("cagrad", "gradnorm", "gradvac", "imtl", "mgda", "pcgrad")
BY_FEATURES = ("graddrop", "gradnorm", "imtl", "mgda")
REP_GRAD = "rep_grad"
MGDA_SECONDS = 5.0


class LibMTL(Peer):
    """Its default, and ``rep_grad=True``, which is fast and another algorithm.

    CAGrad has its K = 3 written into the code and raises for any other; the iteration of MGDA has
    no bound and gets one here, in seconds.
    """

    name = "LibMTL"
    package = "LibMTL"
    differs: ClassVar[Mapping[str, str]] = {
        "cagrad": "K = 3 is written into its code; adds 1e-8 to lengths",
        "gradnorm": "steps softmax logits with the model's optimizer; the first step is the same",
        "gradvac": "targets move only where a gradient changes; the first step is the same",
        "imtl": "scales are the model's optimizer's; the first step is the same",
        "mgda": "weights of .001 and .999 at the ends; stops at changes of 1e-5",
        "uw": "log variances start at -0.5",
        "graddrop, rep_grad": "drops the features' gradients, summed over the batch with signs",
        **{
            f"{method}, {REP_GRAD}": "weights from the features' gradients, summed over the batch"
            for method in ("gradnorm", "imtl", "mgda")
        },
    }

    def balances(self, method: str, into: Into) -> Modes:
        """Its weighting of gradients that are there: as a matrix, or in ``.grad`` one by one.

        That it wants some ``.grad`` to replace is not timed, in its favour.
        """
        if method not in OF_GRADIENTS:
            return {}
        rows = into.task_grads
        matrix = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        found: Modes = {
            "matrix given": _balance(method, into, lambda _: matrix),
            "default": _balance(method, into, _one_by_one),
        }
        return found

    def steps(self, method: str, model: EngineModel) -> Mapping[str, Callable[[], Step]]:
        """With gradients of the parameters, and of the features where it has that."""
        found: dict[str, Callable[[], Step]] = {}
        if method in METHODS and method != "graddrop":
            found["default"] = partial(_step, model, method, False)
        if method in BY_FEATURES:
            found[REP_GRAD] = partial(_step, model, method, True)
        return found

    def weights(self, method: str, num_tasks: int) -> tuple[str, Callable[[Tensor], Any]] | None:
        """The combined gradient: nothing of it takes a Gramian."""
        if method not in OF_GRADIENTS:
            return None
        given = _class(method, Given)()

        def call(jacobian: Tensor) -> Tensor:
            into = torch.nn.Parameter(jacobian[0])
            into.grad = torch.empty_like(into)
            given.give([into], num_tasks, lambda _: jacobian)
            given.backward(torch.ones(num_tasks), **METHODS[method][1])
            return into.grad

        return "direction", call

    def order(self, method: str, num_tasks: int) -> Tensor | None:
        """PCGrad meets its own gradient, too; GradVac does not."""
        if method not in ("gradvac", "pcgrad"):
            return None
        self.seed()
        rows = []
        for task in range(num_tasks):
            met = [other for other in range(num_tasks) if method == "pcgrad" or other != task]
            random.shuffle(met)
            rows.append(met if method == "pcgrad" else [task, *met])
        return torch.tensor(rows)


class Architecture(nn.Module):
    """What LibMTL's architectures have, over a model of ours.

    Args:
        model: whose trunk is shared.
        rep_grad: LibMTL's: weigh the gradients of the features instead of the parameters'.
    """

    def __init__(self, model: EngineModel, rep_grad: bool) -> None:
        super().__init__()
        self.whole = model
        self.task_num = len(model.heads)
        self.task_name = list(range(self.task_num))
        self.rep_grad = rep_grad
        self.device = model.inputs.device
        self.epoch = 1  # its GradNorm does nothing in the first
        with torch.no_grad():
            losses = [float(loss) for loss in model.losses()]
        self.train_loss_buffer = np.array(losses)[:, None]
        self.init_param()

    def init_param(self) -> None:
        """Learned scales, where the weighting has some."""
        super().init_param()  # type: ignore[misc]

    def get_share_params(self) -> Iterable[nn.Parameter]:
        """The trunk's."""
        return self.whole.trunk.parameters()

    def zero_grad_share_params(self) -> None:
        """To zeros: it writes into the ``.grad`` that are there."""
        self.whole.trunk.zero_grad(set_to_none=False)

    def own_params(self) -> list[nn.Parameter]:
        """The weighting's."""
        return [param for name, param in self.named_parameters() if name == "loss_scale"]

    def losses(self) -> Tensor:
        """``[K]``; with ``rep_grad`` each head sees a copy of the features."""
        if not self.rep_grad:
            return torch.stack(self.whole.losses())
        self.rep = self.whole.features()
        copies = [self.rep.detach().clone().requires_grad_() for _ in self.task_name]
        self.rep_tasks = dict(zip(self.task_name, copies, strict=True))
        return torch.stack(
            [
                nn.functional.cross_entropy(head(copy), target)
                for head, copy, target in zip(
                    self.whole.heads, copies, self.whole.targets, strict=True
                )
            ]
        )


class Given(nn.Module):
    """In place of a model: gradients that are there already."""

    rep_grad = False
    device = torch.device("cpu")
    epoch = 1

    def give(self, params: list[Tensor], num_tasks: int, rows: Callable[[Any], Tensor]) -> None:
        """What comes next: parameters with some ``.grad``, K, and what makes ``[K, P]``."""
        self._params, self._rows = params, rows
        if not hasattr(self, "task_num"):
            self.task_num = num_tasks
            self.train_loss_buffer = np.ones((num_tasks, 1))
            self.init_param()

    def init_param(self) -> None:
        """Learned scales, where the weighting has some."""
        super().init_param()  # type: ignore[misc]

    def get_share_params(self) -> list[Tensor]:
        """The parameters."""
        return self._params

    def zero_grad_share_params(self) -> None:
        """Nothing: no backward adds to them."""

    def _compute_grad(self, losses: Tensor, mode: str, rep_grad: bool = False) -> Tensor:
        """In place of K backwards."""
        del losses, mode, rep_grad
        return self._rows(self)


class Bounded:
    """An end for MGDA's iteration, whose own count of steps stays at zero."""

    def _find_min_norm_element(self, grads: Tensor) -> Tensor:
        with _limited(MGDA_SECONDS):
            found: Tensor = super()._find_min_norm_element(grads)  # type: ignore[misc]
        return found


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises after so long; only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _one_by_one(given: Any) -> Tensor:
    """Its own copy of every task's ``.grad`` into a matrix."""
    found = torch.zeros(given.task_num, given.grad_dim)
    for k, row in enumerate(given.aliases):
        for param, gradient in zip(given.get_share_params(), row, strict=True):
            param.grad = gradient
        found[k] = given._grad2vec()
    return found


def _balance(
    method: str, into: Into, rows: Callable[[Any], Tensor]
) -> tuple[Callable[[], object], Callable[[], object]]:
    given = _class(method, Given)()
    given.give(into.params, len(into.task_grads), rows)
    losses = torch.ones(given.task_num)

    def before() -> None:
        for param in into.params:
            param.grad = torch.empty_like(param)
        # It points the last .grad elsewhere: that must not be a task's own gradient.
        given.aliases = [[g.detach() for g in row] for row in into.task_grads]

    return before, lambda: given.backward(losses, **METHODS[method][1])


def _step(model: EngineModel, method: str, rep_grad: bool) -> Step:
    adapter = _class(method, Architecture)(model, rep_grad)
    arguments = METHODS[method][1]

    def fill(_: Tensor | None) -> None:
        adapter.backward(adapter.losses(), **arguments)

    params = [*model.parameters(), *adapter.own_params()]
    return Step(model, fill, torch.optim.SGD(params, lr=LEARNING_RATE))


def _class(method: str, half: type[nn.Module]) -> Any:
    """Its weighting, completed as its trainer does it."""
    halves = (Bounded, half) if method == "mgda" else (half,)
    return type(half.__name__, (*halves, getattr(_weighting(), METHODS[method][0])), {})


@cache
def _weighting() -> Any:
    """Its module of weightings, without its package's own imports.

    Raises:
        ImportError: It is not installed.
    """
    if "LibMTL" in sys.modules:
        return importlib.import_module("LibMTL.weighting")
    spec = importlib.util.find_spec("LibMTL")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'LibMTL'")
    package = types.ModuleType("LibMTL")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["LibMTL"] = package
    try:
        return importlib.import_module("LibMTL.weighting")
    finally:
        del sys.modules["LibMTL"]


PEER = LibMTL()
