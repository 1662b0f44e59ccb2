"""The engine "batched": what "stored" gives, by one backward for all tasks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_cases import CASES, METHODS, ORDER, Case, Layered, Method, Towers, check_same
from models import Embedded, Mlp, assert_same_grads, check_refused, last, wrap
from torch import Tensor, nn

from mtlfast import PCGrad
from mtlfast.jacobian.batched import batched
from mtlfast.jacobian.request import Request
from mtlfast.losses import TaskLosses


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_what_stored_gives(case: Case, method: Method) -> None:
    check_same(case, method, "batched")


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 100])
def test_chunks(chunk_size: int) -> None:
    case = Case("seven tasks", lambda: Mlp(7))
    check_same(case, METHODS[0], "batched", chunk_size=chunk_size)


def request(model: nn.Module, losses: list[Tensor], chunk_size: int | None = None) -> Request:
    params: list[Tensor] = [param for param in model.parameters() if param.requires_grad]
    return Request(TaskLosses.read(losses, None), len(losses), params, chunk_size=chunk_size)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_each_trunk_node_runs_once_a_chunk(chunk_size: int | None) -> None:
    model = Mlp(5)
    batched(request(model, model.losses(), chunk_size))
    assert model.backwards == (1 if chunk_size is None else 3)


def test_rows_are_none_where_a_task_does_not_reach() -> None:
    model = Towers()
    losses = model.losses()
    found = batched(request(model, losses))
    reached = [[grad is not None for grad in row] for row in found.rows]
    weights = list(model.parameters())
    rows = [
        torch.autograd.grad(x, weights, retain_graph=True, allow_unused=True)
        for x in model.losses()
    ]
    assert not all(map(all, reached))
    assert reached == [[grad is not None for grad in row] for row in rows]


@pytest.mark.parametrize("make", [Mlp, Embedded])
def test_rows_share_no_element_and_have_no_holes(make: Callable[[], nn.Module]) -> None:
    """A kernel takes them as they are."""
    model: Any = make()
    found = batched(request(model, model.losses()))
    for column in zip(*found.rows, strict=True):
        grads = [grad for grad in column if grad is not None]
        for grad in grads:
            assert torch.ops.aten.is_non_overlapping_and_dense(grad)
            grad.fill_(0)
        for i, grad in enumerate(grads):
            grad.fill_(i + 1)
        assert [grad.unique().tolist() for grad in grads] == [[i + 1] for i in range(len(grads))]


def test_operators_without_a_rule_are_no_news() -> None:
    torch.manual_seed(0)
    layer = nn.EmbeddingBag(7, 6).double()
    model = Layered()
    x = torch.tensor([[1, 2], [3, 4], [0, 1]])
    losses = [model.loss(k, layer(x)) for k in range(3)]
    every = nn.ModuleList([layer, model])
    twin = copy.deepcopy(every)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrap(every, PCGrad(), engine="batched").backward(losses, order=ORDER)
    assert not said
    losses = [twin[1].loss(k, twin[0](x)) for k in range(3)]  # type: ignore[operator]
    wrap(twin, PCGrad(), engine="stored").backward(losses, order=ORDER)
    assert_same_grads(every, twin)


# What vmap cannot do


class Asking(torch.autograd.Function):
    """A backward that looks at numbers."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * max(1.0, float(grads[0].sum().item() > 0))


class Branching(torch.autograd.Function):
    """A backward whose way depends on numbers."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] if (grads[0] > 0).all() else grads[0].clone()


class Outside(torch.autograd.Function):
    """A backward by way of numpy."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return torch.from_numpy(grads[0].numpy().copy())


class Own(torch.autograd.Function):
    """A backward with an error of its own."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *_grads: Tensor) -> Tensor:
        raise RuntimeError("of its own")


class Passed(Layered):
    """The trunk's last step is given."""

    def __init__(self, last_step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.last_step = last_step

    def losses(self, step: int = 0) -> list[Tensor]:
        z = torch.tanh(self.last_step(self.depths(step)[-1]))
        return [self.loss(k, z) for k in range(3)]


def hooked(x: Tensor) -> Tensor:
    def shrink(grad: Tensor) -> Tensor:
        return grad if grad.norm() < 1 else grad / grad.norm()

    x.register_hook(shrink)  # type: ignore[no-untyped-call]
    return x


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (Asking.apply, r"Asking\.backward|backward in"),
        (Branching.apply, r"Branching\.backward|backward in"),
        (Outside.apply, r"Outside\.backward|backward in"),
        (hooked, "shrink"),
        (torch.compile(torch.sin, backend="aot_eager"), "a compiled model"),
    ],
    ids=["item", "branch", "numpy", "hook", "compiled"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_vmap_cannot_do_is_named(step: Callable[[Tensor], Tensor], name: str) -> None:
    model = Passed(step)
    optimizer = wrap(model, "pcgrad", engine="batched")
    message = rf"^engine: expected a graph that torch.vmap .*, found .*({name}).*engine='stored'$"
    with torch._functorch.config.patch(donated_buffer=False):
        check_refused(optimizer, model.losses(), RuntimeError, message)
        # One at a time there is nothing that it cannot do.
        wrap(model, "pcgrad", engine="batched", chunk_size=1).backward(model.losses())


def test_error_of_a_backward_itself_is_left_alone() -> None:
    model = Passed(Own.apply)
    check_refused(
        wrap(model, "pcgrad", engine="batched"), model.losses(), RuntimeError, "^of its own$"
    )


def test_sparse_gradients_are_named() -> None:
    model = Embedded(sparse=True)
    optimizer = wrap(model, "pcgrad", engine="batched")
    check_refused(optimizer, model.losses(), RuntimeError, "^engine: .*found aten::")


def test_says_what_it_did() -> None:
    model = Mlp()
    optimizer = wrap(model, "pcgrad", engine="batched")
    optimizer.backward(model.losses())
    assert (last(optimizer).engine, last(optimizer).reason) == ("batched", "it was asked for")
