"""Wrong input and failures: the message says what, and nothing has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, Row, backend
from models import (
    BY_ID,
    INNER,
    SOME,
    Embedded,
    Mlp,
    Snapshot,
    assert_same_params,
    check_refused,
    last,
    last_weights,
    probe,
    wrap,
)
from torch import Tensor, nn

from mtlfast import MultiTaskOptimizer, PCGrad, ops

METHODS = [row for row in SOME if row.make(3).needs_gramian]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with backend(request.param):
        yield


@pytest.fixture(params=SOME, ids=str)
def some(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


SITUATIONS = ("new", "accumulating", "after a step", "cleared")


def prepare(situation: str, model: Any, row: Row, **options: Any) -> MultiTaskOptimizer:
    """A wrapper before its first backward, between micro-batches, or after a step."""
    optimizer = wrap(model, row.make(3), **options)
    if situation != "new":
        optimizer.backward(model.losses())
    if situation in ("after a step", "cleared"):
        optimizer.step()
    if situation == "cleared":
        optimizer.zero_grad(set_to_none=False)
    return optimizer


# Losses

WRONG_LOSSES: list[tuple[str, Callable[[list[Tensor]], Any], type[Exception], str]] = [
    ("none", lambda x: [], ValueError, "losses: expected at least one, found none"),
    ("no names", lambda x: {}, ValueError, "losses: expected at least one, found none"),
    ("empty", lambda x: torch.stack(x)[:0], ValueError, "losses: expected at least one, found no"),
    ("scalar", lambda x: x[0], ValueError, r"losses: expected a tensor \[K\].*, found shape \[\]"),
    ("matrix", lambda x: torch.stack(x)[None], ValueError, r"losses: .*, found shape \[1, 3\]"),
    (
        "vector",
        lambda x: [x[0], torch.stack(x), x[2]],
        ValueError,
        r"losses\[1\]: expected a scalar, found shape \[3\]",
    ),
    (
        "vector by name",
        lambda x: {"a": x[0], "b": x[1], "c": x[2].expand(2)},
        ValueError,
        r"losses\['c'\]: expected a scalar, found shape \[2\]",
    ),
    ("detached", lambda x: [*x[:2], x[2].detach()], ValueError, r"losses\[2\]: expected .*graph"),
    ("no graph", lambda x: torch.ones(3), ValueError, r"losses\[0\]: .*, found .*requires_grad"),
    ("integer", lambda x: [x[0], x[1].long(), x[2]], TypeError, r"losses\[1\]: .*torch.int64"),
    ("complex", lambda x: [x[0] * 1j, *x[1:]], TypeError, r"losses\[0\]: .*torch.complex128"),
    ("float", lambda x: [x[0], 1.5, x[2]], TypeError, r"losses\[1\]: expected .*, found float"),
    ("None", lambda x: (None, *x[1:]), TypeError, r"losses\[0\]: expected .*, found NoneType"),
    ("text", lambda x: "abc", TypeError, "losses: expected a list, .*, found str"),
    ("nothing", lambda x: None, TypeError, "losses: expected a list, .*, found NoneType"),
    ("generator", lambda x: iter(x), TypeError, "losses: expected a list, .*, found list_iter"),
    (
        "devices",
        lambda x: [*x[:2], torch.ones((), device="meta", requires_grad=True)],
        ValueError,
        r"losses\[2\]: expected a loss on cpu, found meta",
    ),
]


@pytest.mark.parametrize("wrong", WRONG_LOSSES, ids=lambda wrong: wrong[0])
def test_wrong_losses(some: Row, wrong: Any) -> None:
    _, make, error, message = wrong
    model = Mlp()
    for situation in ("new", "accumulating"):
        optimizer = prepare(situation, model, some)
        check_refused(optimizer, make(model.losses()), error, f"^{message}")


def test_wrong_names(some: Row) -> None:
    model = Mlp()
    optimizer = wrap(model, some.make(3))
    x = model.losses()
    optimizer.backward({"a": x[0], "b": x[1], "c": x[2]})
    for keys in ("abd", "ab", "abcd"):
        losses = dict(zip(keys, [*model.losses(), x[0]], strict=False))
        message = f"^losses: expected the tasks a, b, c, found {', '.join(keys)}$"
        check_refused(optimizer, losses, ValueError, message)
    message = "^losses: expected 3, one for each of a, b, c, found 2$"
    check_refused(optimizer, model.losses()[:2], ValueError, message)


def test_names_of_a_failed_backward_do_not_stay(some: Row) -> None:
    model = Mlp()
    optimizer = wrap(model, some.make(3))
    wrong = {"x": model.losses()[0], "y": model.losses()[1].detach()}
    check_refused(optimizer, wrong, ValueError, r"losses\['y'\]")
    optimizer.backward(dict(zip("abc", model.losses(), strict=True)))
    assert last(optimizer).task_names == tuple("abc")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_unreached_parameters(some: Row, situation: str) -> None:
    model = Mlp()
    optimizer = prepare(situation, model, some)
    other = torch.ones(3, requires_grad=True)
    reached = [other.sum() * k for k in range(3)]
    check_refused(optimizer, reached, ValueError, "^losses: .*parameters.*, found .*none")
    model.requires_grad_(False)
    check_refused(optimizer, reached, ValueError, "^losses: .*parameters.*, found .*none")


# Gradients and methods that fail


class BrokenError(RuntimeError):
    pass


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("task", range(3))
def test_failing_backward(some: Row, situation: str, task: int) -> None:
    """A backward that raises in the middle, when other tasks are through; training goes on."""
    model = Mlp()
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    optimizer = prepare(situation, model, some)
    torch.manual_seed(0)
    undisturbed = prepare(situation, twin, some)

    def fail() -> None:
        raise BrokenError("in the middle")

    losses = model.losses(1)
    losses[task] = losses[task] + probe(model.first.weight, fail).sum()
    check_refused(optimizer, losses, BrokenError, "in the middle")
    for current in (optimizer, undisturbed):
        torch.manual_seed(0)
        current.backward(model.losses(2) if current is optimizer else twin.losses(2))
        current.step()
    assert_same_params(model, twin)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_failing_end(situation: str, some: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, say, when single tasks' ``grad`` is there and the shared one is not yet."""
    model = Mlp()
    optimizer = prepare(situation, model, some)
    combine_ = ops.combine_

    def fail(*args: Any, **kwargs: Any) -> None:
        raise BrokenError("at the end")

    def fail_at_shared(params: list[Tensor], *args: Any, **kwargs: Any) -> None:
        (fail if params[0] is model.first.weight else combine_)(params, *args, **kwargs)

    monkeypatch.setattr(ops, "combine_", fail_at_shared)
    monkeypatch.setattr(torch.autograd, "backward", fail)
    check_refused(optimizer, model.losses(), BrokenError, "at the end")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_wrong_inputs_of_the_method(situation: str) -> None:
    model = Mlp()
    wrong = {"order": torch.zeros(3, 3, dtype=torch.int64)}
    for row in SOME:
        optimizer = prepare(situation, model, row)
        if row.id == "pcgrad":
            message = "^order: expected .*, found"
            check_refused(optimizer, model.losses(), ValueError, message, **wrong)
            wrong_type: dict[str, Any] = {"order": [[0, 1, 2]] * 3}
            check_refused(optimizer, model.losses(), TypeError, "^order: expected", **wrong_type)
        else:
            message = r"^order: \w+ expected only .*, found"
            check_refused(optimizer, model.losses(), TypeError, message, **wrong)


