"""What a benchmark case is: contestants that take turns, and the rows that their samples make."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtlfast.bench.rows import Row, row
from mtlfast.bench.setting import Setting

__all__ = ["Case", "Samples", "Variant", "timed"]

Variant = Callable[[], float]
"""Runs once and returns its own figure: seconds, bytes, ..."""

Samples = Mapping[str, NDArray[np.float64]]
"""By the name of the variant, one sample per round ``[runs]``: those of a round belong together."""


def timed(call: Callable[[], object], device: torch.device | None = None) -> Variant:
    """Seconds of a call, from an idle device to an idle device."""
    cuda = device is not None and device.type == "cuda"

    def variant() -> float:
        if cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return variant


class Case(ABC):
    """One comparison, as a suite's ``cases`` lists them.

    Attributes:
        figure: Suite and figure of its rows.
        name: What is compared; the beginning of every row's case.
        rounds: How many samples it wants of each variant.
        warmup: Rounds before, whose samples are dropped, in every pass.
        passes: At most so many visits, and none again; None leaves it to the setting.
        turn: Seconds that a contestant's turn lasts at least, if its variants return seconds: the
            fast ones then run several times, and the median counts.
        threads: Of torch; None leaves it to the setting.
        missing: Contestants that are not there, and why; the runner adds those that fail.
        others: CPUs that other processes kept busy meanwhile; the runner sets it.
    """

    figure: str
    name: str
    rounds: int = 20
    warmup: int = 2
    passes: int | None = None
    turn: float = 0.0
    threads: int | None = None

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.others = 0.0

    @abstractmethod
    def prepare(self, setting: Setting) -> Mapping[str, Variant]:
        """Makes the data and the variants, in the order in which they take turns.

        It is called anew for every pass. What it makes must live in the variants alone, so that
        the memory is free for the next case. A contestant that cannot be made goes to ``missing``.
        """

    @abstractmethod
    def rows(self, samples: Samples) -> list[Row]:
        """The rows of all that was measured; some variants may be missing."""

    def row(
        self,
        label: str,
        samples: Samples,
        needs: tuple[str, ...],
        value: Callable[..., Any],
        *,
        unit: str = "x",
        figure: str | None = None,
        detail: str | Callable[[], str] = "",
        **more: Any,
    ) -> Row:
        """A row, also where a contestant that it needs is missing; then it says why.

        Args:
            label: Follows the name of the case.
            samples: As :meth:`rows` got them.
            needs: The variants that ``value`` takes the samples of.
            value: From their samples to the row's.
            unit: Of the row.
            figure: Another figure than the case's.
            detail: Text, or what makes it once all are known to be there.
            more: Further fields of the row.
        """
        case = f"{self.name}, {label}" if label else self.name
        figure = figure or self.figure
        absent = [name for name in needs if name not in samples]
        if absent:
            said = self.missing.get(absent[0]) or self.missing.get("", "not measured")
            said = said if absent[0] in label else f"{absent[0]}: {said}"
            kept = {
                k: v for k, v in more.items() if k in ("target", "at_least", "versus", "labels")
            }
            return Row(figure, case, unit, detail=said, **kept)
        detail = detail if isinstance(detail, str) else detail()
        found = value(*(samples[name] for name in needs))
        more.setdefault("others", round(self.others, 2))
        return row(figure, case, unit, found, detail=detail, **more)
