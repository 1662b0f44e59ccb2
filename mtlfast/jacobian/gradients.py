"""K task gradients of T parameters, in whatever form an engine holds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mtlfast import fused, ops
from mtlfast.ops import TaskGrads

TaskGradients = list[list["Tensor | None"]]
"""K rows of T gradients, one per parameter; None where a task does not reach a parameter."""


class Product(ABC):
    """The K gradients of one parameter as products that are not multiplied out."""

    @abstractmethod
    def gramian(self) -> Tensor:
        """Their inner products, ``[K, K]`` float64."""

    @abstractmethod
    def combine(self, weights: Tensor) -> Tensor:
        """Their sum with ``[K]`` float64 weights, in the parameter's shape and dtype.

        A task whose weight is exactly 0 does not count, not even its NaN.
        """

    @abstractmethod
    def rows(self) -> list[Tensor | None]:
        """Multiplied out: K gradients."""

    @abstractmethod
    def plus(self, other: Product) -> Product | None:
        """The sum of both as a product; None where multiplied out it takes less memory."""


class Further(ABC):
    """Parameters whose combined gradient takes a further backward, once the weights are known.

    Attributes:
        columns: their places.
        gramian: ``[K, K]`` float64, of those that are compared.
        squares: ``[K]`` float64 that is finite where the gradients of the others are.
    """

    columns: frozenset[int]
    gramian: Tensor
    squares: Tensor

    @abstractmethod
    def combine(self, columns: Sequence[int], weights: Tensor) -> list[Tensor | None]:
        """The combined gradients of these columns with ``[K]`` float64 weights, in new memory.

        Each column once; the graph is freed with the last of them.
        """


@dataclass
class Jacobian:
    """K task gradients of T parameters; each column in one of three forms.

    Attributes:
        params: T parameters.
        rows: K (B K) rows of T gradients; None also where another form holds them.
        reach: for each parameter the rows that reach it, one bit each.
        engine: what made it.
        reason: why this engine, in words.
        products: columns as products.
        further: columns that take a further backward.
        seen: ``[K, K]`` float64 that the method compares instead of gradients of parameters.
    """

    params: list[Tensor]
    rows: TaskGradients
    reach: list[int]
    engine: str
    reason: str = ""
    products: dict[int, Product] = field(default_factory=dict)
    further: Further | None = None
    seen: Tensor | None = None

    @property
    def is_kept(self) -> bool:
        """Whether all gradients are there, so that those of another micro-batch can be added."""
        return self.further is None and self.seen is None

    @property
    def is_plain(self) -> bool:
        """Whether K rows on one device are all there is."""
        return not self.products and self.further is None and self._is_together

    def select(self, columns: Sequence[int]) -> TaskGradients:
        """The rows of some columns."""
        return [[row[t] for t in columns] for row in self.rows]

    def gramian(self, columns: Sequence[int], like: Tensor) -> Tensor:
        """Inner products of the columns that are compared, ``[K, K]`` float64 on like's device."""
        if self.seen is not None:
            return self.seen
        total = self._kept_gramian(columns, like)
        if self.further is not None:
            total = total + self.further.gramian.to(like.device)
        return total

    def squares(self, columns: Sequence[int], like: Tensor) -> Tensor:
        """``[K]`` float64 that is finite where the gradients of columns not compared are."""
        total = self._kept_gramian(columns, like).diagonal()
        if self.further is not None:
            total = total + self.further.squares.to(like.device)
        return total

    def _kept_gramian(self, columns: Sequence[int], like: Tensor) -> Tensor:
        count = len(self.rows)
        found = [ops.gramian(self.select(group)) for group in self._dense(columns)]
        found += [self.products[t].gramian() for t in columns if t in self.products]
        if not found:
            return torch.zeros(count, count, dtype=torch.float64, device=like.device)
        total = found[0].to(like.device)
        for more in found[1:]:
            total = total + more.to(like.device)
        return total

    def combine(self, columns: Sequence[int], weights: Tensor) -> list[Tensor | None]:
        """The combined gradients of some columns, in new memory; None where no task reaches."""
        found: dict[int, Tensor | None] = dict(self._formed(columns, weights))
        for group in self._dense(columns):
            device = self.params[group[0]].device
            made = ops.combine(self.select(group), weights.to(device))
            found.update(zip(group, made, strict=True))
        return [found.get(t) for t in columns]

    def combine_(self, columns: Sequence[int], weights: Tensor, *, accumulate: bool) -> None:
        """Writes the combined gradients of some columns to ``grad``; all or nothing."""
        formed = self._formed(columns, weights)
        for group in self._dense(columns):
            params = [self.params[t] for t in group]
            ops.combine_(
                params, self.select(group), weights.to(params[0].device), accumulate=accumulate
            )
        for t, grad in formed:
            add(self.params[t], grad)

    def parts(
        self, columns: Sequence[int], weights: Tensor, gramian: Tensor | None
    ) -> list[fused.Part]:
        """What a fused step combines: K rows where they are kept, else what is already combined.

        Args:
            columns: which.
            weights: ``[K]`` float64.
            gramian: that of these columns, where it is known.
        """
        groups = self._dense(columns)
        formed = self._formed(columns, weights)
        whole = gramian if len(groups) == 1 and not formed else None
        found = []
        for group in groups:
            params = [self.params[t] for t in group]
            there = weights.to(params[0].device)
            found.append(fused.Part(params, self.select(group), there, whole))
        for t, grad in formed:
            one = torch.ones(1, dtype=torch.float64, device=grad.device)
            found.append(fused.Part([self.params[t]], [[grad]], one))
        return found

    def plus(self, other: Jacobian) -> Jacobian:
        """The sum, as one more micro-batch makes it; ``other`` is emptied on the way."""
        products: dict[int, Product] = {}
        rows = [list(row) for row in self.rows]
        for t in sorted(self.products.keys() | other.products.keys()):
            mine, theirs = self.products.get(t), other.products.get(t)
            both = mine.plus(theirs) if mine is not None and theirs is not None else None
            if both is not None:
                products[t] = both
                continue
            for product, target in ((mine, rows), (theirs, other.rows)):
                if product is not None:
                    for row, grad in zip(target, product.rows(), strict=True):
                        row[t] = grad
        return Jacobian(
            self.params,
            summed(rows, other.rows),
            [a | b for a, b in zip(self.reach, other.reach, strict=True)],
            other.engine,
            other.reason,
            products,
        )

    def _formed(self, columns: Sequence[int], weights: Tensor) -> list[tuple[int, Tensor]]:
        """The combined gradients of the columns that are not K rows."""
        found = [
            (t, self.products[t].combine(weights.to(self.params[t].device)))
            for t in columns
            if t in self.products
        ]
        if self.further is not None:
            later = [t for t in columns if t in self.further.columns]
            for t, grad in zip(later, self.further.combine(later, weights), strict=True):
                if grad is not None:
                    found.append((t, grad))
        return found

    def _dense(self, columns: Iterable[int]) -> list[list[int]]:
        """The columns that are K rows, by device."""
        elsewhere = self.further.columns if self.further is not None else ()
        found = [
            t for t in columns if self.reach[t] and t not in self.products and t not in elsewhere
        ]
        if self._is_together:
            return [found] if found else []
        groups: dict[torch.device, list[int]] = {}
        for t in found:
            groups.setdefault(device_of(self.params[t]), []).append(t)
        return list(groups.values())

    @cached_property
    def _is_together(self) -> bool:
        """Whether all parameters that are reached lie on one device."""
        reached = zip(self.params, self.reach, strict=True)
        return len({device_of(param) for param, mask in reached if mask}) == 1


