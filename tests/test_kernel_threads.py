"""Any number of threads gives the same bits, and Python goes on while a kernel runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from kernel_cases import ISAS, Rows, assert_same, engine, random_rows
from torch import Tensor

from mtlfast import column_ops, ops


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def answers(rows: Rows, weights: Tensor) -> list[Tensor | None]:
    excess, sums = column_ops.excess(rows)
    return [
        ops.gramian(rows),
        *ops.combine(rows, weights),
        *column_ops.graddrop(rows, rng=torch.tensor([1, 2])),
        *column_ops.trimmed_mean(rows, (len(rows) - 1) // 2),
        excess,
        *(total for row in sums for total in row),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tasks", [1, 2, 5, 9, 40])
@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_any_number_of_threads(isa: str, num_tasks: int, dtype: torch.dtype) -> None:
    sizes = (120_001, 0, 7, *range(1, 300, 3), 60_000, 64, 4097)
    rows = random_rows(num_tasks, sizes, dtype, missing=0.1)
    weights = torch.linspace(-1, 0.7, num_tasks, dtype=torch.float64)
    with engine(isa):
        torch.set_num_threads(1)
        expected = answers(rows, weights)
        for threads in (1, 2, 3, 4, 4, 2, 1):
            torch.set_num_threads(threads)
            found = answers(rows, weights)
            assert all(
                one is other is None or (one is not None and other is not None and one.equal(other))
                for one, other in zip(found, expected, strict=True)
            )


@pytest.mark.parametrize("isa", ISAS)
def test_threads_share_large_outputs(isa: str) -> None:
    size = (1 << 21) + 12_345
    values = torch.randint(-3, 4, (2, size)).float()
    expected = values.sum(0)
    with engine(isa):
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            out = torch.full((size + 2,), 99.0)
            weights = torch.ones(2, dtype=torch.float64)
            ops.combine([[v] for v in values], weights, [out[1:-1]])
            assert torch.equal(out[1:-1], expected)
            assert out[0] == out[-1] == 99


@pytest.mark.parametrize("isa", ISAS)
def test_two_python_threads_at_once(isa: str) -> None:
    """Each has a plan and scratch memory of its own."""
    jobs = [
        (rows, torch.linspace(-1, 0.7, len(rows), dtype=torch.float64))
        for rows in (
            random_rows(3, (500_000, 5, 3000), seed=1),
            random_rows(9, (9000, 160_000, 700, 1), seed=2),
            random_rows(2, (50, 3), seed=3),  # too short to give up the lock
        )
    ]
    jobs[0][0][1][0] = torch.ones(1).expand(500_000)  # copied for each call
    jobs[1][0][1][0] = torch.ones(1).expand(9000)
    with engine(isa):
        expected = [answers(*job) for job in jobs]
        found: list[list[list[Tensor | None]]] = [[] for _ in jobs]
        start = threading.Barrier(len(jobs))

        def work(index: int) -> None:
            start.wait()
            for _ in range(12):
                found[index].append(answers(*jobs[index]))

        workers = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for results, result in zip(found, expected, strict=True):
        assert len(results) == 12
        for answer in results:
            assert_same(answer, result)


@pytest.mark.skipif(not ISAS, reason="needs the native extension")
def test_lists_may_change_while_a_kernel_runs() -> None:
    """The lock is given up, and the tensors are held meanwhile."""
    size = 1 << 21
    weights = torch.ones(24, dtype=torch.float64)  # long work on little memory
    with engine("baseline"):
        for _ in range(20):
            rows: Rows = [list(row) for row in [[torch.ones(size).half()]] * 24]
            out = torch.zeros(size).half()
            elements = out.numpy()
            outs: list[Tensor | None] = [out]
            worker = threading.Thread(target=ops.combine, args=(rows, weights, outs))
            worker.start()
            while worker.is_alive():
                # First the start, then the end: in this order only a running kernel shows both.
                if elements[0] == 24 and elements[-1] == 0:
                    for row in rows:
                        row.clear()
                    # Takes the memory, if it was given back.
                    outs[:] = [torch.full((size,), 99.0, dtype=torch.float16) for _ in range(9)]
                    running = elements[-1] == 0
                    worker.join()
                    assert bool((out == 24).all())
                    if running:
                        return
            worker.join()
    pytest.fail("no write was ever seen half done: the interpreter's lock was held")
