"""Against TorchJD and conflictfree, where they are right, and how far off they are elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from cases import random_jacobian, random_losses
from peer_losses import ROWS as LOSS_METHODS
from peer_table import ROWS as GRADIENT_METHODS
from peers import Modules, Row, Step, aggregator, orders_of_others, unequal
from torch import Tensor

import mtlfast
from mtlfast import Weighting

ROWS = [*GRADIENT_METHODS, *LOSS_METHODS]
Data = Callable[[int, int], Tensor]

pytestmark = pytest.mark.filterwarnings("default")  # the peers' warnings are not ours


@pytest.mark.parametrize(
    ("row", "num_tasks"),
    [pytest.param(row, k, id=f"{row}-{k}") for row in ROWS for k in row.tasks],
)
def test_same_numbers(row: Row, num_tasks: int) -> None:
    errors = [list(differences(row, num_tasks, seed)) for seed in range(5)]
    assert all(error <= row.tolerance for run in errors for error in run), errors


def differences(row: Row, num_tasks: int, seed: int) -> Iterator[float]:
    """Relative difference of the combined gradients, step by step of one run."""
    ours, theirs = row.ours(num_tasks), row.theirs(Modules(), num_tasks)
    for step in steps(row, ours, num_tasks, seed):
        torch.manual_seed(step.seed)
        expected = theirs(step).double()
        found = mtlfast.aggregate(step.jacobian, ours, step.losses, **step.inputs).double()
        row.after(ours, step)
        yield float((found - expected).norm() / found.norm())


def steps(row: Row, ours: Weighting, num_tasks: int, seed: int) -> Iterator[Step]:
    """The steps of one run; the peer finds the generator where our inputs were drawn."""
    for t in range(row.steps):
        number = 100 * seed + t
        common = row.data(num_tasks, number)
        noise = [0.3 * row.data(num_tasks, number + 50 * b) for b in range(1, ours.num_batches)]
        jacobian = torch.cat([common, *(common + part for part in noise)]).to(row.dtype)
        torch.manual_seed(number)
        inputs = row.draw(num_tasks, jacobian.shape[1])
        losses = [random_losses(num_tasks, number + i) for i in (0, 1)]
        yield Step(jacobian, losses[0], losses[1], inputs, number)


# ---- where they differ ---------------------------------------------------------------------------


def scaled(scale: float) -> Data:
    """Random task gradients of about 3 times this length."""
    return lambda k, seed: scale * random_jacobian(k, seed)


def opposed(k: int, seed: int) -> Tensor:
    """All but the last digits of the sum of the gradients cancel."""
    return random_jacobian(k, seed, conflict=0.999)


DIFFERENCES = [
    Row(
        "CAGrad: zero below a norm of 1e-2",
        lambda k: mtlfast.CAGrad(c=0.5),
        lambda m, k: aggregator(m.jd.CAGrad(c=0.5)),
        0.999,
        data=scaled(3e-4),
    ),
    Row(
        "MGDA: the default number of steps",
        lambda k: mtlfast.MGDA(),
        lambda m, k: aggregator(m.jd.MGDA()),
        0.1,
        data=unequal,
    ),
    Row(
        "UPGrad: the plain mean below a norm of 1e-2",
        lambda k: mtlfast.UPGrad(),
        lambda m, k: aggregator(m.jd.UPGrad()),
        0.1,
        data=scaled(3e-4),
    ),
    Row(
        "UPGrad: regularisation under imbalance",
        lambda k: mtlfast.UPGrad(),
        lambda m, k: aggregator(m.jd.UPGrad()),
        0.1,
        data=unequal,
    ),
    Row(
        "DualProj: regularisation under conflict",
        lambda k: mtlfast.DualProj(),
        lambda m, k: aggregator(m.jd.DualProj()),
        0.1,
        data=opposed,
    ),
    Row(
        "NashMTL: stops at the wrong scale",
        lambda k: mtlfast.NashMTL(),
        lambda m, k: aggregator(m.jd.NashMTL(n_tasks=k)),
        0.1,
        data=unequal,
    ),
    Row(
        "FairGrad: least squares at 1e-20",
        lambda k: mtlfast.FairGrad(),
        lambda m, k: aggregator(m.jd.FairGrad(alpha=2.0)),
        0.1,
        data=scaled(1e-20),
    ),
    Row(
        "IMTLG: zero for gradients of 1e18",
        lambda k: mtlfast.IMTLG(),
        lambda m, k: aggregator(m.jd.IMTLG()),
        0.999,
        data=scaled(1e18),
    ),
    Row(
        "AlignedMTL: eigenvalues in float32",
        lambda k: mtlfast.AlignedMTL(),
        lambda m, k: aggregator(m.jd.AlignedMTL()),
        0.1,
        data=unequal,
        dtype=torch.float32,
    ),
    Row(
        "Krum: distances instead of squares",
        lambda k: mtlfast.Krum(1),
        lambda m, k: aggregator(m.jd.Krum(1)),
        0.1,
        data=unequal,
        tasks=(8,),
    ),
    Row(
        "GradVac: eps against lengths of 1e-20",
        lambda k: mtlfast.GradVac(),
        lambda m, k: aggregator(m.jd.GradVac()),
        0.1,
        data=scaled(1e-20),
        draw=lambda k, p: {"order": orders_of_others(k)},
    ),
]


@pytest.mark.parametrize("row", DIFFERENCES, ids=str)
def test_known_difference(row: Row) -> None:
    """At least ``row.tolerance``: if a peer mends it, docs/coming-from.md must change."""
    errors = [e for k in row.tasks for seed in range(5) for e in differences(row, k, seed)]
    assert any(error >= row.tolerance for error in errors), errors


def test_upgrad_of_short_gradients_is_the_mean_at_torchjd() -> None:
    """It then opposes a task, which ours does not."""
    upgrad = Modules().jd.UPGrad()
    jacobian = 1e-4 * torch.tensor([[4.0, 1.0, 0.0], [-4.0, 1.0, 0.0], [-3.0, 0.0, 1.0]]).double()
    theirs, ours = upgrad(jacobian), mtlfast.aggregate(jacobian, mtlfast.UPGrad())
    torch.testing.assert_close(theirs, jacobian.mean(0), rtol=1e-9, atol=0)
    assert (jacobian @ theirs).min() < 0
    assert (jacobian @ ours).min() >= -1e-18


@pytest.mark.parametrize("peer", ["conflictfree", "torchjd"])
def test_config_of_opposite_gradients(peer: str) -> None:
    """No direction has equal cosines with both: ours is zero, theirs what rounding leaves."""
    modules = Modules()
    theirs = modules.jd.ConFIG() if peer == "torchjd" else modules.cf.ConFIG_update
    lengths = []
    for seed in range(5):
        row = random_jacobian(3, seed)[:1].float()
        jacobian = torch.cat([row, -0.3 * row])
        assert float(mtlfast.aggregate(jacobian, mtlfast.ConFIG()).norm()) == 0.0
        lengths.append(float(theirs(jacobian).norm() / row.norm()))
    assert max(lengths) > 0.1


def test_conflictfree_needs_float32() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        Modules().cf.ConFIG_update(random_jacobian(3, 0))
