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
from onsil.retrieval.asked import DATE, HANGUL, NUMBER, WHO, kinds_asked
from onsil.retrieval.bm25 import BM25, EXPLAINED, Word, asks_meaning, coverage, marks, names
from onsil.retrieval.passages import Passage, cells_of, excepted, is_row
from onsil.retrieval.ranking import Hit, evidence

MEANING = re.compile(
    r"[\"“«「']([^\"”»」']{1,30})[\"”»」'](?:이란|란)\s*(.+?)(?:을|를)\s*"
    r"(?:말한다|뜻한다|말하며|말하고|말합니다)"
)
BARE = re.compile(r"[\d,.]*\d\s?[A-Za-z]{0,3}")
MARK = re.compile(r"[○●◯√✓VO]|전결")  # a cell that only marks its column
UNIT = re.compile(r"\s*\([^)]{1,8}\)$")  # «식비(원)»
PERSON = re.compile(
    r"(?:자|장|강사|교수|교사|의사|간사|위원|님|이름|성명|성함|[Nn]ame|[Oo]fficer)$"
)
TEAM = re.compile(r"(?:어느|어떤)\s*(?:팀|부서)|\b(?:team|department|unit)\b", re.IGNORECASE)
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
    if bool(HANGUL.search(question)) != bool(HANGUL.search(reading.passage.text)):
        kinds = ()  # one language's patterns find any number in the other
    line = hits[0].line
    text = meaning_asked(question, line) or cell_asked(words, "|".join(kinds), line, question)
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


def cell_asked(words: list[Word], kind: str, line: str, question: str = "") -> str | None:
    """Of a table row, the cell of the kind asked for under the column the question names, or the
    only one of the kind. A column of amounts that the question calls by name, or of persons where
    it asks who, is meant whatever its cell says. None when the line is no row or nothing tells
    which."""
    row = cells_of(line)
    row = [(column, column if MARK.fullmatch(cell) else cell) for column, cell in row]
    fits = [coverage(words, marks(column)) for column, _ in row]
    of_kind = [i for i, (_, cell) in enumerate(row) if not kind or re.search(kind, cell)]
    if kind and not of_kind and counts(kind):
        # A sheet says its unit once, above: its cells are numbers alone.
        of_kind = [i for i, (_, cell) in enumerate(row) if BARE.fullmatch(cell)]
    meant = [i for i, (column, _) in enumerate(row) if called(column, kind, question, fits[i])]
    among = [i for i in of_kind if i in meant] or meant or of_kind
    best = max(among, key=fits.__getitem__, default=None)
    if best is None or (len(among) > 1 and not fits[best]):
        return None
    return row[best][1]


def called(column: str, kind: str, question: str, fit: float) -> bool:
    """Whether a question that asks for this kind means the column by its head alone."""
    if counts(kind):
        return names(question, UNIT.sub("", column))
    person = any(who in kind for who in (WHO, asked_english.WHO)) and not TEAM.search(question)
    return bool(fit) and person and PERSON.search(column) is not None


def counts(kind: str) -> bool:
    """Whether a pattern is of amounts, and not of dates or times."""
    english = (asked_english.COUNT, asked_english.MONEY, asked_english.SHARE, asked_english.SIZE)
    return kind.startswith(english) or (NUMBER in kind and not kind.startswith(DATE))


def thing_asked(words: list[Word], kind: str, text: str, line: str, question: str) -> str | None:
    """The match of `kind` whose surroundings cover most of the question; one in the best line
    goes first, one of an exception that the question does not name last, and of equals the
    earliest. What the question itself says is no answer."""
    at = text.find(line)
    found = [
        (
            coverage(words, marks(text[max(0, m.start() - BEFORE) : m.end() + AFTER]))
            + (at >= 0 and at <= m.start() and m.end() <= at + len(line))
            - 2 * beside(words, text, m.start()),
            -m.start(),
            m.group().strip(),
        )
        for m in re.finditer(kind, text)
        if not _says(question, m.group().strip())
    ]
    return max(found)[2] if found else None


def _says(question: str, value: str) -> bool:
    """Whether a value stands in a question; 5일 does not stand in 15일."""
    return re.search(rf"(?<!\d){re.escape(value)}", question, re.IGNORECASE) is not None


def beside(words: list[Word], text: str, at: int) -> bool:
    """Whether what stands at a place belongs to an exception («다만, 국외 출장은 14일 …») of which
    the question says nothing that the rule before it does not say too."""
    exception = excepted(text, at)
    if not exception:
        return False
    rule = text[: at - len(exception)]
    return coverage(words, marks(exception) - marks(rule)) == 0
