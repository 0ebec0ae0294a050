"""Figures with what chance leaves open: rows are drawn anew by the group they came in.

Reviews of one movie, or pairs with one premise, are not independent; an interval over rows would be
too narrow. So whole groups are drawn with replacement (the cluster bootstrap), and the middle 95 %
of what comes out is the interval (Efron 1979).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Places from 0, equal values sharing the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[where]


def correlation(said: np.ndarray, wanted: np.ndarray) -> float:
    a, b = said - said.mean(), wanted - wanted.mean()
    return float((a * b).sum() / max(1e-12, math.sqrt((a * a).sum() * (b * b).sum())))


def accuracy(right: np.ndarray, groups: Sequence[str], draws: int) -> dict[str, list[float]]:
    """{"accuracy": [value, low, high]} of rows that are right or not."""
    return drawn_anew({"accuracy": lambda at: float(right[at].mean())}, groups, draws)


def correlations(
    said: np.ndarray, wanted: np.ndarray, groups: Sequence[str], draws: int
) -> dict[str, list[float]]:
    """{"pearson": [value, low, high], "spearman": …}."""
    return drawn_anew(
        {
            "pearson": lambda at: correlation(said[at], wanted[at]),
            "spearman": lambda at: correlation(ranks(said[at]), ranks(wanted[at])),
        },
        groups,
        draws,
    )


def drawn_anew(
    measures: Mapping[str, Callable[[np.ndarray], float]], groups: Sequence[str], draws: int
) -> dict[str, list[float]]:
    """Each measure, a function of row numbers, of all rows and between which it falls."""
    by: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        by[group].append(i)
    several = [np.array(x) for x in by.values()]
    draw, found = np.random.default_rng(0), {}
    drawn = [draw.integers(len(several), size=len(several)) for _ in range(draws)]
    for name, measure in measures.items():
        told = [measure(np.concatenate([several[g] for g in some])) for some in drawn]
        low, high = np.quantile(told, (0.025, 0.975))
        value = measure(np.arange(len(groups)))
        found[name] = [round(float(x), 4) for x in (value, low, high)]
    return found
