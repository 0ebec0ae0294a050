"""Readers: a question and the passages found for it become the best answer with its evidence.

A reader never abstains by itself; it returns features of how well the evidence fits, and the
calibrated gate in `answering.py` decides. Two readers have no trained part: `best_sentence`
returns the sentence that shares most with the question; `typed_sentence` cuts it down to the kind
of thing asked for (a number with its unit, a date) by pattern.
"""

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


def evidence(
    index: BM25, question: str, hits: list[tuple[float, int]], passage: Passage, sentence: str
) -> tuple[float, ...]:
    """Five lexical features: question covered by passage, by passage + headings, by sentence;
    BM25 per unit of question information; lead of the best passage over the next."""
    information = index.information(set(terms(question))) or 1.0
    lead = (hits[0][0] - hits[1][0]) / hits[0][0] if len(hits) > 1 else 1.0
    around = f"{passage.trail}\n{passage.text}"
    return (
        index.coverage(question, passage.text),
        index.coverage(question, around),
        index.coverage(question, f"{passage.heading}\n{sentence}"),
        hits[0][0] / information,
        lead,
    )


def best_sentence(index: BM25, question: str, hits: list[tuple[float, int]]) -> Reading | None:
    """Among the passages found, the sentence that covers most of the question; the passage's own
    rank counts as much as its words."""
    best: tuple[float, str, Passage] | None = None
    for score, i in hits[:5]:
        passage = index.passages[i]
        for sentence in sentences(passage.text):
            fit = score / hits[0][0] + index.coverage(question, f"{passage.heading}\n{sentence}")
            if best is None or fit > best[0]:
                best = (fit, sentence, passage)
    if best is None:
        return None
    _, sentence, passage = best
    return Reading(sentence, passage, evidence(index, question, hits, passage, sentence))


NUMBER = r"\d[\d,.]*\s*(?:만|천|억)?\s*"
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


def typed_sentence(index: BM25, question: str, hits: list[tuple[float, int]]) -> Reading | None:
    """`best_sentence`, cut to the first thing of the kind the question asks for."""
    reading = best_sentence(index, question, hits)
    if reading is None:
        return None
    for asks, answers in ASKED:
        if re.search(asks, question):
            if found := re.search(answers, reading.answer):
                return Reading(found.group().strip(), reading.passage, reading.features)
            break
    return reading
