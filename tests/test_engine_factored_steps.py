"""The engine "factored" over whole steps: micro-batches, policies, scales, and what it costs."""

from __future__ import annotations

import copy
import json
import math
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import assert_same, last, wrap
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from wide import TOKENS, Wide, assert_close_grads, check_against_float64, in_order, kept

from mtlfast import MultiTaskOptimizer
from mtlfast.jacobian.linear import Layer
from mtlfast.jacobian.product import LinearProduct


def pair(
    model: nn.Module | None = None, method: str = "upgrad", **options: Any
) -> list[tuple[Any, MultiTaskOptimizer]]:
    """The same model twice, with "factored" and with "stored"."""
    model = Wide() if model is None else model
    twin = copy.deepcopy(model)
    return [
        (model, wrap(model, method, engine="factored", **options)),
        (twin, wrap(twin, method, engine="stored", **options)),
    ]


@pytest.mark.parametrize("retain", [False, True])
def test_micro_batches(retain: bool) -> None:
    """The sum of several batches' gradients; each batch is written over the one before."""
    nets = pair()
    for net, optimizer in nets:
        for step in range(2):
            optimizer.zero_grad()
            x = net.batch()
            for batch in range(3):
                x.copy_(net.batch(3 * step + batch))
                losses = net.losses(batch, x.clone() if optimizer.engine == "stored" else x)
                optimizer.backward(losses, retain_graph=retain)
            if optimizer.engine == "factored":
                assert [len(p.inputs) for p in in_order(optimizer)] == [3 * TOKENS] * 2
            optimizer.step()
    (found, _), (expected, _) = nets
    assert_close_grads(found, expected, 1e-9)
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_many_micro_batches_are_multiplied_out() -> None:
    """Where products of all batches would take more memory than K gradients."""
    nets = pair()
    counts = []
    for net, optimizer in nets:
        for batch in range(15):
            optimizer.backward(net.losses(batch))
            counts.append(len(kept(optimizer).products))
    assert counts[0] == 2
    assert counts[-1] == 0
    assert_close_grads(nets[0][0], nets[1][0], 1e-9)


def test_micro_batches_that_reach_other_tasks() -> None:
    nets = pair()
    for net, optimizer in nets:
        for batch in range(2):
            losses = net.losses(batch)
            losses[batch] = net.heads[batch].bias.sum()
            optimizer.backward(losses)
    first, _ = in_order(nets[0][1])
    assert all(delta is not None for delta in first.deltas)
    assert_close_grads(nets[0][0], nets[1][0], 1e-9)


def test_inputs_that_were_changed_are_noticed() -> None:
    class Careless(Wide):
        def hidden(self, x: Tensor) -> Tensor:
            first, act, second, _ = self.trunk.children()
            self.seen = act(first(x))
            return torch.tanh(second(self.seen))

    model = Careless()
    optimizer = wrap(model, "upgrad", engine="factored")
    optimizer.backward(model.losses())
    with torch.no_grad():
        model.seen.zero_()
    before = [p.grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"params\[2\]: expected the inputs of its linear layer"):
        optimizer.backward(model.losses(1))
    assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))


def test_retained_graph() -> None:
    """Another backward through the same graph finds it whole; without retain_graph it is freed."""
    for one_by_one in (True, False):
        model = Wide()
        optimizer = wrap(model, "upgrad", engine="factored")
        optimizer._notes.batches = False if one_by_one else None
        for retain in (True, True, False):
            losses = model.losses()
            optimizer.zero_grad()
            optimizer.backward(losses, retain_graph=retain)
            again = pytest.raises(RuntimeError, match="second time") if not retain else None
            if again is None:
                torch.autograd.grad(sum(losses), list(model.parameters()))  # type: ignore[arg-type]
            else:
                with again:
                    torch.autograd.grad(losses[0], list(model.trunk.parameters()))


def test_update_every() -> None:
    nets = pair(update_every=2)
    for net, optimizer in nets:
        engines = []
        for step in range(4):
            optimizer.zero_grad()
            optimizer.backward(net.losses(step))
            engines.append(last(optimizer).engine)
            optimizer.step()
        assert engines == [optimizer.engine, "joint"] * 2
    assert_close_grads(nets[0][0], nets[1][0], 1e-9)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.1}])
def test_fused_step(options: dict[str, Any]) -> None:
    nets = pair(fused_step=True, **options)
    for net, optimizer in nets:
        for step in range(3):
            optimizer.zero_grad()
            for batch in range(2):
                optimizer.backward(net.losses(2 * step + batch))
            optimizer.step()
    for ours, theirs in zip(nets[0][0].parameters(), nets[1][0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "inputs"])
