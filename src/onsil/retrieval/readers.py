"""Readers: a question and the passages found for it become the best answer with its evidence.

A reader never abstains by itself; it returns features of how well the evidence fits, and the
calibrated gate in `answering.py` decides. Two readers have no trained part: `best_sentence`
returns the line that shares most with the question; `typed_sentence` cuts it down to the table
cell, or to the kind of thing asked for (a number with its unit, a date, who), by pattern.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from onsil.retrieval import asked_english
from onsil.retrieval.asked import DATE, NUMBER, kinds_asked
from onsil.retrieval.bm25 import BM25, EXPLAINED, Word, asks_meaning, coverage, marks, names
from onsil.retrieval.passages import Passage, cells_of, is_row
from onsil.retrieval.ranking import Hit, evidence

MEANING = re.compile(
    r"[\"“«「']([^\"”»」']{1,30})[\"”»」'](?:이란|란)\s*(.+?)(?:을|를)\s*"
    r"(?:말한다|뜻한다|말하며|말하고|말합니다)"
)
BARE = re.compile(r"[\d,.]*\d\s?[A-Za-z]{0,3}")
MARK = re.compile(r"[○●◯√✓VO]|전결")  # a cell that only marks its column
BEFORE, AFTER = 16, 12  # characters around a candidate that may tell what it is


@dataclass(frozen=True)
class Reading:
    """The proposed answer, the passage it stands in, and features (larger = better evidence)."""

    answer: str
    passage: Passage
    features: tuple[float, ...]


Reader = Callable[[BM25, str, list[Hit]], Reading | None]


def best_sentence(index: BM25, question: str, hits: list[Hit]) -> Reading | None:
    """The line of the best passage that covers most of the question."""
    if not hits:
        return None
    best = hits[0]
    return Reading(best.line, best.passage, evidence(index, question, hits, best.passage))


def typed_sentence(index: BM25, question: str, hits: list[Hit]) -> Reading | None:
    """The cell or the thing of the kind asked for whose surroundings share most with the
    question; without such a thing, the best line."""
    reading = best_sentence(index, question, hits)
    if reading is None:
        return None
    words, kinds = index.words(question), kinds_asked(question)
    text = meaning_asked(question, hits[0].line) or cell_asked(words, "|".join(kinds), hits[0].line)
    for kind in kinds:
        text = text or thing_asked(words, kind, reading.passage.text, reading.answer, question)
    if text is None:
        return reading
    return Reading(text, reading.passage, reading.features)


def meaning_asked(question: str, line: str) -> str | None:
    """Of «"X"란 … 을 말한다» or «X: …», what X is, where the question asks what something is, or
    names X and asks for nothing that is counted, dated or placed."""
    found = [*MEANING.findall(line), *asked_english.MEANING.findall(line)]
    asking = asks_meaning(question)
    if asking and len(found) == 1:
        return found[0][1]
    if not is_row(line) and (explained := EXPLAINED.match(line)):
        found.append((explained[1], line[explained.end() :]))
    if not asking and kinds_asked(question):
        return None
    return next((meaning for term, meaning in found if names(question, term)), None)


def cell_asked(words: list[Word], kind: str, line: str) -> str | None:
    """Of a table row, the cell under the column the question names, or the only one of the kind
    asked for; None when the line is no row or nothing tells which."""
    row = cells_of(line)
    row = [(column, column if MARK.fullmatch(cell) else cell) for column, cell in row]
    if kind:
        of_kind = [(column, cell) for column, cell in row if re.search(kind, cell)]
        if not of_kind and counts(kind):
            # A sheet says its unit once, above: its cells are numbers alone.
            of_kind = [(column, cell) for column, cell in row if BARE.fullmatch(cell)]
        row = of_kind
    if not row:
        return None
    fits = [coverage(words, marks(column)) for column, _ in row]
    best = max(range(len(row)), key=fits.__getitem__)
    return row[best][1] if len(row) == 1 or fits[best] > 0 else None


def counts(kind: str) -> bool:
    """Whether a pattern is of amounts, and not of dates or times."""
    english = (asked_english.COUNT, asked_english.MONEY, asked_english.SHARE, asked_english.SIZE)
    return kind.startswith(english) or (NUMBER in kind and not kind.startswith(DATE))


def thing_asked(words: list[Word], kind: str, text: str, line: str, question: str) -> str | None:
    """The match of `kind` whose surroundings cover most of the question; one in the best line
    goes first, and of equals the earliest. What the question itself says is no answer."""
    at = text.find(line)
    found = [
        (
            coverage(words, marks(text[max(0, m.start() - BEFORE) : m.end() + AFTER]))
            + (at >= 0 and at <= m.start() and m.end() <= at + len(line)),
            -m.start(),
            m.group().strip(),
        )
        for m in re.finditer(kind, text)
        if m.group().strip().lower() not in question.lower()
    ]
    return max(found)[2] if found else None