def device_of(param: Tensor) -> torch.device:
    """Which parameters are balanced in one go."""
    return param.device


def add(param: Tensor, grad: Tensor) -> None:
    """Adds a gradient of its own memory to what ``grad`` holds."""
    param.grad = grad if param.grad is None else param.grad.add_(grad)


def summed(total: TaskGradients, more: TaskGradients) -> TaskGradients:
    """``total + more``, one tensor at a time, emptying ``more`` on the way.

    Every sum is a new tensor: what autograd returns may share memory with other tensors.
    """
    result: TaskGradients = []
    for kept_row, new_row in zip(total, more, strict=True):
        row: list[Tensor | None] = []
        for t, (kept, new) in enumerate(zip(kept_row, new_row, strict=True)):
            row.append(new if kept is None else kept if new is None else kept + new)
            new_row[t] = None
        result.append(row)
    return result


def masked(task_grads: TaskGrads, kept: Tensor) -> TaskGradients:
    """The task gradients with zeros for every task that is not kept; ``kept`` is [K] bool."""
    return [
        [None if grad is None else torch.where(keep, grad, 0.0) for grad in row]
        for keep, row in zip(kept, task_grads, strict=True)
    ]


def owned(grads: Iterable[Tensor | None], params: Iterable[Tensor]) -> list[Tensor | None]:
    """Gradients of autograd that may be kept as ``grad``: laid out as the parameter, unshared."""
    seen: set[int] = set()
    found: list[Tensor | None] = []
    for grad, param in zip(grads, params, strict=True):
        if grad is not None:
            storage = grad.untyped_storage()
            whole = storage.nbytes() == grad.numel() * grad.element_size()
            if not whole or grad.stride() != param.stride() or storage.data_ptr() in seen:
                grad = torch.empty_like(param).copy_(grad)
            else:
                seen.add(storage.data_ptr())
        found.append(None if grad is None else grad.detach())
    return found
