"""Interpolated modified Kneser-Ney over token ids: the floor every neural model must beat.

Chen & Goodman (1998): discounts D1, D2, D3+ per order from the counts of counts; lower orders
count contexts, not occurrences; the unigram is interpolated with the uniform distribution, so
every token has a probability and each conditional sums to one. A text begins with order−1 marks
(−1), as in the paper; one mark before another is a context like any other.

On disk a model is the table of its longest grams and their counts, in a safetensors file: all
lower orders and discounts follow from it. `Seen` keeps the n-grams of a training text to say how
much of another text was in it. Left out: pruning, and any order chosen by itself.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from onsil.errors import OnsilError
from onsil.lineage.history import METADATA_KEY
from onsil.lineage.spelling import canonical
from onsil.models.weights import stable_bytes

Gram = tuple[int, ...]


class NGram:
    """An order-n model of token sequences over ids 0 … vocabulary−1."""

    def __init__(self, sequences: Sequence[Sequence[int]], order: int, vocabulary: int):
        self.order, self.vocabulary = order, vocabulary
        top: Counter[Gram] = Counter()
        for ids in sequences:
            padded = (-1,) * (order - 1) + tuple(ids)
            for i in range(len(ids)):
                top[padded[i : i + order]] += 1
        self._build(top)

    def _build(self, top: Counter[Gram]) -> None:
        """Everything else from the counts of the longest grams."""
        counts = {self.order: top}
        for n in range(
            self.order - 1, 0, -1
        ):  # continuation counts: in how many contexts it stands
            counts[n] = Counter(gram[1:] for gram in counts[n + 1])
        self.counts = counts
        self.discounts = {n: _discounts(c) for n, c in counts.items()}
        self.totals: dict[int, Counter[Gram]] = {}
        self.reserved: dict[int, dict[Gram, float]] = {}
        for n, table in counts.items():
            totals: Counter[Gram] = Counter()
            kinds: dict[Gram, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
            for gram, count in table.items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]][min(count, 3)] += 1
            self.totals[n] = totals
            # Whole numbers are added, so the order of the table cannot show in the last bit.
            self.reserved[n] = {
                history: sum(d * k for d, k in zip(self.discounts[n], of, strict=True))
                for history, of in kinds.items()
            }

    def probability(self, context: Sequence[int], token: int) -> float:
        """P(token | the last order−1 ids of context, −1 where the text had not begun)."""
        padded = ((-1,) * (self.order - 1) + tuple(context))[-(self.order - 1) :]
        p = 1.0 / self.vocabulary
        for n in range(1, self.order + 1):
            history = tuple(padded[len(padded) - n + 1 :]) if n > 1 else ()
            total = self.totals[n].get(history, 0)
            if total:
                count = self.counts[n].get((*history, token), 0)
                kept = count - self.discounts[n][min(count, 3)]
                p = (kept + self.reserved[n][history] * p) / total
        return p

    def bits(self, ids: Sequence[int]) -> float:
        """−log2 P of a whole sequence."""
        near = self.order - 1
        return -sum(
            math.log2(self.probability(ids[max(0, i - near) : i], token))
            for i, token in enumerate(ids)
        )

    def save(self, path: Path, ancestry: dict[str, Any]) -> None:
        """One safetensors file: `grams` N×order (int32, sorted), `counts` N (int64). Equal models
        of equal ancestry give equal bytes."""
        rows = sorted(self.counts[self.order].items())
        tensors = {
            "grams": torch.tensor([g for g, _ in rows], dtype=torch.int32).view(-1, self.order),
            "counts": torch.tensor([c for _, c in rows], dtype=torch.int64),
        }
        about = {"order": str(self.order), "vocabulary": str(self.vocabulary)}
        path.write_bytes(stable_bytes(tensors, about | {METADATA_KEY: canonical(ancestry)}))

    @classmethod
    def load(cls, path: Path) -> "NGram":
        """The model of a file, with the same probabilities to the bit.

        Raises OnsilError when the file is not one `save` wrote, or is damaged.
        """
        try:
            with safe_open(path, framework="pt") as f:
                about = f.metadata() or {}
                grams, counts = f.get_tensor("grams"), f.get_tensor("counts")
            order, vocabulary = int(about["order"]), int(about["vocabulary"])
        except (OSError, SafetensorError, KeyError, ValueError) as e:
            raise _not_a_table(path, f"{type(e).__name__}: {e}") from e
        whole = (grams.dtype, counts.dtype) == (torch.int32, torch.int64)
        if not whole or grams.shape != (counts.numel(), order) or counts.dim() != 1 or order < 1:
            shapes = f"grams {tuple(grams.shape)}, counts {tuple(counts.shape)}, order {order}"
            raise _not_a_table(path, shapes)
        if len(counts) and (counts.min() < 1 or grams.min() < -1 or grams.max() >= vocabulary):
            raise _not_a_table(path, f"a count below 1, or an id outside −1 … {vocabulary - 1}")
        model = cls((), order, vocabulary)
        top = zip(map(tuple, grams.tolist()), counts.tolist(), strict=True)
        model._build(Counter(dict(top)))
        return model


def _discounts(table: Counter[Gram]) -> tuple[float, float, float, float]:
    """(0, D1, D2, D3+) from the counts of counts; 0.5, 1, 1.5 where a tiny corpus has none."""
    of = Counter(min(count, 5) for count in table.values())
    n1, n2, n3, n4 = (of[i] for i in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return 0.0, 0.5, 1.0, 1.5
    y = n1 / (n1 + 2 * n2)
    d = [k - (k + 1) * y * b / a for k, a, b in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
    return 0.0, *(min(max(x, 0.1), k) for k, x in enumerate(d, 1))  # type: ignore[return-value]


def _not_a_table(path: Path, found: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{path.name} is not a whole n-gram file ({found}).",
            "Probabilities from half a table would be wrong without a warning.",
            "Make the n-gram again from its corpus, or give a file that onsil saved.",
        ),
        ko=(
            f"{path.name}은(는) 온전한 n-gram 파일이 아닙니다({found}).",
            "일부만 남은 표로는 틀린 확률을 경고 없이 내게 됩니다.",
            "말뭉치에서 n-gram을 다시 만들거나 onsil이 저장한 파일을 지정해 주세요.",
        ),
    )


class Seen:
    """The n-grams of a training text, to find test text that stands in it (contamination).

    Brown et al. (2020) look for runs of 13 tokens. A gram is kept as a 64-bit hash, 8 bytes: among
    ten million grams one question in 10¹² is answered wrongly, and then by «seen».
    """

    def __init__(self, sequences: Sequence[Sequence[int]], n: int = 13):
        self.n = n
        parts = [_hashes(ids, n) for ids in sequences]
        self.hashes = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)

    def overlap(self, ids: Sequence[int]) -> float | None:
        """Share (0 … 1) of the text's n-grams that the training text has; None for a text shorter
        than n, about which this cannot say anything."""
        own = _hashes(ids, self.n)
        return float(np.isin(own, self.hashes).mean()) if len(own) else None


def _hashes(ids: Sequence[int], n: int) -> np.ndarray:
    """One 64-bit hash for every window of n ids: Σ mix(id_i)·m^i mod 2^64, with ids spread by the
    finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    if len(ids) < n:
        return np.empty(0, np.uint64)
    x = np.asarray(ids, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    powers = np.cumprod(np.full(n, 0xD1342543DE82EF95, np.uint64))
    return np.lib.stride_tricks.sliding_window_view(x, n) @ powers
