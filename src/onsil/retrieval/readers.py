"""Readers: a question and the passages found for it become the best answer with its evidence.

A reader never abstains by itself; it returns features of how well the evidence fits, and the
calibrated gate in `answering.py` decides. Two readers have no trained part: `best_sentence`
returns the sentence that shares most with the question; `typed_sentence` cuts it down to the kind
of thing asked for (a number with its unit, a date) by pattern.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from onsil.retrieval.bm25 import BM25, terms
from onsil.retrieval.passages import Passage, sentences


@dataclass(frozen=True)
class Reading:
    """The proposed answer, the passage it stands in, and features (larger = better evidence)."""

    answer: str
    passage: Passage
    features: tuple[float, ...]


Reader = Callable[[BM25, str, list[tuple[float, int]]], Reading | None]


# Not the tail of a longer number, nor the day of a date (3월 1일).
NUMBER = r"(?<![\d,.])(?<!월)(?<!월 )\d[\d,.]*\s*(?:만|천|억)?\s*"
BEFORE, AFTER = 16, 12  # characters around a candidate that may tell what it is
ASKED = [
    (
        r"며칠|몇\s*일|기한|언제까지",
        NUMBER + r"(?:영업일|근무일|일|주|개월|시간)(?:\s*(?:이내|전|까지))?",
    ),
    (r"얼마|금액|한도|비용|몇\s*원", NUMBER + r"(?:만\s*원|천\s*원|원|%|퍼센트)"),
    (r"몇\s*시|시간", r"\d{1,2}:\d{2}|\d{1,2}시(?:\s*\d{1,2}분)?|" + NUMBER + r"시간"),
    (r"몇\s*(?:명|인)", NUMBER + r"(?:명|인)"),
    (r"몇\s*년", NUMBER + r"년"),
    (r"몇\s*(?:개월|달)", NUMBER + r"개월"),
    (r"몇\s*(?:%|퍼센트|프로)|비율", NUMBER + r"(?:%|퍼센트)"),
    (r"언제|날짜|시행일", r"\d{4}\s*[.년-]\s*\d{1,2}\s*[.월-]\s*\d{1,2}일?|매[년월주]\s*\S+"),
    (r"몇|어느\s*정도", NUMBER + r"[가-힣%]{1,3}"),
]


def kind_asked(question: str) -> str | None:
    """The pattern of what a question asks for («며칠» → a number of days), or None."""
    return next((answers for asks, answers in ASKED if re.search(asks, question)), None)


def find(
    index: BM25, question: str, limit: int = 5, without: str | None = None
) -> list[tuple[float, int]]:
    """The best passages, BM25's choice put in a new order: by its score, by how much of the
    question the passage (twice) and its best sentence (twice) cover, and a little by whether the
    kind of thing asked for is there. Weights chosen on dev (docs/log.md, "retrieval")."""
    hits = index.search(question, limit, without)
    kind = kind_asked(question)
    ranked = []
    for score, i in hits:
        passage = index.passages[i]
        lines = sentences(passage.text)
        fit = score / hits[0][0]
        fit += 2 * index.coverage(question, f"{passage.trail}\n{passage.text}")
        fit += 2 * max(index.coverage(question, f"{passage.heading}\n{line}") for line in lines)
        fit += 0.2 * bool(kind and re.search(kind, passage.text))
        ranked.append((fit, i))
    return sorted(ranked, key=lambda pair: (-pair[0], pair[1]))


def evidence(
    index: BM25, question: str, hits: list[tuple[float, int]], passage: Passage, sentence: str
) -> tuple[float, ...]:
    """Lexical features of a reading: question covered by passage, by passage + headings, by
    sentence; lead of the best passage over the next; whether the kind of thing asked for is there
    (1), is not (−1), or none is asked for (0); how much the question says."""
    lead = (hits[0][0] - hits[1][0]) / hits[0][0] if len(hits) > 1 else 1.0
    kind = kind_asked(question)
    there = 0 if kind is None else 1 if re.search(kind, passage.text) else -1
    return (
        index.coverage(question, passage.text),
        index.coverage(question, f"{passage.trail}\n{passage.text}"),
        index.coverage(question, f"{passage.heading}\n{sentence}"),
        hits[0][0],
        lead,
        float(there),
        math.log1p(index.information(set(terms(question)))),
    )


def best_sentence(index: BM25, question: str, hits: list[tuple[float, int]]) -> Reading | None:
    """The sentence of the best passage that covers most of the question."""
    if not hits:
        return None
    passage = index.passages[hits[0][1]]
    sentence = max(
        sentences(passage.text), key=lambda s: index.coverage(question, f"{passage.heading}\n{s}")
    )
    return Reading(sentence, passage, evidence(index, question, hits, passage, sentence))


def typed_sentence(index: BM25, question: str, hits: list[tuple[float, int]]) -> Reading | None:
    """The thing of the kind the question asks for whose surroundings in the best passage share
    most with the question; without such a thing, the best sentence."""
    reading = best_sentence(index, question, hits)
    kind = kind_asked(question)
    if reading is None or kind is None:
        return reading
    text = reading.passage.text
    found = [
        (
            index.coverage(question, text[max(0, m.start() - BEFORE) : m.end() + AFTER])
            + (reading.answer in text and m.group() in reading.answer),
            -m.start(),
            m.group().strip(),
        )
        for m in re.finditer(kind, text)
    ]
    if not found:
        return reading
    return Reading(max(found)[2], reading.passage, reading.features)
