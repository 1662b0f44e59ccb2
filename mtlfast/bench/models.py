"""The three models of the engines' benchmarks: K heads on one trunk, and data of a given seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

CLASSES = 10


class EngineModel(nn.Module):
    """A trunk and K linear heads with a cross-entropy each, on one batch that it holds.

    Args:
        trunk: from a batch to features ``[batch, width]``.
        num_tasks: K.
        width: of the features.
        shape: of the batch, ``[batch, ...]``.
        last_blocks: names and parameters of what stands at the trunk's end, the usual one first.
    """

    def __init__(
        self,
        trunk: nn.Module,
        num_tasks: int,
        width: int,
        shape: Sequence[int],
        last_blocks: dict[str, list[nn.Parameter]],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(width, CLASSES) for _ in range(num_tasks))
        self.last_blocks = last_blocks
        self.inputs: Tensor
        self.targets: Tensor
        self.register_buffer("inputs", torch.empty(*shape))
        self.register_buffer("targets", torch.empty(num_tasks, shape[0], dtype=torch.int64))
        self.draw(0)

    def draw(self, seed: int) -> None:
        """Another batch: noise, and classes by chance, so that about half of the tasks conflict."""
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(self.inputs.shape, generator=generator)
        self.inputs.copy_(inputs)  # the same numbers in every dtype and on every device
        self.targets.copy_(torch.randint(CLASSES, self.targets.shape, generator=generator))

    def features(self) -> Tensor:
        """``[batch, width]``."""
        found: Tensor = self.trunk(self.inputs)
        return found

    def task_losses(self, features: Tensor) -> list[Tensor]:
        """K cross-entropies."""
        return [
            nn.functional.cross_entropy(head(features), target)
            for head, target in zip(self.heads, self.targets, strict=True)
        ]

    def losses(self) -> list[Tensor]:
        """K cross-entropies, by a forward pass of the whole model."""
        return self.task_losses(self.features())

    def shared_params(self) -> list[nn.Parameter]:
        """The trunk's."""
        return list(self.trunk.parameters())

    def shared_elements(self) -> int:
        """P."""
        return sum(p.numel() for p in self.shared_params())

    def largest_layer(self) -> int:
        """The most elements that a layer's own parameters and the gradient of its output have."""
        outputs: dict[nn.Module, int] = {}

        def note(layer: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[layer] = (output if isinstance(output, Tensor) else output[0]).numel()

        own = {m: sum(p.numel() for p in m.parameters(False)) for m in self.trunk.modules()}
        layers = [layer for layer, size in own.items() if size]
        handles: list[RemovableHandle] = [m.register_forward_hook(note) for m in layers]
        with torch.no_grad():
            self.features()
        for handle in handles:
            handle.remove()
        return max(own[layer] + outputs.get(layer, 0) for layer in layers)


def mlp(
    num_tasks: int,
    widths: Sequence[int] = (512, 2048, 2048, 2048, 256),
    batch: int = 64,
    seed: int = 0,
) -> EngineModel:
    """Linear layers with ReLU; 10.0e6 parameters."""
    torch.manual_seed(seed)
    linears = [nn.Linear(a, b) for a, b in pairwise(widths)]
    trunk = nn.Sequential(*(module for linear in linears for module in (linear, nn.ReLU())))
    last = {"last Linear": list(linears[-1].parameters())}
    return EngineModel(trunk, num_tasks, widths[-1], (batch, widths[0]), last)


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps height and width but for its stride, and batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which their input goes, too."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.first = convolution(inputs, outputs, stride=stride)
        self.second = convolution(outputs, outputs)
        same = inputs == outputs
        self.around = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, inputs, H, W]`` to ``[batch, outputs, H, W]``, or half of H and W."""
        inner = self.second(nn.functional.relu(self.first(x)))
        found: Tensor = nn.functional.relu(inner + self.around(x))
        return found


def convolutional(
    num_tasks: int,
    widths: Sequence[int] = (64, 64, 128, 128, 192),
    batch: int = 32,
    size: int = 32,
    seed: int = 0,
) -> EngineModel:
    """A residual network that halves height and width where channels grow; 1.2e6 parameters."""
    torch.manual_seed(seed)
    blocks = [ResidualBlock(a, b) for a, b in pairwise(widths)]
    trunk = nn.Sequential(
        convolution(3, widths[0], stride=2),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    last = {"last convolution": list(blocks[-1].second.parameters())}
    return EngineModel(trunk, num_tasks, widths[-1], (batch, 3, size, size), last)


class Encoder(nn.Module):
    """A transformer's encoder, and the mean over the tokens."""

    def __init__(self, width: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, tokens, width]`` to ``[batch, width]``."""
        found: Tensor = self.layers(x)
        return found.mean(1)


def transformer(
    num_tasks: int,
    width: int = 256,
    heads: int = 4,
    hidden: int = 1024,
    depth: int = 6,
    batch: int = 16,
    tokens: int = 32,
    seed: int = 0,
) -> EngineModel:
    """Encoder layers and the mean over the tokens; 4.7e6 parameters."""
    torch.manual_seed(seed)
    trunk = Encoder(width, heads, hidden, depth)
    layer = trunk.layers.layers[-1]
    assert isinstance(layer, nn.TransformerEncoderLayer)
    last = {
        "last layer": list(layer.parameters()),
        "last Linear": [*layer.linear2.parameters(), *layer.norm2.parameters()],
    }
    return EngineModel(trunk, num_tasks, width, (batch, tokens, width), last)


MODELS: dict[str, Callable[[int], EngineModel]] = {
    "MLP": mlp,
    "CNN": convolutional,
    "transformer": transformer,
}
"""From K to a model of the sizes that are measured."""


def small(num_tasks: int) -> EngineModel:
    """Linear layers whose K gradients fit in a large cache; 1.1e6 parameters."""
    return mlp(num_tasks, widths=(512, 512, 512, 512, 512, 256))


def tiny(num_tasks: int) -> EngineModel:
    """The network of the MultiDigits job, on batches of 128: all is overhead; 10.4e3 parameters."""
    return mlp(num_tasks, widths=(96, 64, 64), batch=128)
