"""``mtlfast bench mine``: a user's model through engines and methods, and what it is told."""

import gc
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from mine_subjects import QUICK, net_subject, tiny, values
from torch import Tensor, nn

import mtlfast
from mtlfast.bench.mine import advice, contest, contestants, study, subject
from mtlfast.bench.mine.conflicts import Conflicts, record
from mtlfast.bench.rows import Row
from mtlfast.bench.runner import Silent, measure
from mtlfast.jacobian import memory


@pytest.fixture(scope="module", autouse=True)
def _little_garbage() -> Iterator[None]:
    """Every measurement collects garbage, and torch's modules are many objects to look through."""
    gc.freeze()
    yield
    gc.unfreeze()


# ---- what is measured ----------------------------------------------------------------------------


class Whole(NamedTuple):
    """A model before and after a run, the run, and the statistics of a second one."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    study: study.Study
    conflicts: Conflicts


@pytest.fixture(scope="module")
def whole() -> Whole:
    """One run."""
    net, found = net_subject()
    before = values(net)
    methods = ("cagrad", "si", "graddrop", "modo", "constant")
    first = study.study(found, QUICK, methods, 6, Silent())
    after = values(net)
    assert all(param.grad is None for param in net.parameters())
    return Whole(before, after, first, record(found, 6))


def test_every_contestant_is_listed(whole: Whole) -> None:
    report = whole.study.report
    names = [row.labels["contestant"] for row in report.of("mine/time")]
    engines = ["stored", "batched", "factored", "streaming", "sketched", "auto"]
    others = ["gramian_params", "features", "update_every=10"]
    assert names == ["losses alone", *engines, *others]
    assert all(row.p50 is not None and row.p50 > 0 for row in report.of("mine/time"))
    joint = ["joint", *names]
    assert [row.labels["contestant"] for row in report.of("mine/ms")] == joint
    peaks = [row.labels["contestant"] for row in report.of("mine/peak")]
    assert peaks == ["joint", *engines, *others]
    assert all((row.p50 or 0) > 0 for row in report.of("mine/peak"))
    assert report.find("mine/time/step, gramian_params").detail == (
        "approximate: trunk.3.weight, trunk.3.bias"
    )


def test_exact_engines_agree(whole: Whole) -> None:
    report = whole.study.report
    exact = {row.labels["contestant"]: row.p50 for row in report.of("mine/exact", kind="exact")}
    assert list(exact) == ["batched", "factored", "streaming", "auto"]
    assert all(difference < 1e-12 for difference in exact.values() if difference is not None)
    others = {
        row.labels["contestant"]: row.p50 for row in report.of("mine/exact", kind="approximate")
    }
    assert list(others) == ["sketched", "gramian_params", "features"]
    assert (others["features"] or 0) > 1e-9


def test_methods(whole: Whole) -> None:
    report = whole.study.report
    rows = {row.labels["contestant"]: row for row in report.of("mine/method-time")}
    assert list(rows) == ["cagrad", "si", "graddrop", "modo", "constant"]
    assert rows["constant"].p50 is None
    assert "'weights'" in rows["constant"].detail
    assert all(rows[name].p50 for name in ("cagrad", "si", "graddrop", "modo"))


def test_everything_is_put_back(whole: Whole) -> None:
    torch.testing.assert_close(whole.after, whole.before, rtol=0, atol=0)
    # From the same state with the same random numbers: the same batches and steps.
    again = whole.conflicts.gramians
    torch.testing.assert_close(whole.study.conflicts.gramians, again, rtol=0, atol=0)
    assert len(again) == 6


def test_every_sample_begins_at_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    net, found = net_subject()
    found.joint()
    state = found.state()
    seen = []
    draw = found.draw

    def watched() -> subject.Batch:
        begin = [param.detach().clone() for param in net.parameters()]
        batch = draw()
        assert isinstance(batch.losses, dict)
        seen.append(
            ([*begin, net.get_buffer("trunk.1.running_mean").clone()], batch.losses["far"].item())
        )
        return batch

    monkeypatch.setattr(found, "draw", watched)
    makers = {name: contestants.engines(found)[name] for name in ("stored", "factored")}
    case = contest.Contest(found, state, makers, "mine/time", "mine/ms", "step")
    variants = case.prepare(QUICK)
    for variant in (*variants.values(), *variants.values()):
        variant()
    assert len(seen) == 9
    for begin, far in seen[1:]:
        torch.testing.assert_close(begin, seen[0][0], rtol=0, atol=0)
        assert far == seen[0][1]


class Outside(torch.autograd.Function):
    """A backward by way of NumPy, which vmap cannot follow."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return torch.from_numpy(grads[0].numpy().copy())


