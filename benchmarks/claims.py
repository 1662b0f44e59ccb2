"""Rows that hold contestants against each other, also when one of them is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.report import Row, row


class Claims:
    """Makes rows of one case from the samples of several contestants.

    Args:
        figure: heading of the rows.
        case: beginning of every row's case.
        found: samples ``[rounds]`` by contestant.
        missing: why the others have none.
        others: CPUs that other processes kept busy meanwhile.
    """

    def __init__(
        self,
        figure: str,
        case: str,
        found: Mapping[str, Any],
        missing: Mapping[str, str],
        others: float | None = None,
    ) -> None:
        self.figure = figure
        self.case = case
        self.found = found
        self.missing = missing
        self.others = others
        self.rows: list[Row] = []

    def add(
        self,
        label: str,
        needs: tuple[str, ...],
        value: Callable[..., Any],
        target: float | None = None,
        *,
        unit: str = "x",
        at_least: bool = False,
        detail: Callable[[], str] = str,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """A row; ``value`` takes the samples of ``needs``, a target whose lack is a miss."""
        case = f"{self.case}, {label}"
        absent = [name for name in needs if name not in self.found]
        if absent:
            said = self.missing.get(absent[0], "not measured")
            why = said if label == absent[0] else f"{absent[0]}: {said}"
            found = Row(self.figure, case, unit, target=target, at_least=at_least, detail=why)
        else:
            found = row(
                self.figure,
                case,
                unit,
                value(*(self.found[name] for name in needs)),
                target=target,
                at_least=at_least,
                detail=detail(),
                others=self.others,
                extra=extra or {},
            )
        self.rows.append(found)