@pytest.mark.parametrize("situation", ["after a step", "accumulating"])
def test_another_number_of_tasks(situation: str) -> None:
    model = Mlp()
    gradnorm, constant = (prepare(situation, model, BY_ID[x]) for x in ("gradnorm", "constant"))
    check_refused(gradnorm, model.losses()[:2], ValueError, "expected 3 tasks .*, found 2")
    check_refused(constant, model.losses()[:2], ValueError, "^weights: .* 2 tasks, found 3")
    other = prepare(situation, model, BY_ID["pcgrad"])
    other.backward(model.losses()[:2])  # a method without memory of K goes on
    assert last_weights(other).shape == (2,)


@pytest.mark.parametrize("row", METHODS, ids=str)
def test_sparse_gradients(row: Row) -> None:
    """Of a shared and of a task's own embedding; the message says what was found."""
    message = "expected a dense tensor, found .*[Ss]parse"
    model = Embedded(sparse=True)
    optimizer = prepare("new", model, row)
    check_refused(optimizer, model.losses(), TypeError, message)
    dense, table = Mlp(), nn.Embedding(4, 2, sparse=True)
    optimizer = prepare("accumulating", dense, row)
    optimizer.add_param_group({"params": table.parameters()})

    first, *others = dense.losses()
    losses = [first + table(torch.tensor([1])).sum(), *others]
    check_refused(optimizer, losses, TypeError, message)


