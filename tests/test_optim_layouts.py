"""Gradients with the strides that autograd hands over, through the wrapper."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import BACKENDS, Row, backend
from models import SOME, assert_same, assert_same_grads, balance, given_gradient, wrap
from torch import Tensor, nn


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


@pytest.fixture(params=SOME, ids=str)
def some(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


def layouts() -> dict[str, list[Tensor]]:
    """Three task gradients of one parameter by name; what is special about them is checked."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    filters = [randn(4, 3, 2, 2).to(memory_format=torch.channels_last) for _ in range(3)]
    assert not filters[0].is_contiguous()
    same = randn(5, 4)
    return {
        "zero stride": [randn().expand(5, 4) for _ in range(3)],
        "one row expanded": [randn(4).expand(5, 4), randn(5, 1).expand(5, 4), randn(5, 4)],
        "transposed": [randn(4, 5).T for _ in range(3)],
        "mixed": [randn(4, 5).T, randn(5, 4), randn().expand(5, 4)],
        "strided": [randn(10, 8)[::2, ::2] for _ in range(3)],
        "misaligned": [randn(21)[1:].view(5, 4) for _ in range(3)],
        "channels_last": filters,
        "channels_last and contiguous": [filters[0], filters[1].contiguous(), filters[2]],
        "same tensor": [same, same, -same],
        "empty": [randn(0, 4) for _ in range(3)],
        "scalar": [randn() for _ in range(3)],
    }


@pytest.mark.parametrize("layout", layouts())
def test_layouts(some: Row, layout: str) -> None:
    """Whatever strides the gradients have; the odd tensor stands first, and last in the list."""
    rows = layouts()[layout]
    for place in (0, 1):
        model, twin = [
            nn.ParameterList(
                [torch.ones(6).double(), torch.ones(rows[0].shape).double()][:: 1 - 2 * place]
            )
            for _ in range(2)
        ]

        def losses(params: nn.ParameterList, place: int = place) -> list[Tensor]:
            found = [given_gradient(params[1 - place], grad) for grad in rows]
            direct = torch.autograd.grad(found[0], params[1 - place], retain_graph=True)[0]
            assert direct.stride() == rows[0].stride()
            return [x + (params[place] * (k - 0.5)).sum() for k, x in enumerate(found)]

        kept = [row.clone() for row in rows]
        torch.manual_seed(0)
        wrap(model, some.make(3)).backward(losses(model))
        torch.manual_seed(0)
        balance(losses(twin), twin.parameters(), some.make(3))
        assert_same_grads(model, twin)
        assert_same(rows, kept)


def test_one_gradient_for_two_parameters(some: Row) -> None:
    """p + q: autograd hands out one tensor for both; their ``grad`` must not be one."""
    model = nn.ParameterList([torch.ones(4).double(), torch.ones(4).double()])
    twin = copy.deepcopy(model)

    def losses(params: nn.ParameterList) -> list[Tensor]:
        return [((params[0] + params[1]) * (k - 0.5)).square().sum() for k in range(3)]

    first, second = torch.autograd.grad(losses(model)[0], list(model))
    assert first.data_ptr() == second.data_ptr()
    torch.manual_seed(0)
    wrap(model, some.make(3)).backward(losses(model))
    torch.manual_seed(0)
    balance(losses(twin), twin.parameters(), some.make(3))
    assert_same_grads(model, twin)
    assert model[0].grad is not None
    model[0].grad.zero_()
    assert_same(model[1].grad, twin[1].grad)
