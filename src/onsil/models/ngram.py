"""Interpolated modified Kneser-Ney over token ids: the floor every neural model must beat.

Chen & Goodman (1998): discounts D1, D2, D3+ per order from the counts of counts; lower orders
count contexts, not occurrences; the unigram is interpolated with the uniform distribution, so
every token has a probability and each conditional sums to one.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

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
        counts = {order: top}
        for n in range(order - 1, 0, -1):  # continuation counts: in how many contexts it stands
            counts[n] = Counter(gram[1:] for gram in counts[n + 1])
        self.counts = counts
        self.discounts = {n: _discounts(c) for n, c in counts.items()}
        self.totals: dict[int, Counter[Gram]] = {}
        self.reserved: dict[int, dict[Gram, float]] = {}
        for n, table in counts.items():
            totals: Counter[Gram] = Counter()
            held: dict[Gram, float] = defaultdict(float)
            for gram, count in table.items():
                totals[gram[:-1]] += count
                held[gram[:-1]] += self.discounts[n][min(count, 3)]
            self.totals[n], self.reserved[n] = totals, held

    def probability(self, context: Sequence[int], token: int) -> float:
        """P(token | the last order−1 ids of context, −1 where the text had not begun)."""
        padded = ((-1,) * (self.order - 1) + tuple(context))[-(self.order - 1) :]
        p = 1.0 / self.vocabulary
        for n in range(1, self.order + 1):
            history = tuple(padded[len(padded) - n + 1 :]) if n > 1 else ()
            total = self.totals[n].get(history, 0)
            if total:
                count = self.counts[n].get((*history, token), 0)
                kept = max(0.0, count - self.discounts[n][min(count, 3)]) if count else 0.0
                p = (kept + self.reserved[n][history] * p) / total
        return p

    def bits(self, ids: Sequence[int]) -> float:
        """−log2 P of a whole sequence."""
        return -sum(math.log2(self.probability(ids[:i], token)) for i, token in enumerate(ids))


def _discounts(table: Counter[Gram]) -> tuple[float, float, float, float]:
    """(0, D1, D2, D3+) from the counts of counts; 0.5, 1, 1.5 where a tiny corpus has none."""
    of = Counter(min(count, 5) for count in table.values())
    n1, n2, n3, n4 = (of[i] for i in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return 0.0, 0.5, 1.0, 1.5
    y = n1 / (n1 + 2 * n2)
    d = [k - (k + 1) * y * b / a for k, a, b in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
    return 0.0, *(min(max(x, 0.1), k) for k, x in enumerate(d, 1))  # type: ignore[return-value]
