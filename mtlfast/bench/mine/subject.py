"""What the user's function returns: found, checked, and put back to where it was."""

from __future__ import annotations

import importlib
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import mtlfast
from mtlfast.bench.command import UsageError
from mtlfast.bench.mine.state import State
from mtlfast.bench.runner import said
from mtlfast.jacobian.compat import Explained
from mtlfast.losses import Losses, TaskLosses

__all__ = ["Batch", "Subject"]

WANTED = "(optimizer, losses) or (model, optimizer, losses)"
OURS = str(Path(mtlfast.__file__).parent)


class Batch(NamedTuple):
    """What one call of the user's function of losses gives."""

    losses: Losses
    features: Tensor | Sequence[Tensor] | None


class Subject:
    """The user's model, optimizer and losses, checked.

    Attributes:
        spec: ``MODULE:FUNCTION``.
        model: None where it was not returned.
        optimizer: the plain one.
        params: of the optimizer, those that are trained.
        shared: of these, those that two or more losses reach.
        names: of the K tasks.
        device: of the losses.
        has_features: whether features come with the losses.
        failed: what the losses raised last, in one line.
    """

    def __init__(self, spec: str, returned: object) -> None:
        self.spec = spec
        self.failed = ""
        self.device = torch.device("cpu")
        self.model, self.optimizer, self._losses = _parts(spec, returned)
        self.params = [
            p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad
        ]
        state = self.state()
        self._check()
        state.restore()

    @classmethod
    def load(cls, spec: str) -> Subject:
        """Imports the function and calls it.

        Args:
            spec: ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``.

        Raises:
            UsageError: it is not there, fails, or returns something else than expected.
        """
        make = _imported(spec)
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            returned = make()
        except Exception as error:
            raise UsageError(f"--import: {spec} raised {said(error)}{_place(error)}") from None
        return cls(spec, returned)

    def draw(self) -> Batch:
        """The losses of the next batch.

        Raises:
            UsageError: the user's function fails.
        """
        try:
            found = self._losses()
        except StopIteration:
            self.failed = (
                "losses: expected a function that can be called any number of times, found a "
                "loader that ended (itertools.cycle repeats it)"
            )
        except Exception as error:
            self.failed = f"losses raised {said(error)}{_place(error)}"
        else:
            return _batch(found)
        raise UsageError(self.failed)

    def joint(self) -> None:
        """One step of plain training on the sum of the losses."""
        self.optimizer.zero_grad()
        losses = self.draw().losses
        if isinstance(losses, Tensor):
            torch.autograd.backward(losses.sum())
        else:
            values = losses.values() if isinstance(losses, Mapping) else losses
            torch.autograd.backward(list(values))
        self.optimizer.step()

    def state(self) -> State:
        """What there is now, to go back to."""
        return State(self.optimizer, self.model, self.device)

    def clear(self) -> None:
        """Leaves no gradient behind."""
        self.optimizer.zero_grad(set_to_none=True)

    def name_of(self, params: Sequence[Tensor]) -> str:
        """Parameters by their names in the model, or by their shapes."""
        names = {} if self.model is None else {id(p): n for n, p in self.model.named_parameters()}
        shown = [names.get(id(p), " x ".join(map(str, p.shape)) or "scalar") for p in params]
        return ", ".join(shown)

    def _check(self) -> None:
        """Two batches, and which parameters they reach; sets what the class promises."""
        self.clear()
        batch = self.draw()
        if any(p.grad is not None for p in self.params):
            raise UsageError(
                "losses: expected a function that computes losses, found gradients in .grad after "
                "it: leave backward to the command"
            )
        tasks = self._read(batch)
        if len(tasks.losses) < 2:
            raise UsageError("losses: expected at least two to balance, found one")
        self.names, self.device = tasks.names, tasks.losses[0].device
        self.has_features = batch.features is not None
        second = self.draw()
        again = self._read(second)
        if again.names != self.names:
            raise UsageError(
                f"losses: expected the tasks {', '.join(self.names)} in every batch, "
                f"found {', '.join(again.names)}"
            )
        pairs = [(batch.losses, second.losses), *zip(tasks.losses, again.losses, strict=True)]
        if any(isinstance(a, Tensor) and a is b for a, b in pairs):
            raise UsageError(
                "losses: expected new losses in every call, found the same tensor twice: compute "
                "them inside of the function"
            )
        self.shared = self._reached_twice(again)
        try:
            self.joint()
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"a plain step raised {said(error)}{_place(error)}") from None
        finally:
            self.clear()

    def _read(self, batch: Batch) -> TaskLosses:
        try:
            return TaskLosses.read(batch.losses, None)
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from None

    def _reached_twice(self, tasks: TaskLosses) -> list[Tensor]:
        count = [0] * len(self.params)
        for name, loss in zip(tasks.names, tasks.losses, strict=True):
            self.clear()
            try:
                with Explained():
                    torch.autograd.backward(loss, retain_graph=True)
            except RuntimeError as error:
                raise UsageError(f"the backward of {name!r} raised {said(error, 300)}") from None
            if all(p.grad is None for p in self.params):
                raise UsageError(
                    f"losses: expected each to reach a parameter of the optimizer, "
                    f"found that {name!r} reaches none"
                )
            count = [n + (p.grad is not None) for n, p in zip(count, self.params, strict=True)]
        self.clear()
        shared = [p for p, n in zip(self.params, count, strict=True) if n > 1]
        if not shared:
            raise UsageError(
                "losses: expected a parameter that two of them reach, found none: there is nothing "
                "to balance"
            )
        return shared


