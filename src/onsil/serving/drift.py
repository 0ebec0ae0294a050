"""Drift: whether people ask something else than they used to, and whether that is more than chance.

Each question is counted by its terms (pairs of syllables, the same that retrieval searches by) and
by its concepts. The distance between two sets of questions is the population stability index,
Σ (p − q)·ln(p ⁄ q) over the commonest terms of the reference and one bin for all the rest. It is
never zero, and the usual thresholds of 0.1 and 0.25 (credit scoring) are for large samples and few
bins, so it is told beside its own noise floor: what it reaches in 1 of 20 pairs of windows of these
sizes drawn from the reference itself (bootstrap by question, because the terms of one question
belong together; Efron 1979). Only above the floor is it called drift. The share of words that no
document has is what a change towards new subjects shows first; its interval is bootstrapped too.

Left out: what the words mean. The same subject in other words is drift here, and ought to be: the
model was examined on the words it was grown with.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onsil.retrieval.bm25 import silent, terms
from onsil.retrieval.concepts import concepts

BINS, ROUNDS, FLOOR = 40, 400, 95  # bins beside the rest, bootstrap rounds, percentile
FEWEST = 50  # questions on each side
Spelled = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Distance:
    """A population stability index and what it reaches by chance."""

    psi: float
    floor: float

    @property
    def drifted(self) -> bool:
        return self.psi > self.floor


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval; all of it is 0 where nothing was counted."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Drift:
    """The questions of a window against those of the reference."""

    reference: int
    window: int
    words: Distance
    concepts: Distance
    unknown: Share
    unknown_before: Share


def spelled(question: str) -> list[str]:
    """What a question is about: its terms without those of asking."""
    return [term for term in terms(question) if term not in silent(question)]


def drift(
    reference: Sequence[str], window: Sequence[str], known: Callable[[str], bool], seed: int = 0
) -> Drift | None:
    """How far `window` is from `reference`, both questions; `known` says whether a term stands in
    a document. None with fewer than `FEWEST` on a side: nothing could be told from chance."""
    if min(len(reference), len(window)) < FEWEST:
        return None
    draw = np.random.default_rng(seed)
    return Drift(
        len(reference),
        len(window),
        distance(reference, window, spelled, draw),
        distance(reference, window, lambda q: sorted(concepts(q)), draw),
        unknown_share(window, known, draw),
        unknown_share(reference, known, draw),
    )


def distance(
    reference: Sequence[str], window: Sequence[str], spell: Spelled, draw: np.random.Generator
) -> Distance:
    """The index over the commonest of what `spell` finds, and its noise floor."""
    counted = [Counter(spell(q)) for q in reference]
    common = [term for term, _ in sum(counted, Counter()).most_common(BINS)]
    before, now = _table(counted, common), _table([Counter(spell(q)) for q in window], common)
    chance = [
        _psi(_drawn(before, len(reference), draw), _drawn(before, len(window), draw))
        for _ in range(ROUNDS)
    ]
    return Distance(_psi(before.sum(0), now.sum(0)), float(np.percentile(chance, FLOOR)))


def _table(counted: Sequence[Counter[str]], common: Sequence[str]) -> np.ndarray:
    """(N questions, bins): how often each common term stands in each question, the rest last."""
    rows = [[*(c[term] for term in common), 0] for c in counted]
    for row, c in zip(rows, counted, strict=True):
        row[-1] = c.total() - sum(row)
    return np.array(rows, float)


def _drawn(table: np.ndarray, size: int, draw: np.random.Generator) -> np.ndarray:
    """(bins,): the counts of `size` questions drawn with replacement."""
    times = draw.multinomial(size, np.full(len(table), 1 / len(table)))
    return times @ table


def _psi(before: np.ndarray, now: np.ndarray) -> float:
    """The index of two (bins,) counts, half a count added to each bin (Jeffreys)."""
    p, q = ((c + 0.5) / (c + 0.5).sum() for c in (before, now))
    return float(((p - q) * np.log(p / q)).sum())


def unknown_share(
    questions: Sequence[str], known: Callable[[str], bool], draw: np.random.Generator
) -> Share:
    """The share of terms that stand in no document, with a bootstrap interval by question."""
    found = [spelled(q) for q in questions]
    counts = np.array([[sum(not known(t) for t in f), len(f)] for f in found], float)
    if not counts.sum():
        return Share(0.0, 0.0, 0.0)
    shares = []
    for _ in range(ROUNDS):
        strange, all_ = _drawn(counts, len(counts), draw)
        shares.append(strange / max(all_, 1))
    strange, all_ = counts.sum(0)
    low, high = np.percentile(shares, [2.5, 97.5])
    return Share(float(strange / all_), float(low), float(high))


def wilson(hits: int, of: int) -> Share:
    """A share of `of` with Wilson's 95 % interval (1927), which holds for few and for none."""
    if not of:
        return Share(0.0, 0.0, 0.0)
    z, p = 1.959964, hits / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return Share(p, max(0.0, middle - half), min(1.0, middle + half))
