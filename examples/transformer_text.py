"""A transformer that reads Python functions, four heads: the engine "streaming".

What a balanced step adds to plain training is above all memory: the gradients of all tasks. The
engine "streaming" goes through the network block by block, here an encoder layer at a time: each
block's task gradients are added to the Gramian and freed, and one backward of the weighted losses
fills ``.grad`` at the end. Exact, in the memory of one block's gradients, for one more backward.

Data: the functions of the Python standard library that runs this script, about 5,000, a fifth kept
for testing. The text is the first 32 words and signs of a function: name, arguments, the beginning
of the docstring or the body. Tasks: the package that it is from, whether it has a ``return``,
whether it branches (``if``), and how many lines long it is. The first three have a cross-entropy
below 3, the last a mean square in lines of several hundred: the unit makes the imbalance, and the
logarithm of the lines would take most of it away. Results vary a little with the version of Python.
Run time: about a minute.
"""

import ast
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import common
import torch
from torch import Tensor, nn

import mtlfast

PACKAGES = ["asyncio", "collections", "ctypes", "email", "encodings", "http", "importlib", "json"]
PACKAGES += ["logging", "multiprocessing", "unittest", "urllib", "xml"]
WORDS, LENGTH, WIDTH, BATCH = 2000, 32, 128, 32  # vocabulary, tokens of a text, of the model


class Texts(NamedTuple):
    """Tokens [N, 32] of N functions, 0 for padding, and four labels [N]."""

    tokens: Tensor
    package: Tensor
    returns: Tensor
    branches: Tensor
    lines: Tensor


def functions() -> Iterator[tuple[list[str], int, bool, bool, int]]:
    """Words and signs of every function of the packages, with its labels."""
    library = Path(sysconfig.get_path("stdlib"))
    for label, package in enumerate(PACKAGES):
        for path in sorted(p for p in (library / package).rglob("*.py") if "test" not in p.parts):
            rows = path.read_text(encoding="utf-8").split("\n")
            for node in ast.walk(ast.parse("\n".join(rows))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                    text = "\n".join(rows[node.lineno - 1 : node.end_lineno])
                    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+|[^\w\s]", text)[:LENGTH]
                    kinds = {type(part) for part in ast.walk(node)}
                    returns, branches = ast.Return in kinds, ast.If in kinds
                    yield words, label, returns, branches, node.end_lineno - node.lineno + 1


def texts() -> Texts:
    """Reads the library; the order is shuffled, always in the same way."""
    words, *labels = zip(*functions(), strict=True)
    known = Counter(word.lower() for text in words for word in text).most_common(WORDS - 2)
    index = {word: i for i, (word, _) in enumerate(known, 2)}  # 1 is any other word
    tokens = torch.zeros(len(words), LENGTH, dtype=torch.int64)
    for row, text in zip(tokens, words, strict=True):
        row[: len(text)] = torch.tensor([index.get(word.lower(), 1) for word in text])
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    return Texts(tokens[order], *(torch.tensor(label)[order] for label in labels))


class Model(nn.Module):
    """Embeddings, three encoder layers of 128, the mean over the tokens, four linear heads."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 256, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        sizes = {"package": len(PACKAGES), "returns": 1, "branches": 1, "lines": 1}
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, n) for name, n in sizes.items()})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        empty = tokens == 0
        z = self.encoder(self.words(tokens) + self.places, src_key_padding_mask=empty)
        z = z.masked_fill(empty[:, :, None], 0.0).sum(1) / (~empty).sum(1, keepdim=True)
        return {name: head(z).squeeze(1) for name, head in self.heads.items()}


def task_losses(outputs: dict[str, Tensor], batch: Texts) -> dict[str, Tensor]:
    sign = nn.functional.binary_cross_entropy_with_logits
    return {
        "package": nn.functional.cross_entropy(outputs["package"], batch.package),
        "returns": sign(outputs["returns"], batch.returns.float()),
        "branches": sign(outputs["branches"], batch.branches.float()),
        "lines": nn.functional.mse_loss(outputs["lines"], batch.lines.float()),
    }


@torch.no_grad()
def evaluate(model: Model, test: Texts) -> dict[str, float]:
    """Accuracies, and R2 of the lines."""
    model.eval()
    outputs = model(test.tokens)
    right = {
        "package": outputs["package"].argmax(1) == test.package,
        "returns": (outputs["returns"] > 0) == test.returns,
        "branches": (outputs["branches"] > 0) == test.branches,
    }
    error = (outputs["lines"] - test.lines).square().mean()
    scores = {f"{name} accuracy": float(hits.float().mean()) for name, hits in right.items()}
    return {**scores, "lines R2": 1 - float(error / test.lines.float().var())}


def train(data: Texts, args: common.Arguments, balanced: bool) -> common.Run:
    torch.manual_seed(args.seed)
    held_out, model = len(data.lines) // 5, Model()
    run = common.Run("NashMTL" if balanced else "equal weighting")
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if balanced:
        optimizer = mtlfast.MultiTaskOptimizer(optimizer, "nash_mtl", engine=args.engine)  # 1: wrap
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, args.steps)
    for _ in range(args.steps):
        rows = torch.randint(held_out, len(data.lines), (BATCH,))
        batch = Texts(*(column[rows] for column in data))
        start = time.perf_counter()
        losses = task_losses(model(batch.tokens), batch)  # 2: K scalars, not their sum
        optimizer.zero_grad()
        if isinstance(optimizer, mtlfast.MultiTaskOptimizer):
            optimizer.backward(losses)  # 3: instead of the plain backward below
        else:
            torch.autograd.backward(list(losses.values()))
        optimizer.step()
        run.saw(time.perf_counter() - start, losses)
        decay.step()
    return run.ended(optimizer, evaluate(model, Texts(*(c[:held_out] for c in data))))


def main(argv: Sequence[str] | None = None) -> list[common.Run]:
    args = common.arguments(__doc__, 300, "streaming", argv)
    data = texts()
    return common.compare(lambda balanced: train(data, args, balanced))


if __name__ == "__main__":
    main()
