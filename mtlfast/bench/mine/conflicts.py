"""What the task gradients do to each other while plain training goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import mtlfast
from mtlfast.bench.mine.subject import Subject
from mtlfast.bench.rows import Label, Row, row
from mtlfast.demo.table import table

__all__ = ["STRONG", "Conflicts", "Watched", "record"]

STRONG = -0.1
"""A cosine below it counts as conflict: gradients of high dimension that have nothing to do with
each other have cosines around 0, half of them negative."""

LEAST = 5  # batches, however slow a step is
SHOWN = 12  # tasks, at most, in a K x K table


class Watched(mtlfast.Sum):
    """The sum of the losses, that is plain training, with a look at the Gramian."""

    needs_gramian = True


@dataclass(frozen=True)
class Conflicts:
    """The task gradients of N batches, over the shared parameters.

    Attributes:
        names: of the K tasks.
        gramians: ``[N, K, K]`` float64.
        losses: ``[N, K]`` float64.
        dropped: batches whose gradients were not finite; they are not among the N.
    """

    names: tuple[str, ...]
    gramians: Tensor
    losses: Tensor
    dropped: int = 0

    @property
    def norms(self) -> Tensor:
        """``[N, K]``: lengths of the task gradients."""
        return self.gramians.diagonal(dim1=1, dim2=2).sqrt()

    @cached_property
    def cosines(self) -> Tensor:
        """``[N, K, K]``; NaN where a gradient is zero."""
        norms = self.norms
        return self.gramians / norms[:, :, None] / norms[:, None, :]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of tasks."""
        count = len(self.names)
        return [(i, j) for i in range(count) for j in range(i + 1, count)]

    def of_pair(self, pair: tuple[int, int]) -> Tensor:
        """``[N]`` or fewer: the cosines of a pair, where both gradients are there."""
        cosines = self.cosines[:, pair[0], pair[1]]
        return cosines[cosines.isfinite()]

    def share(self, pair: tuple[int, int], below: float = 0.0) -> float:
        """Share of the batches in which a pair's cosine is below a bound; 0 without any."""
        cosines = self.of_pair(pair)
        return float((cosines < below).double().mean()) if len(cosines) else 0.0

    @property
    def lengths(self) -> Tensor:
        """``[K]``: the median length of each task's gradient."""
        return self.norms.median(0).values

    @property
    def silent(self) -> list[str]:
        """Tasks whose gradient is zero in half of the batches or more."""
        return [name for name, n in zip(self.names, self.lengths.tolist(), strict=True) if n == 0]

    @property
    def ratio(self) -> float:
        """The longest over the shortest median length, of the tasks that have one."""
        found = [n for n in self.lengths.tolist() if n > 0]
        return max(found) / min(found) if found else 1.0

    @property
    def harmed(self) -> Tensor:
        """``[K]``: share of the batches whose summed gradient points against a task's own."""
        return (self.gramians.sum(2) < 0).double().mean(0)

    def rows(self) -> list[Row]:
        """One row for each pair and each task, and those of all together."""
        found = []
        for i, j in self.pairs:
            cosines = self.of_pair((i, j))
            case = f"{self.names[i]}, {self.names[j]}"
            labels: dict[str, Label] = {"task": self.names[i], "other": self.names[j]}
            if not len(cosines):
                found.append(Row("mine/conflict", case, "cos", detail="a gradient is zero"))
                continue
            extra = {
                "mean": float(cosines.mean()),
                "min": float(cosines.min()),
                "negative": self.share((i, j)),
                "strong": self.share((i, j), STRONG),
            }
            detail = (
                f"mean {extra['mean']:.3f}, least {extra['min']:.3f}, "
                f"negative in {extra['negative']:.0%}"
            )
            found.append(
                row(
                    "mine/conflict", case, "cos", cosines, detail=detail, labels={**labels, **extra}
                )
            )
        for k, name in enumerate(self.names):
            harmed = float(self.harmed[k])
            detail = f"the sum is against it in {harmed:.0%}"
            own: dict[str, Label] = {"task": name, "harmed": harmed}
            found.append(row("mine/norm", name, "", self.norms[:, k], detail=detail, labels=own))
        ratio = "longest over shortest"
        found.append(row("mine/norm", ratio, "x", self.ratio, labels={"batches": len(self.losses)}))
        return found

    def lines(self) -> list[str]:
        """The statistics for a terminal."""
        dropped = f"; {self.dropped} more were not finite" if self.dropped else ""
        title = (
            f"Task gradients over the shared parameters, {len(self.losses)} batches of plain "
            f"training{dropped}"
        )
        found = [title, ""]
        header = ["task", "loss", "length", "the sum is against it"]
        lengths, harmed = self.lengths.tolist(), self.harmed.tolist()
        rows = [
            [name, f"{loss:.4g}", f"{lengths[k]:.4g}", f"{harmed[k]:.0%}"]
            for k, (name, loss) in enumerate(
                zip(self.names, self.losses.median(0).values.tolist(), strict=True)
            )
        ]
        found += [table(header, rows), ""]
        count = len(self.names)
        if 2 < count <= SHOWN:
            mean = self.cosines.nanmean(0)
            grid = [
                [self.names[i], *(f"{float(mean[i, j]):.2f}" for j in range(count))]
                for i in range(count)
            ]
            found += [table(["mean cosine", *self.names], grid), ""]
        # The worst pairs first; a pair without cosines last.
        order = sorted(self.pairs, key=lambda pair: _mean(self.of_pair(pair)))
        shown = [
            [
                f"{self.names[i]}, {self.names[j]}",
                f"{_mean(cosines):.3f}",
                f"{float(cosines.min()):.3f}",
                f"{self.share((i, j)):.0%}",
                f"{self.share((i, j), STRONG):.0%}",
            ]
            for i, j in order[:SHOWN]
            if len(cosines := self.of_pair((i, j)))
        ]
        found.append(table(["pair", "cosine", "least", "negative", f"below {STRONG}"], shown))
        return found


def _mean(cosines: Tensor) -> float:
    return float(cosines.mean()) if len(cosines) else math.inf


def record(
    subject: Subject,
    batches: int,
    seconds: float = math.inf,
    step: Callable[[], None] = lambda: None,
    engine: str = "auto",
) -> Conflicts:
    """Trains plainly, from the state that is, and looks at the task gradients of every batch.

    Args:
        subject: the user's; it is trained on.
        batches: N.
        seconds: fewer batches where they take longer, but five.
        step: called after each batch.
        engine: an exact one.
    """
    optimizer = mtlfast.MultiTaskOptimizer(subject.optimizer, Watched(), engine=engine)
    gramians, losses = [], []
    end = time.monotonic() + seconds
    for done in range(batches):
        if done >= LEAST and time.monotonic() > end:
            break
        optimizer.zero_grad()
        optimizer.backward(subject.draw().losses)
        optimizer.step()
        assert optimizer.last is not None
        assert optimizer.last.gramian is not None
        gramians.append(optimizer.last.gramian)
        losses.append(optimizer.last.losses)
        step()
    found, values = torch.stack(gramians), torch.stack(losses)
    finite = found.isfinite().all(2).all(1)
    return Conflicts(subject.names, found[finite], values[finite], int((~finite).sum()))
