"""The table of equivalences with other libraries; docs/coming-from.md states them in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from cases import random_jacobian
from peers import (
    Modules,
    Peer,
    Step,
    aggregator,
    full_orders,
    gramian_weighting,
    learned,
    orders_of_others,
    scalarizer,
    three_batches,
    two_batches,
)
from torch import Tensor

import mtlfast
from mtlfast import Weighting

PREFERENCE = [0.5, 1.0, 0.25, 2.0, 1.5, 0.75, 1.25, 0.6]


@dataclass(frozen=True)
class Row:
    """One of our methods, a peer's with the same meaning, and how close they should be."""

    id: str
    ours: Callable[[int], Weighting]  # from K
    theirs: Callable[[Modules, int], Peer]  # from K
    tolerance: float = 1e-12  # of the combined gradient, relative
    note: str = ""  # why the tolerance is not the default one, and other conditions
    data: Callable[[int, int], Tensor] = random_jacobian  # from K and a seed, [K, P]
    steps: int = 1
    dtype: torch.dtype = torch.float64
    draw: Callable[[int, int], dict[str, Tensor]] = lambda k, p: {}  # from K and P, our inputs
    after: Callable[[Weighting, Step], object] = lambda weighting, step: None
    tasks: tuple[int, ...] = (2, 3, 8)

    def __str__(self) -> str:
        return self.id


def preference(k: int) -> Tensor:
    """That of the first K tasks."""
    return torch.tensor(PREFERENCE[:k], dtype=torch.float64)


def filled(k: int, value: float) -> Tensor:
    """``[K]`` float64."""
    return torch.full((k,), value, dtype=torch.float64)


def agreeing(num_tasks: int, seed: int) -> Tensor:
    """``[K, P]``: little conflict and one scale; zero is far from the mixtures of the rows."""
    rows = random_jacobian(num_tasks, seed, conflict=0.0)
    rows[:, 0] += 1.5 * rows[0].norm()
    return rows


def unequal(k: int, seed: int) -> Tensor:
    """Lengths over four decades."""
    return random_jacobian(k, seed) * torch.logspace(0, -4, k, dtype=torch.float64)[:, None]


def _fairgrad(alpha: float) -> Row:
    return Row(
        f"FairGrad({alpha})",
        lambda k: mtlfast.FairGrad(alpha=alpha),
        lambda m, k: aggregator(m.jd.FairGrad(alpha=alpha)),
        1e-8,
        "its least squares stop at a relative change of 1e-8",
    )


def _aligned(scale: Literal["min", "median", "rmse"]) -> Row:
    return Row(
        f"AlignedMTL, {scale}",
        lambda k: mtlfast.AlignedMTL(scale),
        lambda m, k: aggregator(m.jd.AlignedMTL(scale_mode=scale)),
    )


def _krum(byzantine: int, selected: int) -> Row:
    return Row(
        f"Krum, {byzantine} and {selected}",
        lambda k: mtlfast.Krum(byzantine, selected, "norm"),
        lambda m, k: aggregator(m.jd.Krum(byzantine, selected)),
        note="TorchJD sums distances, not their squares",
        data=unequal,
        tasks=(8,),
    )


def _random(ours: Callable[[], Weighting]) -> Row:
    return Row(
        f"Random, {ours.__name__}",
        lambda k: ours(),
        lambda m, k: scalarizer(m.scalar.Random()),
        draw=lambda k, p: {"normal": torch.randn(k, dtype=torch.float64)},
    )


