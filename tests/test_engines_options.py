"""What a user may hand over to choose an engine, and what bad values are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import ROWS, Row
from engine_modes import Mode, each_mode
from models import Mlp, wrap
from torch import Tensor, nn

from mtlfast import jacobian

POSITIVE = ("update_every", "chunk_size")


@pytest.mark.parametrize("value", ["fast", "", "Stored", None, 3, "joint", "partial", "features"])
def test_engine_is_unknown(value: Any) -> None:
    match = rf"^engine: expected one of {', '.join(jacobian.ENGINES)}, found {value!r}$"
    with pytest.raises(ValueError, match=match):
        wrap(Mlp(), "sum", engine=value)


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("engine", jacobian.ENGINES)
def test_engine_and_method(row: Row, engine: str) -> None:
    """Who reads all gradients is told so by an engine that never holds them; all others may."""
    method = row.make(3)
    if method.compares_raw or engine not in jacobian.GRAMIAN_ONLY:
        assert wrap(Mlp(), method, engine=engine).engine == engine
        return
    why = "combines single columns" if method.family == "column" else "has buffers or a transform"
    match = (
        rf"^engine: expected auto, stored or batched for {type(method).__name__}, which {why} and "
        rf"needs all K task gradients at once, found {engine!r}$"
    )
    with pytest.raises(ValueError, match=match):
        wrap(Mlp(), method, engine=engine)


@pytest.mark.parametrize("name", [*POSITIVE, "sketch_size"])
@pytest.mark.parametrize("value", [1.0, "2", True, torch.tensor(2), [1]])
def test_no_integer(name: str, value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(TypeError, match=rf"^{name}: expected an integer, found {kind}$"):
        wrap(Mlp(), "cagrad", **{name: value})


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -3])
def test_not_positive(name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"^{name}: expected at least 1, found {value}$"):
        wrap(Mlp(), "cagrad", **options)


def test_sketch_size() -> None:
    for size in (1024, 4096, 2**20):
        assert wrap(Mlp(), "cagrad", sketch_size=size).sketch_size == size
    with pytest.raises(ValueError, match=r"^sketch_size: expected at least 1024, found 512$"):
        wrap(Mlp(), "cagrad", sketch_size=512)
    with pytest.raises(ValueError, match=r"^sketch_size: expected a power of two, found 3000$"):
        wrap(Mlp(), "cagrad", sketch_size=3000)


def test_gramian_params() -> None:
    model = Mlp()
    for value in (3, model.last.weight):
        kind = type(value).__name__
        match = rf"^gramian_params: expected an iterable of parameters, found {kind}$"
        with pytest.raises(TypeError, match=match):
            wrap(model, "cagrad", gramian_params=value)
    with pytest.raises(ValueError, match=r"^gramian_params: .* at least one parameter, found none"):
        wrap(model, "cagrad", gramian_params=[])
    other: list[Tensor] = [model.last.weight, nn.Parameter(torch.ones(2))]
    with pytest.raises(ValueError, match=r"^gramian_params\[1\]: expected a parameter of the wrap"):
        wrap(model, "cagrad", gramian_params=other)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.make(3).compares_raw], ids=str)
def test_gramian_params_of_methods_that_read_all(row: Row) -> None:
    model = Mlp()
    match = r"^gramian_params: \w+ compares all shared parameters and expected None, found 2$"
    with pytest.raises(ValueError, match=match):
        wrap(model, row.make(3), gramian_params=model.last.parameters())


@each_mode
def test_repr_names_what_was_chosen(mode: Mode) -> None:
    text = repr(mode.wrap(Mlp(), nonfinite="drop", max_grad_norm=0.5, fused_step=True))
    assert text.startswith("MultiTaskOptimizer(\n  weighting=CAGrad(")
    assert f"engine={mode.engine!r}" in text
    assert ("update_every=2" in text) == (mode.update_every == 2)
    assert ("gramian_params=<2 parameters>" in text) == (mode.part == "params")
    for part in ("nonfinite='drop'", "max_grad_norm=0.5", "fused_step=True", "  inner=SGD ("):
        assert part in text
    for part in ("sketch_size", "task_names", "chunk_size", "shared_params"):
        assert part not in text
    assert "chunk_size=2,\n" in repr(wrap(Mlp(), "cagrad", chunk_size=2))
