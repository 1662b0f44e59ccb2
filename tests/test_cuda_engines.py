"""Engines where only a GPU can show them: layers on two devices, steps in CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import Net
from engine_modes import BY_MODE, Mode, check_grads, each_mode, task_gradients
from models import MultiTask, assert_same_params, last_weights
from test_cuda_graphs import captured
from torch import Tensor, nn

from mtlfast import MultiTaskOptimizer

pytestmark = pytest.mark.cuda


class TwoDevices(MultiTask):
    """First layer on the CPU, second layer and heads on another device."""

    def __init__(self, gpu: torch.device) -> None:
        torch.manual_seed(0)
        super().__init__(3, 4)
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)
        self.gpu = gpu
        self.double()
        self.second.to(gpu)
        self.heads.to(gpu)

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(8, 5, generator=generator, dtype=torch.float64)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x)).to(self.gpu)))

    def hidden_and_losses(self, step: int = 0) -> tuple[Tensor, list[Tensor]]:
        hidden = self.hidden(self.inputs(torch.Generator().manual_seed(step)))
        return hidden, [(head(hidden) - k).square().mean() for k, head in enumerate(self.heads)]


@each_mode
@pytest.mark.parametrize("options", [{}, {"fused_step": True, "max_grad_norm": 0.5}])
def test_layers_on_two_devices(mode: Mode, options: dict[str, Any], gpu: torch.device) -> None:
    """The trajectory of the same model on the CPU alone."""
    model, twin = TwoDevices(gpu), TwoDevices(torch.device("cpu"))
    optimizer, expected = mode.wrap(model, **options), mode.wrap(twin, **options)
    for step in range(3):
        for net, own in ((model, optimizer), (twin, expected)):
            torch.manual_seed(step)
            own.zero_grad()
            hidden, losses = net.hidden_and_losses(step)
            params, rows = task_gradients(losses, net)
            mode.backward(own, hidden, losses)
            if not options:
                check_grads(own, params, rows)
            own.step()
        if mode.exact:
            torch.testing.assert_close(last_weights(optimizer), last_weights(expected))
            for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-8, atol=1e-8)


class Training:
    """A model whose step is a function without arguments."""

    def __init__(self, gpu: torch.device, mode: Mode) -> None:
        self.model = Net(3, gpu)
        self.mode = mode
        inner = torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9)
        options = dict(mode.options)
        if mode.part == "params":
            options["gramian_params"] = [self.model.trunk[-1]]
        self.optimizer = MultiTaskOptimizer(inner, "cagrad", **options)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.mode.backward(self.optimizer, self.model.trunk[-1], self.model.losses())
        self.optimizer.step()


@pytest.mark.parametrize("name", ["auto", "stored", "gramian_params", "features", "retain_graph"])
def test_step_in_a_graph(name: str, gpu: torch.device) -> None:
    """Replayed on changing data as without a graph."""
    mode = BY_MODE[name]
    eager, replayed = Training(gpu, mode), Training(gpu, mode)
    graph = captured(replayed.step)
    for _ in range(3):
        eager.step()
    for seed in range(1, 6):
        eager.model.next_batch(seed)
        eager.step()
        replayed.model.next_batch(seed)
        graph.replay()
    torch.cuda.synchronize()
    assert_same_params(replayed.model, eager.model, rtol=1e-5)


def test_update_every_in_a_graph_is_refused(gpu: torch.device) -> None:
    training = Training(gpu, BY_MODE["update_every"])
    with pytest.raises(RuntimeError, match=r"^update_every: expected 1 in a captured step"):
        captured(training.step)
