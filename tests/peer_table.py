"""Gradient methods that equal other libraries', as docs/coming-from.md states it."""

from __future__ import annotations

from typing import Literal

import torch
from cases import random_jacobian
from peers import (
    PREFERENCE,
    Row,
    aggregator,
    agreeing,
    filled,
    full_orders,
    gramian_weighting,
    orders_of_others,
    preference,
    three_batches,
    two_batches,
    unequal,
)

import mtlfast


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


ROWS = [
    Row("Sum", lambda k: mtlfast.Sum(), lambda m, k: aggregator(m.jd.Sum())),
    Row("Mean", lambda k: mtlfast.Mean(), lambda m, k: aggregator(m.jd.Mean())),
    Row(
        "Constant",
        lambda k: mtlfast.Constant(PREFERENCE[:k]),
        lambda m, k: aggregator(m.jd.Constant(preference(k))),
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
        1e-9,
        "TorchJD's 1e-8 must not be seen: long steps enlarge it a hundred thousand times",
        data=lambda k, seed: 1e4 * random_jacobian(k, seed),
        steps=4,
    ),
    Row(
        "SDMGrad, short steps",
        lambda k: mtlfast.SDMGrad(lr=0.2, momentum=0.6, regularization=0.4, num_steps=7),
        lambda m, k: three_batches(m.jd.SDMGradWeighting(0.2, 0.6, 7, 0.4)),
        1e-8,
        "TorchJD adds 1e-8 to the square that the products are divided by, which is about 9 here",
        steps=4,
    ),
]
