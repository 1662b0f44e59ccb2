"""MultiDigits: two overlaid handwritten digits, one of them with a loss 100 times too large."""

from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mtlfast.jobs.base import Job, Metric, Trial, require_packages

__all__ = ["MultiDigits", "Pairs"]

TRAINING_SCANS = 1200  # of the 1797; the others are for testing
TRAINING_PAIRS = 20_000
TEST_PAIRS = 4_000
BATCH = 128
REQUIRES = MappingProxyType({"sklearn": "scikit-learn"})


class Pairs(NamedTuple):
    """Canvases with the labels of their two digits.

    Attributes:
        canvas: [N, 96] float32 in [0, 1], an 8 x 12 picture row by row.
        left: [N] int64.
        right: [N] int64.
    """

    canvas: Tensor
    left: Tensor
    right: Tensor


class MultiDigits(Job):
    """Reads both digits of an 8 x 12 canvas on which two of scikit-learn's scans overlap.

    The left digit fills columns 0-7 and the right one is laid over columns 4-11 by ``maximum``.
    A trunk 96-64-64 with ReLU is shared; each digit has a linear head of 10 classes. The losses are
    the cross-entropy of the left digit and ``factor`` times that of the right one; Adam at 1e-3
    on batches of 128. The scans of training and test pairs are disjoint.

    Args:
        factor: What the right digit's loss is multiplied by: the imbalance. Default 100.
    """

    name = "multidigits"
    title = "MultiDigits: two overlaid digits, one network, two tasks"
    caption = (
        "MultiDigits: two overlaid digits, one shared trunk; the right digit's loss is multiplied "
        "by 100 (imbalance factor 100)."
    )
    remark = (
        "At an imbalance factor of 1 equal weighting reaches 0.959 as well: the gain shown is "
        "against the imbalance of the losses."
    )
    tasks = ("left", "right")
    metrics = (
        Metric(
            "worst_accuracy",
            "worst-task accuracy",
            limits=(0.0, 1.0),
            reference=(0.959, "equal weighting at factor 1, after 1500 steps"),
        ),
        Metric("mean_accuracy", "mean accuracy", limits=(0.0, 1.0)),
    )
    methods = ("sum", "pcgrad", "cagrad", "gradnorm")
    steps = 1500
    epoch_steps = TRAINING_PAIRS // BATCH
    threads = 1  # layers of 64: a second thread costs more than it brings
    requires = REQUIRES
    expected: ClassVar = {
        "sum": (0.436, 0.094),
        "pcgrad": (0.752, 0.036),
        "cagrad": (0.950, 0.009),
        "gradnorm": (0.954, 0.004),
        "nash_mtl": (0.961, 0.003),
        "imtlg": (0.961, 0.003),
        "aligned_mtl": (0.960, 0.003),
        "config": (0.960, 0.002),
        "famo": (0.960, 0.003),
        "fairgrad": (0.931, 0.008),
        "upgrad": (0.752, 0.036),
        "dualproj": (0.725, 0.030),
        "mgda": (0.606, 0.035),
    }
    options: ClassVar = {
        "aligned_mtl": {"preference": (1.0, 1.0)},
        "cagrad": {"c": 0.4, "rescale": 1, "reduction": "sum"},
        "constant": {"weights": (1.0, 0.01)},  # undoes the factor
        "crmogm": {"weighting": "mgda"},
    }
    unsupported: ClassVar = {
        "krum": "it needs three tasks: of two, neither has a neighbour to be compared by",
        "scalarization": "it needs a function of the losses, which is the user's to choose",
        "trimmed_mean": "it needs three tasks: of two, none is left after trimming",
    }

    def __init__(self, factor: float = 100.0) -> None:
        self.factor = factor

    def start(self, seed: int) -> "DigitsTrial":
        """Returns a fresh run: its training pairs, first weights and batches follow from seed."""
        return DigitsTrial(self.training_pairs(seed), self.test_pairs, self.factor, seed)

    def training_pairs(self, seed: int) -> Pairs:
        """Draws the 20,000 training pairs of a run."""
        return self._draw(self._split[:TRAINING_SCANS], TRAINING_PAIRS, 100 + seed)

    @cached_property
    def test_pairs(self) -> Pairs:
        """The 4,000 test pairs, common to all runs."""
        return self._draw(self._split[TRAINING_SCANS:], TEST_PAIRS, 1)

    @cached_property
    def _scans(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        require_packages(REQUIRES, "the MultiDigits job")
        from sklearn.datasets import load_digits

        digits = load_digits()
        return (digits.images / 16.0).astype(np.float32), digits.target.astype(np.int64)

    @cached_property
    def _split(self) -> NDArray[np.int64]:
        return np.random.default_rng(0).permutation(len(self._scans[1]))

    def _draw(self, pool: NDArray[np.int64], count: int, seed: int) -> Pairs:
        images, labels = self._scans
        rng = np.random.default_rng(seed)
        left = pool[rng.integers(0, len(pool), count)]
        right = pool[rng.integers(0, len(pool), count)]
        canvas = np.zeros((count, 8, 12), np.float32)
        canvas[:, :, :8] = images[left]
        canvas[:, :, 4:] = np.maximum(canvas[:, :, 4:], images[right])
        return Pairs(
            torch.from_numpy(canvas.reshape(count, 96)),
            torch.from_numpy(labels[left]),
            torch.from_numpy(labels[right]),
        )


class DigitsTrial(Trial):
    """One run of :class:`MultiDigits`.

    Args:
        training: Training pairs.
        test: Test pairs.
        factor: What the right digit's loss is multiplied by.
        seed: Seed of the first weights and of the batches.
    """

    def __init__(self, training: Pairs, test: Pairs, factor: float, seed: int) -> None:
        self.training = training
        self.test = test
        self.factor = factor
        self.batches = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.left_head = nn.Linear(64, 10)
        self.right_head = nn.Linear(64, 10)
        model = nn.ModuleList([self.trunk, self.left_head, self.right_head])
        self.shared_parameters = list(self.trunk.parameters())
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def draw_batch(self) -> Pairs:
        """Draws 128 training pairs, with replacement."""
        index = torch.randint(len(self.training.left), (BATCH,), generator=self.batches)
        return Pairs(*(column[index] for column in self.training))

    def losses(self, batch: Pairs) -> dict[str, Tensor]:
        """Returns the cross-entropies of the left digit and, times ``factor``, of the right one."""
        features = self.trunk(batch.canvas)  # [128, 64]
        left = functional.cross_entropy(self.left_head(features), batch.left)
        right = functional.cross_entropy(self.right_head(features), batch.right)
        return {"left": left, "right": self.factor * right}

    def kpis(self, batch: Pairs) -> Tensor:
        """Returns the accuracies on a batch; half a digit counts as read if none is."""
        return self._accuracies(batch).clamp(min=0.5 / BATCH)

    def evaluate(self) -> dict[str, float]:
        """Returns the accuracies on the test pairs: that of the worse task, and the mean."""
        accuracies = self._accuracies(self.test)
        worst, mean = accuracies.amin(), accuracies.mean()  # NaN if one is, unlike Python's min
        return {"worst_accuracy": float(worst), "mean_accuracy": float(mean)}

    @torch.no_grad()
    def _accuracies(self, pairs: Pairs) -> Tensor:
        """Returns the accuracy of both tasks [2]; NaN for one whose logits are not finite."""
        features = self.trunk(pairs.canvas)
        return torch.stack(
            [
                _accuracy(head(features), labels)
                for head, labels in ((self.left_head, pairs.left), (self.right_head, pairs.right))
            ]
        )


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    right = (logits.argmax(1) == labels).double().mean()
    return torch.where(logits.isfinite().all(), right, torch.nan)