@pytest.mark.parametrize("row", METHODS, ids=str)
def test_complex_parameters(row: Row) -> None:
    model = Mlp()
    spectrum = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = prepare("accumulating", model, row)
    optimizer.add_param_group({"params": [spectrum]})
    for shared in (1, 3):
        losses = model.losses()
        losses[:shared] = [loss + spectrum.abs().sum() for loss in losses[:shared]]
        message = "expected float32, .*, found .*[Cc]omplex"
        check_refused(optimizer, losses, TypeError, message)


# Options and state dicts


OTHER = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "quick"}, ValueError, "engine: expected one of auto, .*, found 'quick'"),
        ({"nonfinite": "skip"}, ValueError, "nonfinite: expected one of .*drop.*, found 'skip'"),
        ({"nonfinite": None}, ValueError, "nonfinite: expected one of .*, found None"),
        ({"shared_params": []}, ValueError, "shared_params: expected at least one .*, found none"),
        ({"shared_params": [OTHER]}, ValueError, r"shared_params\[0\]: expected a param.*, found"),
        ({"shared_params": OTHER}, TypeError, "shared_params: expected an iterable .*, found Par"),
        ({"shared_params": 3}, TypeError, "shared_params: expected an iterable .*, found int"),
        ({"gramian_params": iter(())}, ValueError, "gramian_params: expected at least one"),
        ({"gramian_params": [OTHER]}, ValueError, r"gramian_params\[0\]: expected .*, found"),
        ({"task_names": 3}, TypeError, "task_names: expected .*, found int"),
        ({"task_names": "ab"}, TypeError, "task_names: expected .*, found str"),
        ({"task_names": []}, ValueError, r"task_names: expected .*, found \[\]"),
        ({"task_names": ["a", "a"]}, ValueError, "task_names: expected different names, found"),
        ({"weighting": "pcgrd"}, ValueError, "weighting: expected one of .*pcgrad.*, found 'pcg"),
        ({"weighting": PCGrad}, TypeError, "weighting: expected a name or .*, found ABCMeta"),
        ({"inner": [OTHER]}, TypeError, "inner: expected a torch.optim.Optimizer .*, found list"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = Mlp()
    arguments = {"inner": INNER["sgd"](model.parameters()), "weighting": "pcgrad", **options}
    inner, weighting = arguments.pop("inner"), arguments.pop("weighting")
    with pytest.raises(error, match=f"^{message}"):
        MultiTaskOptimizer(inner, weighting, **arguments)


def test_wrapping_twice_is_refused() -> None:
    optimizer = wrap(Mlp(), "sum")
    with pytest.raises(TypeError, match=r"^inner: expected .*, found MultiTaskOptimizer"):
        MultiTaskOptimizer(optimizer, "sum")


def test_wrong_state_dict(some: Row) -> None:
    model = Mlp()
    optimizer = prepare("accumulating", model, some)
    state = optimizer.state_dict()
    optimizer.step()
    optimizer.backward(model.losses(1))  # the method's state is another one now
    ours, groups = state["mtlfast"], state["param_groups"]
    other = prepare("after a step", Mlp(), BY_ID["gradnorm" if some.id == "pcgrad" else "pcgrad"])
    changed = [{**groups[0], "lr": 7.0}]
    wrong: list[tuple[Any, str]] = [
        (optimizer.inner.state_dict(), r"state_dict\['mtlfast'\]: expected .*, found None"),
        ({**state, "mtlfast": 3}, r"state_dict\['mtlfast'\]: expected .*, found 3"),
        ({**state, "mtlfast": {**ours, "task_names": None}}, r"state_dict\['mtlfast'\]"),
        ({**state, "mtlfast": {**ours, "task_names": [1, 2]}}, r"state_dict\['mtlfast'\]"),
        ({**state, "mtlfast": {**ours, "more": 1}}, r"state_dict\['mtlfast'\]: expected"),
        (other.state_dict(), r"state_dict\['method'\]: expected .*, found"),
        ({**state, "param_groups": [{**groups[0], "params": [0]}]}, "size of optimizer's group"),
        ({**state, "param_groups": groups * 2}, "different number of parameter groups"),
    ]
    for key in ours["weighting"]:
        if key != "method":
            entries = {**ours["weighting"], key: torch.zeros(7, 7)}
            bad = {**state, "mtlfast": {**ours, "weighting": entries}, "param_groups": changed}
            wrong.append((bad, r"state_dict\['.*'\]: expected .*, found"))
    for entries, message in wrong:
        snapshot = Snapshot(optimizer)
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(entries)
        snapshot.check()
    with pytest.raises(KeyError):
        optimizer.load_state_dict({"mtlfast": ours})
    snapshot.check()