@pytest.mark.filterwarnings("ignore")
def test_refusals_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = Outside.apply(x)  # type: ignore[no-untyped-call]
            return found

    def measured() -> dict[str, Row]:
        net, found = net_subject()
        net.trunk[2] = Numpy()
        makers = contestants.engines(found)
        case = contest.Contest(found, found.state(), makers, "mine/time", "mine/ms", "step")
        rows = {row.key: row for row in measure([case], QUICK, Silent())}
        assert "streaming" in {row.labels["contestant"] for row in contest.differences(case)}
        return rows

    rows = measured()
    assert rows["mine/time/step, stored"].p50 is not None
    refused = rows["mine/time/step, batched"]
    assert refused.p50 is None
    assert refused.detail.startswith("RuntimeError: engine: expected a graph that torch.vmap")
    assert rows["mine/ms/step, batched"].detail == refused.detail

    monkeypatch.setattr(memory, "free", lambda _: 600)  # one gradient has 608 bytes
    rows = measured()
    refused = rows["mine/time/step, stored"]
    assert refused.p50 is None
    assert refused.detail == "MemoryError: K·P = 0.00122 MB do not fit in 0.0006 MB"
    assert rows["mine/time/step, factored"].p50 is not None


# ---- statistics ----------------------------------------------------------------------------------


def test_statistics_are_those_of_autograd() -> None:
    _, found = net_subject()
    state = torch.get_rng_state()
    conflicts = record(found, 7)

    other, _ = net_subject()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    torch.set_rng_state(state)
    shared = list(other.trunk.parameters())
    gramians, losses = [], []
    for _ in range(7):
        named, _ = other()
        grads = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in named.values()]
        rows = torch.stack([torch.cat([g.ravel() for g in grad]) for grad in grads])
        gramians.append(rows @ rows.T)
        losses.append(torch.stack([loss.detach() for loss in named.values()]))
        optimizer.zero_grad()
        sum(named.values()).backward()
        optimizer.step()
    expected = torch.stack(gramians)
    assert conflicts.names == ("near", "far")
    torch.testing.assert_close(conflicts.gramians, expected)
    torch.testing.assert_close(conflicts.losses, torch.stack(losses))

    lengths = expected.diagonal(dim1=1, dim2=2).sqrt()
    cosines = expected[:, 0, 1] / lengths[:, 0] / lengths[:, 1]
    rows_of = {row.key: row for row in conflicts.rows()}
    pair = rows_of["mine/conflict/near, far"]
    negative = float((cosines < 0).double().mean())
    assert pair.p50 == pytest.approx(float(cosines.median()))
    assert pair.labels["mean"] == pytest.approx(float(cosines.mean()))
    assert pair.labels["min"] == pytest.approx(float(cosines.min()))
    assert pair.labels["negative"] == pytest.approx(negative)
    assert f"negative in {negative:.0%}" in pair.detail
    for k, name in enumerate(("near", "far")):
        assert rows_of[f"mine/norm/{name}"].p50 == pytest.approx(float(lengths[:, k].median()))
        against = float((expected.sum(2)[:, k] < 0).double().mean())
        assert rows_of[f"mine/norm/{name}"].labels["harmed"] == pytest.approx(against)


def test_three_tasks_have_a_table() -> None:
    found = tiny(lambda w: {"a": w[0] + w[1], "b": w[0] - w[1], "c": 2 * w[0]})
    lines = "\n".join(record(found, 5).lines())
    assert re.search(r"mean cosine +a +b +c\n[- ]+\na +1\.00 +0\.00 +0\.71\nb +0\.00", lines)
    assert lines.index("a, b") < lines.index("a, c")  # the worst pair first


def test_zero_and_endless_gradients() -> None:
    found = record(tiny(lambda w: {"a": w.sum(), "idle": 0 * w.sum()}), 5)
    assert found.silent == ["idle"]
    assert found.rows()[0].p50 is None
    assert found.ratio == 1.0
    told = advice.advise(advice.Findings(found, prices(stored=1.2))).lines
    assert told[0].startswith("Look at idle first")

    count = iter(range(100))
    some = tiny(lambda w: [w.sum(), w.prod() * (float("inf") if next(count) == 5 else 1.0)])
    found = record(some, 6)  # the sixth call: two are of the check, one of its step
    assert found.dropped > 0
    assert bool(found.gramians.isfinite().all())
    assert "not finite" in found.lines()[0]
    words = advice.advise(advice.Findings(found, prices(stored=1.2))).lines
    assert words[0].startswith("Look at plain training first")


# ---- recommendation ------------------------------------------------------------------------------


def prices(spread: float = 0.01, **times: float) -> dict[str, advice.Price]:
    """Medians with a spread to both sides."""
    return {name: advice.Price(p50, p50 - spread, p50 + spread) for name, p50 in times.items()}


def told(losses: Callable[[nn.Parameter], Any], **more: Any) -> advice.Advice:
    times = prices(stored=1.9, streaming=2.4, auto=1.92)
    return advice.advise(advice.Findings(record(tiny(losses), 5), times, "stored", **more))


