"""``optimizer.last``: what the last step saw."""

from __future__ import annotations

import pytest
import torch
from cases import PLAIN, Row
from models import Mlp, assert_same, last, last_weights, wrap
from torch import nn

from mtlfast import GradNorm, MultiTaskOptimizer


@pytest.fixture(params=PLAIN, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


def test_last(row: Row) -> None:
    model = Mlp()
    optimizer = wrap(model, row.make(3), task_names=["a", "b", "c"])
    assert optimizer.last is None
    losses = model.losses()
    params = [*model.first.parameters(), *model.last.parameters()]
    rows = [torch.autograd.grad(loss, params, retain_graph=True) for loss in losses]
    jacobian = torch.stack([torch.cat([grad.flatten() for grad in row]) for row in rows])
    gramian = jacobian @ jacobian.T
    optimizer.backward(losses)
    info = last(optimizer)
    assert info is optimizer.last
    assert info.task_names == ("a", "b", "c")
    assert_same(info.losses, torch.stack(losses).detach())
    assert last_weights(optimizer).shape == (3,)
    assert info.status == "ok"
    assert info.skipped == [False] * 3
    torch.testing.assert_close(info.objective, (last_weights(optimizer) * info.losses).sum())
    assert ("conflict_share" in repr(info)) == optimizer.weighting.needs_gramian
    if not optimizer.weighting.needs_gramian:
        assert info.gramian is info.cosines is info.conflict_share is None
        return
    assert info.gramian is not None
    torch.testing.assert_close(info.gramian, gramian)
    unit = nn.functional.normalize(jacobian)
    torch.testing.assert_close(info.cosines, unit @ unit.T)
    pairs = [gramian[0, 1], gramian[0, 2], gramian[1, 2]]
    assert info.conflict_share == pytest.approx(sum(float(g < 0) for g in pairs) / 3)


def test_last_stays_what_it_was() -> None:
    """Read late, after the state has moved on and the tensors were used again."""
    model = Mlp()
    optimizer = wrap(model, GradNorm())
    kept, read = [], []
    for step in range(3):
        optimizer.backward(model.losses(step))
        optimizer.step()
        kept.append(last(optimizer))
        read.append((last_weights(optimizer).clone(), optimizer.weighting.status))
    for info, (weights, status) in zip(kept, read, strict=True):
        assert_same(info.weights, weights)
        assert info.status == status
    assert read[0][0].tolist() != read[2][0].tolist()


def test_conflict_share_of_opposites() -> None:
    x = nn.Parameter(torch.ones(2).double())
    optimizer = MultiTaskOptimizer(torch.optim.SGD([x], lr=0.1), "pcgrad")
    optimizer.backward([x.sum(), -x.sum()])
    assert last(optimizer).conflict_share == 1.0
    optimizer.zero_grad()
    optimizer.backward([x.sum(), x.sum()])
    assert last(optimizer).conflict_share == 0.0
    optimizer.zero_grad()
    optimizer.backward([x.sum()])
    assert last(optimizer).conflict_share == 0.0
