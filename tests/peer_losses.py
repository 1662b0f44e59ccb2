"""Loss methods that equal TorchJD's scalarizers, as docs/coming-from.md states it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import PREFERENCE, Row, filled, learned, preference, scalarizer

import mtlfast
from mtlfast import Weighting


def _random(ours: Callable[[], Weighting]) -> Row:
    return Row(
        f"Random, {ours.__name__}",
        lambda k: ours(),
        lambda m, k: scalarizer(m.scalar.Random()),
        draw=lambda k, p: {"normal": torch.randn(k, dtype=torch.float64)},
    )


ROWS = [
    Row("Sum of losses", lambda k: mtlfast.Sum(), lambda m, k: scalarizer(m.scalar.Sum())),
    Row("Mean of losses", lambda k: mtlfast.Mean(), lambda m, k: scalarizer(m.scalar.Mean())),
    Row(
        "Constant of losses",
        lambda k: mtlfast.Constant(PREFERENCE[:k]),
        lambda m, k: scalarizer(m.scalar.Constant(preference(k))),
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