def _imported(spec: str) -> Callable[[], object]:
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name.isidentifier():
        raise UsageError(f"--import: expected MODULE:FUNCTION or FILE.py:FUNCTION, found {spec!r}")
    folder = Path.cwd()
    if module_name.endswith(".py"):
        path = Path(module_name).resolve()
        if not path.is_file():
            raise UsageError(f"--import: expected a file, found none at {path}")
        folder, module_name = path.parent, path.stem
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(_not_found(module_name, folder, error)) from None
    except Exception as error:
        raise UsageError(f"--import: {module_name} raised {said(error)}{_place(error)}") from None
    found = getattr(module, name, None)
    if not callable(found):
        kind = "nothing" if found is None else type(found).__name__
        raise UsageError(
            f"--import: expected a function {name!r} in {module.__file__}, found {kind}"
        )
    make: Callable[[], object] = found
    return make


def _not_found(module: str, folder: Path, error: ModuleNotFoundError) -> str:
    if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
        return (
            f"--import: expected a module {module!r} in {folder} or installed, "
            f"found no {error.name!r}"
        )
    script = f"{module.replace('.', '/')}.py"
    hint = f"; as a script it is {script}:FUNCTION" if (folder / script).is_file() else ""
    return f"--import: {module} needs a module {error.name!r}, which was not found{hint}"


def _parts(
    spec: str, returned: object
) -> tuple[nn.Module | None, torch.optim.Optimizer, Callable[[], Any]]:
    parts = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
    model = parts[0] if len(parts) == 3 else None
    optimizer, losses = parts[-2:] if len(parts) in (2, 3) else (None, None)
    if isinstance(optimizer, mtlfast.MultiTaskOptimizer):
        raise UsageError(
            f"--import: expected {spec} to return the plain optimizer, found a MultiTaskOptimizer: "
            f"return the one that it wraps"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(
            f"--import: expected {spec} to return an optimizer whose step() needs no closure, "
            f"found LBFGS"
        )
    fits = isinstance(optimizer, torch.optim.Optimizer) and callable(losses)
    if not fits or isinstance(losses, nn.Module) or not isinstance(model, nn.Module | None):
        kinds = ", ".join(type(part).__name__ for part in parts)
        found = f"({kinds})" if isinstance(returned, tuple | list) else kinds
        raise UsageError(f"--import: expected {spec} to return {WANTED}, found {found}")
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert callable(losses)
    return model, optimizer, losses


def _batch(found: Any) -> Batch:
    """Separates losses and features: a pair whose first is a collection of losses itself."""
    if isinstance(found, tuple) and len(found) == 2:
        first = found[0]
        if isinstance(first, Mapping | list | tuple):
            return Batch(*found)
        if isinstance(first, Tensor) and first.dim() == 1 and first.numel() > 1:
            return Batch(*found)
    return Batch(found, None)


def _place(error: BaseException) -> str:
    """Where in the user's code it happened."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((OURS, "<")) and "site-packages" not in frame.filename
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
