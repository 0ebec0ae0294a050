"""What an encoder has to beat: a linear model over hashed character n-grams, and less than that.

Logistic regression (least squares where the answer is a number) on the character 1–5-grams of a
row, hashed into 2^20 buckets, each once, the row scaled to length one; Adagrad, two epochs, chosen
on NSMC's dev (docs/log.md). It knows no words and no order beyond five letters, costs seconds, and
on short noisy reviews it is hard to beat. Labels: class numbers, or values with one output.
"""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BUCKETS, LONGEST, LINEAR_EPOCHS, LINEAR_RATE = 2**20, 5, 2, 0.1


def grams(row: dict) -> np.ndarray:
    """Buckets of the character 1–5-grams of a row, each once. A pair has those of each text, and
    those that both have, as other n-grams: a linear model cannot compare by itself."""
    texts = [row["text"], row["other"]] if "other" in row else [row["text"]]
    sets = []
    for text in texts:
        codes = np.frombuffer(f" {text} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
        found, value = [], np.full(len(codes), 0xCBF29CE484222325, np.uint64)
        for n in range(min(LONGEST, len(codes))):
            value = (value[: len(codes) - n] ^ codes[n:]) * np.uint64(0x100000001B3)
            value ^= value >> np.uint64(29)
            found.append(value)
        sets.append(np.unique(np.concatenate(found)))
    if len(sets) == 2:
        sets.append(np.intersect1d(*sets))
    sides = [s + np.uint64(i * 0x9E3779B97F4A7C15 % 2**64) for i, s in enumerate(sets)]
    return (np.concatenate(sides) % np.uint64(BUCKETS)).astype(np.int64)


class Linear:
    """Softmax or least squares over hashed n-grams, rows scaled to length one; Adagrad."""

    def __init__(self, outputs: int, regression: bool):
        self.table = torch.nn.EmbeddingBag(BUCKETS, outputs, mode="sum", sparse=True)
        self.bias = torch.nn.Parameter(torch.zeros(outputs))
        self.regression = regression
        with torch.no_grad():
            self.table.weight.zero_()

    def scores(self, some: Sequence[np.ndarray]) -> Tensor:
        flat = torch.from_numpy(np.concatenate(some))
        sizes = torch.tensor([len(x) for x in some])
        weights = (sizes.float() ** -0.5).repeat_interleave(sizes)
        starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
        return self.table(flat, starts, per_sample_weights=weights) + self.bias

    @torch.sparse.check_sparse_tensor_invariants(enable=False)  # indices are its own
    def fit(self, some: Sequence[np.ndarray], labels: Tensor) -> "Linear":
        optimizer = torch.optim.Adagrad([self.table.weight, self.bias], lr=LINEAR_RATE)
        draw = random.Random(0)
        with torch.no_grad():
            self.bias += labels.mean() if self.regression else 0.0
        for _ in range(LINEAR_EPOCHS):
            order = list(range(len(some)))
            draw.shuffle(order)
            for a in range(0, len(order), 64):
                chosen = order[a : a + 64]
                scores, wanted = self.scores([some[i] for i in chosen]), labels[chosen]
                if self.regression:
                    loss = F.mse_loss(scores[:, 0], wanted)
                else:
                    loss = F.cross_entropy(scores, wanted.long())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return self


def linear(learnt: list[dict], held: list[dict], names: tuple[str, ...]) -> Tensor:
    """Scores of the linear model on what is held out; with one name the labels are numbers."""
    place = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([place.get(row["label"], row["label"]) for row in learnt])
    model = Linear(len(names), len(names) == 1).fit([grams(row) for row in learnt], labels.float())
    with torch.no_grad():
        some = [grams(row) for row in held]
        return torch.cat([model.scores(some[a : a + 256]) for a in range(0, len(some), 256)])


def commonest(learnt: list[dict], held: list[dict], names: tuple[str, ...]) -> Tensor:
    """The commonest answer of train; of pairs with a number, the share of common letter pairs."""
    if len(names) > 1:
        counts = Counter(row["label"] for row in learnt)
        return torch.tensor([[float(counts[name]) for name in names]]).expand(len(held), -1)

    def bigrams(text: str) -> set[str]:
        return {text[i : i + 2] for i in range(len(text) - 1)}

    pairs = [(bigrams(row["text"]), bigrams(row["other"])) for row in held]
    return torch.tensor([[2 * len(a & b) / max(1, len(a) + len(b))] for a, b in pairs])