ROWS = [
    Row("Sum", lambda k: mtlfast.Sum(), lambda m, k: aggregator(m.jd.Sum())),
    Row("Sum of losses", lambda k: mtlfast.Sum(), lambda m, k: scalarizer(m.scalar.Sum())),
    Row("Mean", lambda k: mtlfast.Mean(), lambda m, k: aggregator(m.jd.Mean())),
    Row("Mean of losses", lambda k: mtlfast.Mean(), lambda m, k: scalarizer(m.scalar.Mean())),
    Row(
        "Constant",
        lambda k: mtlfast.Constant(PREFERENCE[:k]),
        lambda m, k: aggregator(m.jd.Constant(preference(k))),
    ),
    Row(
        "Constant of losses",
        lambda k: mtlfast.Constant(PREFERENCE[:k]),
        lambda m, k: scalarizer(m.scalar.Constant(preference(k))),
    ),
    Row(
        "PCGrad",
        lambda k: mtlfast.PCGrad(),
        lambda m, k: aggregator(m.jd.PCGrad()),
        draw=lambda k, p: {"order": full_orders(k)},
    ),
    Row(
        "PCGrad, conflictfree",
        lambda k: mtlfast.PCGrad(),
        lambda m, k: aggregator(m.cf.PCGradOperator().calculate_gradient),
        note="conflictfree meets the tasks in their order, without shuffling",
        draw=lambda k, p: {"order": torch.arange(k).repeat(k, 1)},
    ),
    Row(
        "GradVac",
        lambda k: mtlfast.GradVac(beta=0.3),
        lambda m, k: aggregator(m.jd.GradVac(beta=0.3, eps=0.0)),
        draw=lambda k, p: {"order": orders_of_others(k)},
        steps=4,
    ),
    Row(
        "GradVac, default eps",
        lambda k: mtlfast.GradVac(),
        lambda m, k: aggregator(m.jd.GradVac()),
        1e-7,
        "TorchJD adds 1e-8 to the norms, which are between 1 and 5 here",
        draw=lambda k, p: {"order": orders_of_others(k)},
        steps=4,
    ),
    Row(
        "CAGrad",
        lambda k: mtlfast.CAGrad(c=0.5),
        lambda m, k: aggregator(m.jd.CAGrad(c=0.5)),
        5e-4,
        "its conic solver stops early; beyond a norm of 1e-2 only",
    ),
    Row(
        "MGDA",
        lambda k: mtlfast.MGDA(),
        lambda m, k: aggregator(m.jd.MGDA(epsilon=1e-12, max_iters=5000)),
        1e-9,
        "Frank-Wolfe with 5000 steps instead of 100",
        tasks=(2, 3),
    ),
    Row(
        "MGDA, eight tasks",
        lambda k: mtlfast.MGDA(),
        lambda m, k: aggregator(m.jd.MGDA(epsilon=1e-12, max_iters=5000)),
        1e-2,
        "Frank-Wolfe gains one digit for ten times the steps where many tasks share the minimum",
        tasks=(8,),
    ),
    Row(
        "UPGrad",
        lambda k: mtlfast.UPGrad(),
        lambda m, k: aggregator(m.jd.UPGrad(projector=m.exact)),
        1e-10,
        "with reg_eps=1e-13 instead of 1e-4; quadprog needs some",
    ),
    Row(
        "UPGrad, preference",
        lambda k: mtlfast.UPGrad(preference=PREFERENCE[:k]),
        lambda m, k: aggregator(m.jd.UPGrad(preference(k), projector=m.exact)),
        1e-10,
        "as UPGrad",
    ),
    Row(
        "UPGrad, default reg_eps",
        lambda k: mtlfast.UPGrad(),
        lambda m, k: aggregator(m.jd.UPGrad()),
        1e-2,
        "TorchJD adds 1e-4 to the diagonal of the Gramian over its trace",
    ),
    Row(
        "DualProj",
        lambda k: mtlfast.DualProj(),
        lambda m, k: aggregator(m.jd.DualProj(projector=m.exact)),
        1e-10,
        "as UPGrad",
    ),
    Row(
        "DualProj, preference",
        lambda k: mtlfast.DualProj(preference=PREFERENCE[:k]),
        lambda m, k: aggregator(m.jd.DualProj(preference(k), projector=m.exact)),
        1e-10,
        "as UPGrad",
    ),
    Row(
        "DualProj, default reg_eps",
        lambda k: mtlfast.DualProj(),
        lambda m, k: aggregator(m.jd.DualProj()),
        1e-2,
        "as UPGrad",
    ),
    Row(
        "NashMTL",
        lambda k: mtlfast.NashMTL(),
        lambda m, k: aggregator(m.jd.NashMTL(n_tasks=k)),
        1e-7,
        "its solver stops at 1e-3 of a scaled condition, and only on mild conflict at the root",
        data=agreeing,
    ),
    Row(
        "NashMTL, unclipped",
        lambda k: mtlfast.NashMTL(max_norm=None),
        lambda m, k: aggregator(m.jd.NashMTL(n_tasks=k, max_norm=0.0)),
        1e-7,
        "as NashMTL",
        data=agreeing,
    ),
    *(_fairgrad(alpha) for alpha in (0.5, 1.0, 2.0)),
    *(_aligned(scale) for scale in ("min", "median", "rmse")),
    Row(
        "AlignedMTL, preference",
        lambda k: mtlfast.AlignedMTL(preference=PREFERENCE[:k]),
        lambda m, k: aggregator(m.jd.AlignedMTL(preference(k))),
    ),
    Row("IMTLG", lambda k: mtlfast.IMTLG(), lambda m, k: aggregator(m.jd.IMTLG())),
    Row(
        "IMTLG, conflictfree",
        lambda k: mtlfast.IMTLG(),
        lambda m, k: aggregator(m.cf.IMTLGOperator().calculate_gradient),
        1e-11,
        "its matrix of differences is worse conditioned",
    ),
    Row("ConFIG", lambda k: mtlfast.ConFIG(), lambda m, k: aggregator(m.jd.ConFIG())),
    Row(
        "ConFIG, preference",
        lambda k: mtlfast.ConFIG(preference=PREFERENCE[:k]),
        lambda m, k: aggregator(m.jd.ConFIG(preference(k))),
    ),
    Row(
        "ConFIG, conflictfree",
        lambda k: mtlfast.ConFIG(),
        lambda m, k: aggregator(m.cf.ConFIGOperator().calculate_gradient),
        1e-5,
        "float32, the only dtype that conflictfree takes here",
        data=agreeing,
        dtype=torch.float32,
    ),
    *(_krum(byzantine, selected) for byzantine, selected in ((0, 1), (2, 1), (2, 3))),
    Row(
        "PCD",
        lambda k: mtlfast.PCD(tau=0.05, beta=0.9, eps=1e-8),
        lambda m, k: aggregator(m.jd.PCD(tau=0.05, beta=0.9)),
        steps=4,
    ),
    Row(
        "CRMOGM",
        lambda k: mtlfast.CRMOGM(mtlfast.IMTLG(), alpha=0.7),
        lambda m, k: gramian_weighting(m.jd.CRMOGMWeighting(m.jd.IMTLGWeighting(), alpha=0.7)),
        steps=4,
    ),
    Row(
        "GradDrop",
        lambda k: mtlfast.GradDrop(),
        lambda m, k: aggregator(m.jd.GradDrop()),
        draw=lambda k, p: {"uniform": torch.rand(p, dtype=torch.float64)},
    ),
    Row(
        "GradDrop, leak",
        lambda k: mtlfast.GradDrop(leak=0.3),
        lambda m, k: aggregator(m.jd.GradDrop(leak=filled(k, 0.3))),
        draw=lambda k, p: {"uniform": torch.rand(p, dtype=torch.float64)},
    ),
    Row(
        "TrimmedMean",
        lambda k: mtlfast.TrimmedMean(trim_number=1),
        lambda m, k: aggregator(m.jd.TrimmedMean(trim_number=1)),
        tasks=(3, 8),
    ),
    Row(
        "ExcessMTL",
        lambda k: mtlfast.ExcessMTL(),
        lambda m, k: aggregator(m.jd.ExcessMTL()),
        steps=4,
    ),
    Row(
        "ExcessMTL, warm-up",
        lambda k: mtlfast.ExcessMTL(lr=0.5, num_warmup_steps=2),
        lambda m, k: aggregator(m.jd.ExcessMTL(robust_step_size=0.5, n_warmup_steps=2)),
        steps=5,
    ),
    Row(
        "MoDo",
        lambda k: mtlfast.MoDo(gamma=0.1, rho=0.1, reduction="mean"),
        lambda m, k: two_batches(m.jd.MoDoWeighting(gamma=0.1, rho=0.1)),
        steps=4,
    ),
    Row(
        "SDMGrad, default",
        lambda k: mtlfast.SDMGrad(),
        lambda m, k: three_batches(m.jd.SDMGradWeighting()),
        note="its long steps end in corners of the simplex here",
        steps=4,
    ),
    Row(
        "SDMGrad, short steps",
        lambda k: mtlfast.SDMGrad(lr=0.2, momentum=0.6, regularization=0.4, num_steps=7),
        lambda m, k: three_batches(m.jd.SDMGradWeighting(0.2, 0.6, 7, 0.4)),
        1e-8,
        "TorchJD adds 1e-8 to the square of the scale",
        steps=4,
    ),
    _random(mtlfast.RLW),
    _random(mtlfast.Random),
    Row(
        "UW",
        lambda k: mtlfast.UW(lr=0.1, optimizer="sgd"),
        lambda m, k: learned(m.scalar.UW(k).double(), lr=0.1),
        steps=6,
    ),
    Row(
        "IMTLL",
        lambda k: mtlfast.IMTLL(lr=0.1, optimizer="sgd"),
        lambda m, k: learned(m.scalar.IMTLL(k).double(), lr=0.1),
        steps=6,
    ),
    Row(
        "DWA",
        lambda k: mtlfast.DWA(temperature=1.5),
        lambda m, k: scalarizer(m.scalar.DWA(temperature=1.5), lambda dwa, step: dwa.step()),
        note="epochs of one step",
        steps=6,
        after=lambda weighting, step: weighting.end_epoch(),  # type: ignore[attr-defined]
    ),
    Row(
        "FAMO",
        lambda k: mtlfast.FAMO(weight_decay=0.01, min_losses=0.05),
        lambda m, k: scalarizer(
            m.scalar.FAMO(k, min_losses=filled(k, 0.05), weight_decay=0.01).double(),
            lambda famo, step: famo.update(step.next_losses),
        ),
        steps=6,
        after=lambda weighting, step: weighting.observe(step.next_losses),  # type: ignore[attr-defined]
    ),
    Row("GLS", lambda k: mtlfast.GLS(), lambda m, k: scalarizer(m.scalar.GeometricMean())),
    Row("STCH", lambda k: mtlfast.STCH(mu=0.2), lambda m, k: scalarizer(m.scalar.STCH(mu=0.2))),
    Row(
        "STCH, preference",
        lambda k: mtlfast.STCH(mu=0.2, preference=PREFERENCE[:k], reference=[0.05] * k),
        lambda m, k: scalarizer(m.scalar.STCH(0.2, preference(k), filled(k, 0.05))),
    ),
    Row(
        "COSMOS",
        lambda k: mtlfast.COSMOS(penalty=2.0, preference=PREFERENCE[:k]),
        lambda m, k: scalarizer(m.scalar.COSMOS(2.0, preference(k))),
    ),
    Row(
        "PBI",
        lambda k: mtlfast.PBI(theta=3.0, preference=PREFERENCE[:k], reference=[0.05] * k),
        lambda m, k: scalarizer(m.scalar.PBI(3.0, preference(k), filled(k, 0.05))),
        1e-9,
        "TorchJD adds 1e-12 below the root",
    ),
    Row(
        "Scalarization",
        lambda k: mtlfast.Scalarization(lambda losses: losses.square().sum()),
        lambda m, k: scalarizer(lambda losses: losses.square().sum()),
        note="any scalarizer without parameters can be passed as it is",
    ),
]
