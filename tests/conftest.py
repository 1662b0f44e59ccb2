"""Settings of the whole test run, and what several files need."""

from collections.abc import Iterator

import pytest
import torch
from devices import on_device
from line_job import LineTrial

from mtlfast import jobs
from mtlfast.jobs import Job, Metric, Trial

# Small operations are slower on many threads, most of all beside other processes. Tests of threads
# set their own number.
torch.set_num_threads(1)


@pytest.fixture
def line_job() -> Iterator[type[Job]]:
    class Line(Job):
        name = "line"
        title = "Three parabolas"
        caption = "Nothing real."
        tasks = ("a", "b", "c")
        metrics = (Metric("error", "distance", lower_is_better=True, log_scale=True),)
        methods = ("sum", "pcgrad")
        steps = 7
        evaluate_every = 3

        def start(self, seed: int) -> Trial:
            return LineTrial(seed)

    yield Line
    del jobs.REGISTRY["line"]


@pytest.fixture(params=["fibers", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Fibers on the CPU, and a GPU where there is one: the same test on both."""
    with on_device(request.param) as found:
        yield found


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """A GPU, for what fibers cannot show; such a test is marked ``cuda``."""
    with on_device("cuda") as found:
        yield found
