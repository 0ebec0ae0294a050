"""Objectives as samplers: from the ids of a text to what is read and what is to be written.

Each is a pure function of (ids, a seeded generator), so that a batch is the same in every run; none
loses or invents a token: what was taken out of a text and what is left make the text again
(`restored`). Ids of marks and sentinels come from the caller; a tokenizer keeps them as special
tokens.

Sources: prefix LM, Liu et al. 2018; fill in the middle, Bavarian et al. 2022; next sentence, Devlin
et al. 2019 (google-research/bert, create_pretraining_data.py); span corruption, Raffel et al. 2020
(random_spans_noise_mask); UL2 and UL2R, Tay et al. 2022.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Ids = list[int]


class Pair(NamedTuple):
    """What an encoder (or a prefix) reads, and what is to be written after it."""

    source: Ids
    target: Ids


def prefix_split(ids: Ids, draw: random.Random, written: float = 0.0) -> Pair:
    """A text cut in two: at a uniform place, or so that about the share `written` is to be written
    (a quarter in UL2's S, uniform between none and twice that share). Of a text of one token
    nothing is left to be read: a mark has to stand before it."""
    most = min(len(ids) - 1, max(1, round(2 * written * len(ids)))) if written else len(ids) - 1
    cut = len(ids) - draw.randint(1, max(1, most))
    return Pair(ids[:cut], ids[cut:])


class Fim(NamedTuple):
    """Ids of the marks before the beginning, the end and the middle, and after it."""

    prefix: int
    suffix: int
    middle: int
    end: int


def fill_in_the_middle(ids: Ids, marks: Fim, draw: random.Random, swapped: float = 0.5) -> Ids:
    """A text with its middle moved to the end, both cuts uniform between tokens; a share `swapped`
    gives the suffix first (SPM)."""
    a, b = sorted(draw.randint(0, len(ids)) for _ in range(2))
    before, middle, after = ids[:a], ids[a:b], ids[b:]
    if draw.random() < swapped:
        lead = [marks.prefix, marks.suffix, *after, marks.middle, *before]
    else:
        lead = [marks.prefix, *before, marks.suffix, *after, marks.middle]
    return [*lead, *middle, marks.end]


def span_lengths(total: int, spans: int, draw: random.Random) -> list[int]:
    """`total` cut into `spans` parts of at least one, every way equally likely."""
    cuts = sorted(draw.sample(range(1, total), spans - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def corrupt_spans(
    ids: Ids, sentinels: Sequence[int], draw: random.Random, rate: float = 0.15, mean: float = 3.0
) -> Pair:
    """Spans taken out: the source has a sentinel for each, the target each sentinel and its span,
    closed by one more sentinel. `rate` of the tokens in spans of `mean` on average; the text begins
    with a token that stays. A text too short for one span loses one token; raises ValueError when
    the spans need more sentinels than there are."""
    if len(ids) < 2:
        return Pair([sentinels[0]], [sentinels[0], *ids, sentinels[1]])
    taken = min(max(1, round(rate * len(ids))), len(ids) - 1)
    spans = max(1, min(round(taken / mean), len(ids) - taken))
    if spans >= len(sentinels):
        raise ValueError(f"{spans} spans need {spans + 1} sentinels; there are {len(sentinels)}")
    out, kept = span_lengths(taken, spans, draw), span_lengths(len(ids) - taken, spans, draw)
    source, target, at = [], [], 0
    for sentinel, keep, take in zip(sentinels, kept, out, strict=False):
        source += [*ids[at : at + keep], sentinel]
        target += [sentinel, *ids[at + keep : at + keep + take]]
        at += keep + take
    return Pair(source, [*target, sentinels[spans]])


def restored(pair: Pair, sentinels: Sequence[int]) -> Ids:
    """The text that `corrupt_spans` took apart."""
    known, spans, open_at = set(sentinels), {}, None
    for token in pair.target:
        if token in known:
            open_at = spans.setdefault(token, [])
        elif open_at is not None:
            open_at.append(token)
    return [x for token in pair.source for x in (spans[token] if token in known else [token])]


@dataclass(frozen=True)
class Denoiser:
    """One of UL2's: which mode it is, its mean span (0: write the rest of the text) and rate."""

    mode: str
    mean: float
    rate: float


R = (Denoiser("R", 3, 0.15), Denoiser("R", 8, 0.15))
S = (Denoiser("S", 0, 0.25),)
X = (Denoiser("X", 3, 0.5), Denoiser("X", 8, 0.5), Denoiser("X", 64, 0.15), Denoiser("X", 64, 0.5))
UL2 = {denoiser: 1 / 7 for denoiser in (*R, *S, *X)}
UL2R = {S[0]: 0.5} | dict.fromkeys(R, 0.25 / len(R)) | dict.fromkeys(X, 0.25 / len(X))
TAGS = {"R": "[NLU]", "X": "[NLG]", "S": "[S2S]"}


def denoise(
    ids: Ids,
    mixture: dict[Denoiser, float],
    tags: dict[str, int],
    sentinels: Sequence[int],
    draw: random.Random,
) -> tuple[Denoiser, Pair]:
    """One draw from a mixture of denoisers (`UL2` or `UL2R`); the source begins with the mode's
    tag. Spans that need more sentinels than there are become longer instead."""
    chosen = draw.choices(list(mixture), list(mixture.values()))[0]
    if chosen.mode == "S":
        pair = prefix_split(ids, draw, chosen.rate)
    else:
        fewest = round(chosen.rate * len(ids)) / (len(sentinels) - 1)
        pair = corrupt_spans(ids, sentinels, draw, chosen.rate, max(chosen.mean, fewest))
    return chosen, Pair([tags[chosen.mode], *pair.source], pair.target)


class SentencePair(NamedTuple):
    """BERT's input without its marks: two runs of segments, and whether the second is another
    document's."""

    first: Ids
    second: Ids
    random: bool


def sentence_pairs(
    documents: list[list[Ids]], room: int, draw: random.Random, short: float = 0.1
) -> list[SentencePair]:
    """Next-sentence pairs of at most `room` tokens from documents given as segments.

    Segments fill a chunk; it is cut at a random segment; the second half is another document's with
    probability ½, and always when the chunk has one segment. Segments that were not used then are
    put back. A share `short` of the chunks aims at a random shorter length.
    """
    found = []
    for number, document in enumerate(documents):
        target, chunk, size, i = _target(room, short, draw), [], 0, 0
        while i < len(document):
            chunk.append(document[i])
            size += len(document[i])
            if i == len(document) - 1 or size >= target:
                cut = draw.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                first = [t for segment in chunk[:cut] for t in segment]
                others = [n for n, d in enumerate(documents) if d and n != number]
                other = bool(others) and (len(chunk) == 1 or draw.random() < 0.5)
                if other:
                    elsewhere = documents[draw.choice(others)]
                    second = _elsewhere(elsewhere, target - len(first), draw)
                    i -= len(chunk) - cut
                else:
                    second = [t for segment in chunk[cut:] for t in segment]
                if first and second:
                    found.append(SentencePair(*_shortened(first, second, room, draw), other))
                target, chunk, size = _target(room, short, draw), [], 0
            i += 1
    return found


def _target(room: int, short: float, draw: random.Random) -> int:
    return draw.randint(2, room) if draw.random() < short else room


def _elsewhere(document: list[Ids], room: int, draw: random.Random) -> Ids:
    """Segments from a random place of a document, up to `room`."""
    found: Ids = []
    for segment in document[draw.randint(0, len(document) - 1) :]:
        found += segment
        if len(found) >= room:
            break
    return found


def _shortened(first: Ids, second: Ids, room: int, draw: random.Random) -> tuple[Ids, Ids]:
    """Tokens taken from the longer one, front or back, until both fit."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if draw.random() < 0.5 else -1)
    return first, second


def masked_words(words: Sequence[int | None], draw: random.Random, rate: float = 0.15) -> list[int]:
    """Positions to hide, whole words at a time: `words` gives each token's word (None: never
    hidden). Words are drawn until `rate` of the tokens is reached; one that would overshoot is
    passed over."""
    places: dict[int, list[int]] = {}
    for i, word in enumerate(words):
        if word is not None:
            places.setdefault(word, []).append(i)
    wanted = max(1, round(rate * sum(map(len, places.values()))))
    order, chosen = sorted(places), []
    draw.shuffle(order)
    for word in order:
        if len(chosen) + len(places[word]) <= wanted or not chosen:
            chosen += places[word]
    return sorted(chosen)
