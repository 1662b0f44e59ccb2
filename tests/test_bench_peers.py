"""The benchmarks' peers compute what ours does, or say what they compute instead."""

from __future__ import annotations

import copy
import importlib.util
import random
import signal
import sys

import pytest
import torch
from torch import Tensor

import mtlfast
from mtlfast.bench import methods, models, steps
from mtlfast.bench.models import EngineModel
from mtlfast.bench.peers import Into, Peer, conflictfree, libmtl
from mtlfast.bench.peers.base import PEERS
from mtlfast.bench.peers.libmtl import METHODS
from mtlfast.bench.steps import Field
from mtlfast.bench.workloads import relative_difference
from mtlfast.weighting import Weighting

pytestmark = pytest.mark.filterwarnings("default")  # the peers' warnings are not ours

ALL: dict[str, Peer] = {
    module: importlib.import_module(f"mtlfast.bench.peers.{module}").PEER for module in PEERS
}
ROUNDING = 2e-7  # float32, relative to the whole gradient
EXACT = {
    "torchjd": ("aligned_mtl", "config", "gradvac", "imtlg", "pcgrad"),
    "libmtl": ("dwa", "gls", "gradnorm", "gradvac", "imtl", "pcgrad", "sum"),
    "conflictfree": ("imtlg", "pcgrad"),
    "pytorch_optimizer": ("pcgrad",),
}
"""Of the first step, in all modes of which nothing else is said."""
LATER = ("gradnorm", "gradvac", "imtl")  # LibMTL's, which differ from the second step on
DIFFERENT = [
    ("torchjd", "cagrad", "default", 1e-7),
    ("torchjd", "mgda", "default", 1e-5),
    ("torchjd", "upgrad", "default", 1e-6),
    ("libmtl", "cagrad", "default", 1e-5),
    ("libmtl", "mgda", "default", 1e-7),
    ("libmtl", "uw", "default", 0.1),
    ("libmtl", "mgda", "rep_grad", 1e-3),
    ("libmtl", "imtl", "rep_grad", 1e-3),
    ("gradnorm_pytorch", "gradnorm", "alpha=1.5", 0.05),
    ("gradnorm_pytorch", "gradnorm", "default", 0.05),
    ("pytorch_optimizer", "pcgrad", "default", 0.1),
]
"""And by how much of the gradient, at least."""


def installed(name: str) -> Peer:
    """The peer; skips the test where it is not installed."""
    peer = ALL[name]
    if peer.version() is None:
        pytest.skip(f"{peer.name} is not installed")
    return peer


def small(num_tasks: int = 3) -> EngineModel:
    return models.mlp(num_tasks, widths=(8, 16, 12), batch=8)


def order_of(peer: Peer, method: str, num_tasks: int) -> Tensor:
    """Also of methods that take none."""
    order = peer.order(method, num_tasks)
    return steps.meetings(num_tasks) if order is None else order


def modes(name: str, method: str) -> list[str]:
    """Those in which it claims to compute what ours does, but for later steps."""
    peer = installed(name)
    allowed = ("", peer.difference(method)) if method in LATER or name == "conflictfree" else ("",)
    return [m for m in peer.steps(method, small()) if peer.difference(method, m) in allowed]


def far(peer: Peer, method: str, mode: str, model: EngineModel) -> float:
    """Its first gradients of all parameters from ours."""
    order = order_of(peer, method, len(model.heads))
    found = peer.steps(method, model)[mode]().gradients(order)
    expected = steps.ours(model, method, engine="stored").gradients(order)
    assert len(found) == len(expected) == len(list(model.parameters()))
    return relative_difference(iter(found), iter(expected))


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
@pytest.mark.parametrize(("name", "method"), [(n, m) for n in EXACT for m in EXACT[n]])
def test_steps_fill_the_same_gradients(name: str, method: str, num_tasks: int) -> None:
    for mode in modes(name, method):
        assert far(ALL[name], method, mode, small(num_tasks)) < ROUNDING, mode


@pytest.mark.parametrize(("name", "method", "mode", "least"), DIFFERENT)
def test_differences_exist(name: str, method: str, mode: str, least: float) -> None:
    """If a peer mends one, what is said of it must change."""
    assert far(installed(name), method, mode, small()) > least
    assert ALL[name].difference(method, mode) or (name, method) == ("torchjd", "cagrad")


