"""The engine "sketched": exact where every element has its own bucket, and close where not."""

from __future__ import annotations

import pytest
import torch
from engine_cases import CASES, METHODS, Case, Layered, Method, check_same
from models import Mlp, check_refused, last, wrap
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from mtlfast.jacobian.request import Request
from mtlfast.jacobian.sketched import _seed, sketched
from mtlfast.losses import TaskLosses

SIZE = 1024


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_what_stored_gives_where_no_bucket_is_shared(case: Case, method: Method) -> None:
    check_same(case, method, "sketched", 2e-5 if method.id == "cagrad" else 2e-6)


class Wide(nn.Module):
    """A trunk of 33 thousand elements: many share a bucket."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(128, 3) for _ in range(4))

    def losses(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        z = self.trunk(torch.randn(9, 128, generator=generator))
        targets = torch.randn(4, 9, 3, generator=generator)
        return [(h(z) - y).square().mean() for h, y in zip(self.heads, targets, strict=True)]


def gramian(model: Wide, engine: str) -> Tensor:
    optimizer = wrap(model, "pcgrad", engine=engine, sketch_size=SIZE)
    optimizer.backward(model.losses())
    found = last(optimizer).gramian
    assert found is not None
    return found


def cosines(found: Tensor) -> Tensor:
    """Of every pair of tasks."""
    norms = found.diagonal().sqrt()
    at = torch.triu_indices(4, 4, 1)
    return (found / norms / norms[:, None])[at[0], at[1]]


def test_cosines_have_an_error_of_one_over_the_root() -> None:
    torch.manual_seed(0)
    model = Wide()
    expected = gramian(model, "stored")
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        found.append(gramian(model, "sketched"))
    for each in found:
        torch.testing.assert_close(each.diagonal(), expected.diagonal(), rtol=1e-6, atol=0)
    errors = torch.stack([cosines(each) - cosines(expected) for each in found])
    assert 0.5 < float(errors.square().mean().sqrt()) * SIZE**0.5 < 1.2
    # With new signs the errors average out.
    assert float(errors.mean(0).abs().max()) < 3 / (40 * SIZE) ** 0.5


def test_signs_are_new_in_every_step_and_the_same_in_every_run() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        model = Wide()
        optimizer = wrap(model, "cagrad", engine="sketched", sketch_size=SIZE)
        seeds = []
        for _ in range(3):
            before = torch.get_rng_state()
            seeds.append(_seed(optimizer.param_groups[0]["params"]))
            optimizer.backward(model.losses())
            assert torch.equal(torch.get_rng_state(), before), "nobody else's numbers change"
            optimizer.step()
            optimizer.zero_grad()
        runs.append((seeds, [param.detach() for param in model.parameters()]))
    assert len(set(runs[0][0])) == 3
    assert runs[0][0] == runs[1][0]
    for ours, theirs in zip(runs[0][1], runs[1][1], strict=True):
        assert torch.equal(ours, theirs)
    torch.manual_seed(6)
    assert _seed(list(Wide().parameters())) not in runs[0][0]


def test_each_gradient_is_freed_before_the_next() -> None:
    model = Layered()
    alive: list[int] = []
    seen: list[StorageWeakRef] = []

    def look(grad: Tensor) -> None:
        alive.append(sum(not known.expired() for known in seen))  # type: ignore[no-untyped-call]
        seen.append(StorageWeakRef(grad.untyped_storage()))  # type: ignore[no-untyped-call]

    for param in model.layers.parameters():
        param.register_hook(look)  # type: ignore[no-untyped-call]
    z = model.depths(0)[-1]
    params: list[Tensor] = list(model.parameters())
    losses = TaskLosses.read([model.loss(k, z) for k in range(3)], None)
    sketched(Request(losses, 3, params, sketch_size=SIZE))
    assert len(alive) == 3 * 8
    # A bias and the output gradient that it is the sum of, at most.
    assert max(alive) <= 2


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: object, *_grads: Tensor) -> Tensor:
        raise RuntimeError("of its own")


class Failing(Layered):
    """An error half way down."""

    def losses(self, step: int = 0) -> list[Tensor]:
        z = self.depths(step)[-1]
        z = torch.tanh(self.layers[0](_Fails.apply(z)))  # type: ignore[no-untyped-call]
        return [self.loss(k, z) for k in range(3)]


def test_no_hook_stays_after_an_error() -> None:
    model = Failing()
    optimizer = wrap(model, "pcgrad", engine="sketched")
    check_refused(optimizer, model.losses(), RuntimeError, "^of its own$")
    assert not any(param._backward_hooks for param in model.parameters())


def test_says_what_it_did() -> None:
    model = Mlp()
    optimizer = wrap(model, "pcgrad", engine="sketched")
    optimizer.backward(model.losses())
    assert (last(optimizer).engine, last(optimizer).reason) == ("sketched", "it was asked for")


def test_column_methods_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^engine: "):
        wrap(Mlp(), "graddrop", engine="sketched")