def test_like_losses_need_no_balancing() -> None:
    found = told(lambda w: [w.sum().exp(), 1.5 * w.sum().exp()])
    assert found.method == "sum"
    assert "equal weighting is likely enough" in found.lines[0]
    assert "price of 1.92 plain steps" in found.lines[0]
    # Random directions: half of the cosines are negative, none of them by much.
    found = told(lambda w: [w[0], w[1] - 0.01 * w[0]])
    assert found.method == "sum"


def test_opposed_losses_conflict() -> None:
    found = told(lambda w: {"a": w.sum(), "b": w[0] - 3 * w[1]}, methods=prices(cagrad=1.97))
    assert found.method == "cagrad"
    assert "a and b have a cosine below -0.1 in 100% of the batches" in found.lines[0]
    assert "cagrad 1.97" in found.lines[0]


def test_scaled_losses_are_imbalanced() -> None:
    found = told(lambda w: [w[0].exp(), 1000 * w[1].exp()])
    assert found.method == "si"
    assert "imbalance without conflict" in found.lines[0]
    # Nothing in these losses tells how long their gradients are.
    found = told(lambda w: [1 + (w[0] - w[0].detach()), 1 + 1000 * (w[1] - w[1].detach())])
    assert found.method == "nash_mtl"
    assert "a factor of 1e+03, and the losses do not tell it" in found.lines[0]
    found = told(lambda w: [-w[0].exp(), -1000 * w[1].exp()])  # no logarithms of these
    assert found.method == "nash_mtl"


def test_scaled_and_opposed() -> None:
    found = told(lambda w: [w.sum(), 100 * (w[0] - 3 * w[1])])
    assert found.method == "nash_mtl"
    assert found.lines[0].startswith("Method: nash_mtl. There are both")


@pytest.mark.parametrize(
    ("times", "auto", "best"),
    [
        ({"stored": 2.0, "factored": 1.5, "auto": 1.52}, "factored", "auto"),
        ({"stored": 2.0, "factored": 1.5, "auto": 1.7}, "factored", "auto"),
        ({"stored": 2.0, "streaming": 1.9, "auto": 1.95}, "stored", "auto"),
        ({"stored": 2.0, "streaming": 1.5, "auto": 2.0}, "stored", "streaming"),
        ({"stored": 2.0, "features": 1.0, "sketched": 1.1}, "", "stored"),
        ({"streaming": 2.0, "auto": 1.2}, "sketched", "streaming"),
    ],
)
def test_best_engine(times: dict[str, float], auto: str, best: str) -> None:
    assert advice.best_engine(prices(**times), auto) == best


def test_noise_is_no_reason_for_an_engine() -> None:
    times = {"stored": 2.0, "streaming": 1.5, "auto": 2.0}
    assert advice.best_engine(prices(0.2, **times), "stored") == "streaming"
    assert advice.best_engine(prices(0.3, **times), "stored") == "auto"


def test_engine_in_words_and_code() -> None:
    conflicts = record(tiny(lambda w: [w.sum(), 2 * w.sum()]), 5)
    times = prices(stored=2.9, streaming=3.1, auto=2.9, features=1.1, gramian_params=2.8)
    peaks = {"joint": 10.0, "stored": 40.0, "streaming": 11.0, "auto": 40.0}
    findings = advice.Findings(conflicts, times, "stored", peaks, {"features": 0.25})
    found = advice.advise(findings)
    text = "\n".join(found.lines)
    assert "Engine: auto, 2.90 plain steps. It takes stored" in text
    assert "4.00 times that of a plain step; streaming's is 1.10, for 3.10 plain steps" in text
    assert (
        "features=, which compares the gradients of the features, for 1.10 plain steps (on" in text
    )
    assert "by 0.25 of its length" in text
    assert "gramian_params=" not in text  # hardly cheaper
    assert "Not known from this: what any method does to your accuracy" in text
    assert found.code[0] == 'optimizer = mtlfast.MultiTaskOptimizer(optimizer, "sum")'

    found = advice.advise(advice.Findings(conflicts, {**times, **prices(streaming=2.0)}, "stored"))
    assert found.code[0].endswith('"sum", engine="streaming")')
    assert "the fastest exact one. auto takes stored, for 2.90" in "\n".join(found.lines)


def test_the_code_runs() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer: torch.optim.Optimizer = torch.optim.SGD([w], lr=0.1)
    found = told(lambda w: {"a": w.sum(), "b": w[0] - 3 * w[1]})
    names: dict[str, Any] = {"mtlfast": mtlfast, "optimizer": optimizer, "w": w}
    code = [line.replace("...", "[w.sum(), -w.prod()]") for line in found.code]
    exec("\n".join(code), names)
    assert w.grad is not None