def test_conflictfree_by_its_pseudo_inverse() -> None:
    """Where least squares may fail, since the first columns are zero: a dead unit."""
    peer = installed("conflictfree")
    model = small()
    with torch.no_grad():
        model.trunk[0].bias[0] = -100.0  # type: ignore[index]
    assert far(peer, "config", conflictfree.PINV, model) < 1e-6


def test_conflictfree_by_least_squares() -> None:
    torch.manual_seed(0)
    jacobian = torch.randn(3, 40)
    _, call = installed("conflictfree").weights("config", 3) or pytest.fail("has it")
    expected = mtlfast.aggregate(jacobian, mtlfast.ConFIG())
    torch.testing.assert_close(call(jacobian), expected, rtol=1e-4, atol=1e-5)


def test_conflictfree_never_shuffles() -> None:
    peers = [installed("conflictfree"), installed("libmtl")]
    torch.manual_seed(0)
    jacobian = torch.randn(6, 8)
    jacobian[:, 0] *= 0.1
    spread = []
    for peer in peers:
        call = peer.weights("pcgrad", 6)
        assert call is not None
        found = []
        for seed in range(4):
            random.seed(seed)
            torch.manual_seed(seed)
            found.append(call[1](jacobian))
        spread.append(max(float((f - found[0]).norm()) for f in found))
    assert spread[0] == 0.0
    assert spread[1] > 1e-3


def test_krum_of_torchjd_takes_distances() -> None:
    peer = installed("torchjd")
    call = peer.weights("krum", 8)
    assert call is not None
    torch.manual_seed(0)
    lengths = torch.logspace(0, -4, 8, dtype=torch.float64)[:, None]
    others = 0
    for _ in range(20):
        jacobian = lengths * torch.randn(8, 16, dtype=torch.float64)
        gramian = jacobian @ jacobian.T
        others += not torch.equal(call[1](gramian), mtlfast.Krum()(gramian))
    assert others > 0
    assert peer.difference("krum")


def test_gradvac_of_libmtl_differs_later() -> None:
    peer = installed("libmtl")
    (_, theirs), weighting = peer.weights("gradvac", 4) or pytest.fail("has it"), mtlfast.GradVac()
    far = []
    for seed in range(3):
        torch.manual_seed(seed)
        jacobian = torch.randn(4, 12)
        jacobian[:, 0] += 1.0
        order = peer.order("gradvac", 4)
        peer.seed()
        found = theirs(jacobian)
        expected = mtlfast.aggregate(jacobian, weighting, order=order)
        far.append(float((found - expected).norm() / expected.norm()))
    assert far[0] < ROUNDING
    assert max(far[1:]) > 1e-3


def test_libmtl_learns_with_the_models_optimizer() -> None:
    model = small()
    step = installed("libmtl").steps("gradnorm", model)["default"]()
    assert step.optimizer is not None
    held = sum(p.numel() for group in step.optimizer.param_groups for p in group["params"])
    assert held == sum(p.numel() for p in model.parameters()) + len(model.heads)


def test_libmtl_by_features_is_another_algorithm() -> None:
    """What it says so of, and that there is nothing else of this kind."""
    peer = installed("libmtl")
    by_features = [m for m in METHODS if libmtl.REP_GRAD in peer.steps(m, small())]
    assert by_features == list(libmtl.BY_FEATURES)
    assert all("features" in peer.difference(m, libmtl.REP_GRAD) for m in by_features)
    step = peer.steps("graddrop", small())[libmtl.REP_GRAD]()
    assert all(g.isfinite().all() for g in step.gradients(steps.meetings(3)))


def test_libmtls_cagrad_runs_for_three_tasks_only() -> None:
    field = Field(small(4), [installed("libmtl")], "cagrad", wanted=("LibMTL, default",))
    assert "reshape" in field.missing["LibMTL, default"]


