"""What a job is: a training problem that ``mtlfast demo`` can run with every method."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["REGISTRY", "Job", "Metric", "Trial", "get", "require_packages"]

REGISTRY: dict[str, type["Job"]] = {}


@dataclass(frozen=True)
class Metric:
    """A number that :meth:`Trial.evaluate` returns.

    Attributes:
        key: Its name in ``evaluate()`` and in ``summary.json``.
        label: What the table and the figure call it.
        measured: Where it is measured, for the figure's title.
        lower_is_better: True for an error, False for an accuracy.
        limits: Range of its axis in the figure; None fits the data.
        log_scale: Whether its axis is logarithmic.
        reference: A value worth a line in the figure, with its explanation.
    """

    key: str
    label: str
    measured: str = "on test data"
    lower_is_better: bool = False
    limits: tuple[float, float] | None = None
    log_scale: bool = False
    reference: tuple[float, str] | None = None


class Trial(ABC):
    """One training run: a model that is freshly initialised from one seed, with its data.

    Attributes:
        optimizer: The plain torch optimizer of all parameters, which the balancing wraps.
        shared_parameters: The parameters that all losses reach; only the figure's cosine needs
            them, the training finds them by itself.
    """

    optimizer: torch.optim.Optimizer
    shared_parameters: Sequence[Tensor]

    @abstractmethod
    def draw_batch(self) -> Any:
        """Draws the next batch; :meth:`losses` knows its type."""

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Returns the scalar loss of every task on this batch, by task name."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Returns every metric of the job on its test data, by key; NaN where it diverged."""

    def kpis(self, batch: Any) -> Tensor | None:
        """Returns how well each task does on this batch, [K] in (0, 1], or None if unknown.

        DTP, which weights tasks by such key performance indicators, is told them every step.
        """
        del batch
        return None

    def scheduler(
        self, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Returns the learning-rate schedule, stepped once a step, or None for a constant rate.

        Args:
            optimizer: The wrapping optimizer, which is what a user would hand to a scheduler.
        """
        del optimizer
        return None


class Job(ABC):
    """A training problem: its data, model, losses and metrics, and how its results are shown.

    A subclass that sets ``name`` is registered under it.

    Attributes:
        name: Its name on the command line and the stem of its figure.
        title: One line that says what is trained, above the table and the figure.
        caption: The figure's caption; it states what makes the job hard.
        remark: One sentence under the table: what the numbers do not show.
        tasks: Names of the tasks, as in :meth:`Trial.losses`.
        metrics: What is measured; the first one is drawn over the steps.
        methods: Methods that run when none is asked for.
        steps: Default number of training steps.
        evaluate_every: Steps between two evaluations.
        epoch_steps: Steps of an epoch, for the methods that go by epochs.
        threads: Default number of threads; None leaves torch's own.
        requires: Importable packages that it needs, as ``{module: pip name}``.
        options: Arguments of the methods that have no default for them, or whose best known
            setting on this job is not the default, as ``{method: {argument: value}}``.
        unsupported: Methods that cannot run here, as ``{method: reason}``.
        expected: What the first metric should be after the default number of steps, as ``{method:
            (mean, standard deviation over five seeds or None)}``; from another implementation of
            the job and of the methods.
        labels: Names of methods in the table and the figure, where not the name of the class.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    caption: ClassVar[str]
    remark: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[Metric, ...]]
    methods: ClassVar[tuple[str, ...]]
    steps: ClassVar[int]
    evaluate_every: ClassVar[int] = 50
    epoch_steps: ClassVar[int] = 100
    threads: ClassVar[int | None] = None
    requires: ClassVar[Mapping[str, str]] = MappingProxyType({})
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    unsupported: ClassVar[Mapping[str, str]] = MappingProxyType({})
    expected: ClassVar[Mapping[str, tuple[float, float | None]]] = MappingProxyType({})
    labels: ClassVar[Mapping[str, str]] = MappingProxyType({"sum": "equal weighting"})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            return
        known = REGISTRY.setdefault(cls.name, cls)
        if known.__qualname__ != cls.__qualname__:
            raise TypeError(
                f"name: expected one that no other job has, found {cls.name!r}, which is "
                f"{known.__module__}.{known.__qualname__}"
            )
        REGISTRY[cls.name] = cls

    @abstractmethod
    def start(self, seed: int) -> Trial:
        """Returns a fresh run; everything random in it follows from ``seed``."""


def get(name: str) -> Job:
    """Returns a new instance of the job of this name.

    Raises:
        ValueError: No job has this name.
    """
    if name not in REGISTRY:
        raise ValueError(f"job: expected one of {', '.join(sorted(REGISTRY))}, found {name!r}")
    return REGISTRY[name]()


def require_packages(packages: Mapping[str, str], purpose: str, extra: str = "demo") -> None:
    """Checks that optional packages are installed, without importing them.

    Args:
        packages: ``{module: pip name}``.
        purpose: What needs them, for the message.
        extra: The extra of this package that brings them.

    Raises:
        ModuleNotFoundError: One is missing; the message has the command that installs them.
    """
    missing = [pip for module, pip in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{purpose} needs {' and '.join(missing)}: pip install 'mtlfast[{extra}]'"
        )
