"""Scores with intervals: character F1, exact match, citation, abstention, risk–coverage.

Answers are compared as KorQuAD 1.0 does (Lim et al. 2019): punctuation and spaces removed, then
overlap of characters, best of the accepted answers; «5백만원» counts as equal to «5,000,000원».
Intervals are percentile bootstraps over questions (2,000 draws, fixed seed); differences between
two readers are paired.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from onsil.retrieval.values import same_values

DRAWS = 2_000


def plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())


def f1(answer: str, accepted: Sequence[str]) -> float:
    """Best character-overlap F1 against the accepted answers; 0 … 1."""

    def one(a: str, b: str) -> float:
        common = sum((Counter(a) & Counter(b)).values())
        return 2 * common / (len(a) + len(b)) if common else 0.0

    if exact(answer, accepted):
        return 1.0
    return max((one(plain(answer), plain(gold)) for gold in accepted), default=0.0)


def exact(answer: str, accepted: Sequence[str]) -> float:
    """1.0 for the same characters, or the same quantities and dates (5백만원 is 5,000,000원)."""
    return float(
        any(plain(answer) == plain(gold) or same_values(answer, gold) for gold in accepted)
    )


def interval(
    items: Sequence, statistic: Callable[[Sequence], float | None], seed: int = 0
) -> list[float] | None:
    """[value, low, high]: 95 % percentile bootstrap; None where there is nothing to measure."""
    value = statistic(items)
    if value is None:
        return None
    draw = random.Random(seed)
    values = []
    for _ in range(DRAWS):
        again = statistic(draw.choices(items, k=len(items)))
        if again is not None:
            values.append(again)
    values.sort()
    low, high = values[int(0.025 * len(values))], values[int(0.975 * len(values)) - 1]
    return [round(x, 4) for x in (value, low, high)]


def share(rows: Sequence[dict], of: str, what: str) -> float | None:
    """Mean of `what` over the rows where `of` holds; None when there are none."""
    chosen = [float(row[what]) for row in rows if row[of]]
    return sum(chosen) / len(chosen) if chosen else None


def scorecard(rows: Sequence[dict]) -> dict:
    """The whole table for one reader. A row has booleans `answerable`, `unanswerable`, `answered`,
    `abstained`, `cited` and numbers `f1`, `exact` (0 for an answerable question left alone).
    `citation` counts an answer to the unanswerable as wrongly cited; `citation_answerable` looks
    at answerable questions only."""
    return {
        "questions": len(rows),
        "answerable": sum(row["answerable"] for row in rows),
        "unanswerable": sum(row["unanswerable"] for row in rows),
        "answered": sum(row["answered"] for row in rows),
        "f1": interval(rows, lambda r: share(r, "answerable", "f1")),
        "exact": interval(rows, lambda r: share(r, "answerable", "exact")),
        "citation": interval(rows, lambda r: share(r, "answered", "cited")),
        "citation_answerable": interval(
            [row for row in rows if row["answerable"]], lambda r: share(r, "answered", "cited")
        ),
        "answered_share": interval(rows, lambda r: share(r, "answerable", "answered")),
        "abstained_share": interval(rows, lambda r: share(r, "unanswerable", "abstained")),
    }


def paired_difference(ours: Sequence[dict], theirs: Sequence[dict]) -> list[float] | None:
    """[mean, low, high] of the F1 difference on answerable questions, same questions drawn."""
    pairs = [(a["f1"] - b["f1"]) for a, b in zip(ours, theirs, strict=True) if a["answerable"]]
    return interval(pairs, lambda p: sum(p) / len(p) if p else None)


def risk_coverage(rows: Sequence[dict]) -> list[list[float]]:
    """[coverage, risk] as the gate opens: share of questions answered, and the share of those
    that are wrong (1 − F1, or 1 for answering the unanswerable)."""
    ranked = sorted(rows, key=lambda row: -row["confidence"])
    points, wrong = [], 0.0
    for n, row in enumerate(ranked, 1):
        wrong += 1 - row["would_f1"]
        points.append([round(n / len(ranked), 4), round(wrong / n, 4)])
    return points