def test_libmtls_mgda_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its search ends in time or is ended; the interval timer is off afterwards."""
    installed("libmtl")
    _, call = ALL["libmtl"].weights("mgda", 3) or pytest.fail("has it")
    assert call(torch.eye(3)).isfinite().all()
    monkeypatch.setattr(libmtl, "MGDA_SECONDS", 0.02)
    monkeypatch.setattr(libmtl._weighting().MGDA, "_find_min_norm_element", spin)
    _, call = ALL["libmtl"].weights("mgda", 3) or pytest.fail("has it")
    with pytest.raises(TimeoutError, match=r"no end after 0\.02 s"):
        call(torch.eye(3))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def spin(*_: object) -> None:
    while True:
        pass


# ---- given gradients -----------------------------------------------------------------------------

BALANCES = {
    "torchjd": ("aligned_mtl", "config", "gradvac", "imtlg", "pcgrad"),
    "libmtl": ("gradnorm", "gradvac", "imtl", "pcgrad"),
    "conflictfree": ("config", "imtlg", "pcgrad"),
    "pytorch_optimizer": ("pcgrad",),
    "plain": ("aligned_mtl", "config", "imtlg"),
}


def aggregated(jacobian: Tensor, method: str, order: Tensor | None) -> Tensor:
    weighting: Weighting = methods.make(method)
    losses = torch.ones(len(jacobian)) if weighting.needs_losses else None
    inputs = {} if order is None else {"order": order}
    found: Tensor = mtlfast.aggregate(jacobian, weighting, losses, **inputs)
    return found


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
@pytest.mark.parametrize(("name", "method"), [(n, m) for n in BALANCES for m in BALANCES[n]])
def test_balances_fill_the_same_gradients(name: str, method: str, num_tasks: int) -> None:
    peer = ALL[name] if name == "plain" else installed(name)
    torch.manual_seed(num_tasks)
    into = Into([[torch.randn(4, 5), torch.randn(7), torch.randn(2, 3)] for _ in range(num_tasks)])
    given = copy.deepcopy(into.task_grads)
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in given])
    expected = aggregated(jacobian, method, peer.order(method, num_tasks))
    found = list(peer.balances(method, into))
    assert found
    assert "default" in found or name == "plain"
    for mode in found:
        before, call = peer.balances(method, into)[mode]  # anew: some have a state
        before()
        peer.seed()
        call()
        grads = [param.grad for param in into.params]
        combined = torch.cat([g.flatten() for g in grads if g is not None])
        error = float((combined - expected).norm() / expected.norm())
        assert error < 1e-5, mode  # conflictfree's IMTL-G loses two digits
        assert all(
            torch.equal(a, b)
            for x, y in zip(into.task_grads, given, strict=True)
            for a, b in zip(x, y, strict=True)
        ), mode
        into.clear()


# ---- beside each other ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PEERS if name != "plain"])
def test_steps_leave_the_model_to_others(name: str) -> None:
    peer = installed(name)
    model = small()
    before = copy.deepcopy(model.state_dict())
    reference = steps.ours(model, engine="stored")
    order = steps.meetings(3)
    expected = reference.gradients(order)
    for method in METHODS | dict.fromkeys(methods.names()):
        field = Field(model, [peer], method, wanted=tuple(names_of(peer, method, model)))
        assert not field.missing, field.missing
        for contestant, step in field.steps.items():
            for _ in range(2):
                step()
            torch.testing.assert_close(
                reference.gradients(order), expected, rtol=1e-4, atol=1e-6, msg=contestant
            )
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=1e-5)
    assert not any(
        m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules()
    )
    assert all(p.requires_grad and not hasattr(p, "jac") for p in model.parameters())


def names_of(peer: Peer, method: str, model: EngineModel) -> list[str]:
    return [f"{peer.name}, {mode}" for mode in peer.steps(method, model)]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("libmtl", "pcgrad"),
        ("conflictfree", "config"),
        ("gradnorm_pytorch", "gradnorm"),
        ("pytorch_optimizer", "pcgrad"),
    ],
)
def test_who_is_not_installed_is_named(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch)
    peer, model = ALL[name], small()
    names = names_of(peer, method, model)
    assert names
    field = Field(model, [peer], method, wanted=tuple(names))
    assert set(field.missing) == set(names)
    assert all("Error" in said for said in field.missing.values())


def hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peer can be imported."""
    tops = ("torchjd", "LibMTL", "conflictfree", "gradnorm_pytorch", "pytorch_optimizer")
    for module in list(sys.modules):
        if module.partition(".")[0] in tops:
            monkeypatch.setitem(sys.modules, module, None)
    for top in tops:
        monkeypatch.setitem(sys.modules, top, None)
    monkeypatch.setattr(libmtl, "_weighting", libmtl._weighting.__wrapped__)


def test_peers_are_told_apart() -> None:
    names = [peer.name for peer in ALL.values()]
    assert len(set(names)) == len(names)
    assert set(names) >= {"LibMTL", "conflictfree", "gradnorm-pytorch", "pytorch_optimizer"}