def test_nonfinite(bad: float, where: str) -> None:
    """One task's NaN drops that task; one in the inputs drops all, and their gradient is zero."""
    for policy in ("drop", "propagate", "raise"):
        nets = pair(nonfinite=policy)
        for net, optimizer in nets:
            x = net.batch()
            if where == "inputs":
                x[0, 0] = bad
            losses = net.losses(0, x)
            if where == "loss":
                losses[1] = losses[1] * torch.tensor(bad, dtype=torch.float64)
            if policy == "raise":
                with pytest.raises(FloatingPointError, match="NaN or Inf in task"):
                    optimizer.backward(losses)
                assert all(p.grad is None for p in net.parameters())
                continue
            optimizer.backward(losses)
            if policy == "drop":
                assert last(optimizer).skipped == [where == "inputs", True, where == "inputs"]
        if policy == "drop":
            assert_close_grads(nets[0][0], nets[1][0], 1e-9)
        if policy == "propagate":
            gramians = [last(optimizer).gramian for _, optimizer in nets]
            assert gramians[0] is not None
            assert gramians[1] is not None
            assert_same(gramians[0].isfinite(), gramians[1].isfinite())


def product_of(
    inputs: Tensor, deltas: list[Tensor | None], out: int, is_flipped: bool = False
) -> LinearProduct:
    shape = (inputs.shape[1], out) if is_flipped else (out, inputs.shape[1])
    param = torch.zeros(shape, dtype=inputs.dtype)
    return LinearProduct(param, "params[0]", is_flipped, inputs, inputs._version, deltas)


@pytest.mark.parametrize("tokens", [5, 300])
@pytest.mark.parametrize("offset", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("inputs_scale", [1e-18, 1.0, 1e18])
@pytest.mark.parametrize("delta_scale", [1e-18, 1.0, 1e18])
def test_scales(inputs_scale: float, delta_scale: float, offset: float, tokens: int) -> None:
    """Inputs whose mean is larger than their spread, and output gradients without a mean, as
    before a batch normalisation: the largest part of ``A Aᵀ`` then cancels."""
    torch.manual_seed(0)
    inputs = (torch.randn(tokens, 200) + offset) * inputs_scale
    deltas: list[Tensor | None] = []
    for _ in range(3):
        delta = torch.randn(tokens, 80)
        deltas.append((delta - delta.mean(0) if offset else delta) * delta_scale)
    # Multiplied out, the large mean cancels in float32, here as in any backward.
    is_usual = offset < 30 and (inputs_scale != delta_scale or inputs_scale == 1)
    check_against_float64(product_of(inputs, deltas, 80), 1e-6 if is_usual else None)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 200),
    wide=st.integers(8, 40),
    out=st.integers(8, 40),
    count=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    is_flipped=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_any_size(
    tokens: int, wide: int, out: int, count: int, dtype: torch.dtype, is_flipped: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, wide, generator=generator).to(dtype)
    deltas: list[Tensor | None] = [
        torch.randn(tokens, out, generator=generator).to(dtype) for _ in range(count)
    ]
    product = product_of(inputs, deltas, out, is_flipped)
    # As a sum of so many products is rounded.
    check_against_float64(product, max(2.0, math.sqrt(tokens)) * torch.finfo(dtype).eps)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_no_weight_gradient_is_made(one_by_one: bool) -> None:
    """K gradients of a weight are neither computed nor held, only the one of their sum."""
    model = Wide(num_tasks=5)
    optimizer = wrap(model, "upgrad", engine="factored")
    optimizer._notes.batches = not one_by_one
    losses = model.losses()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        optimizer.backward(losses)
    weights = {tuple(p.shape) for p in model.trunk.parameters() if p.dim() == 2}
    made = 0
    for event in seen.events() or []:
        if event.name in ("aten::mm", "aten::bmm"):
            *batch, rows, _ = event.input_shapes[0]
            shape = (rows, event.input_shapes[1][-1])
            assert not (batch and shape in weights)
            made += shape in weights
    assert made == 2


@pytest.mark.parametrize("one_by_one", [False, True])
def test_no_k_gradients_are_held(one_by_one: bool, tmp_path: Path) -> None:
    """The most memory that a backward takes at once, beside that of "stored"."""
    most: dict[str, int] = {}
    for engine in ("factored", "stored"):
        model = Wide(num_tasks=8)
        optimizer = wrap(model, "upgrad", engine=engine)
        optimizer._notes.batches = not one_by_one
        losses = model.losses()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            optimizer.backward(losses)
        seen.export_chrome_trace(str(tmp_path / engine))
        most[engine] = peak(tmp_path / engine)
    trunk = sum(p.nbytes for p in model.trunk.parameters())
    assert most["stored"] > 8 * trunk
    assert most["factored"] < 3 * trunk


def peak(trace: Path) -> int:
    """The most bytes that were held at once, beyond those before."""
    events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    held: list[int] = list(accumulate(change for _, change in changes))
    return max(held)


def test_the_choice_by_cost() -> None:
    """The cheaper way by the model of the docs, at sizes where it is clear."""
    node = torch.zeros(1, requires_grad=True).sum().grad_fn
    assert node is not None

    def pays(tokens: int, wide: int, out: int, count: int) -> bool:
        param, inputs = torch.zeros(out, wide), torch.zeros(tokens, wide)
        return Layer(0, param, node, inputs, True, False, count).pays

    assert pays(64, 2048, 2048, 8)
    assert pays(64, 2048, 2048, 2)
    assert pays(512, 1024, 256, 32)
    assert not pays(512, 1024, 256, 8)
    assert not pays(512, 256, 1024, 8)
    assert not pays(4096, 1024, 1024, 8)
    assert not pays(64, 2048, 2048, 1)
    assert not pays(4, 127, 128, 8)
