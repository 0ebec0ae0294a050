"""Search results put in order: from twenty candidates, the passage that fits the question.

BM25 finds; this decides. A candidate's fit is a weighted sum of how far the question is covered by
the passage and by its best line, how far the passage's headings are about the question (a heading
about another subject speaks against it), whether the kind of thing asked for («며칠» → a number of
days) is there, and what something was before, if that is asked. The weights were fitted on the dev
questions of examples/handbook by a listwise softmax and rounded to whole numbers (docs/log.md,
"Ranking"); fitted anew on three folders they came out alike.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from onsil.retrieval import asked_english
from onsil.retrieval.asked import asks_before, kinds_asked, says_before
from onsil.retrieval.bm25 import BM25, Word, asks_meaning, coverage, defined_in, marks, names, terms
from onsil.retrieval.concepts import concepts, ties
from onsil.retrieval.passages import LONGEST, Passage, sentences
from onsil.retrieval.values import fits

CANDIDATES, READ = 20, 5  # passages put in order, and given to a reader
WEIGHTS = {
    "search": 5.0,  # BM25 score over the best candidate's
    "passage": 2.0,  # question covered by passage and headings
    "line": 3.0,  # … by the best line with its heading
    "line_alone": 3.0,  # … by the best line without it
    "heading": 1.0,  # heading covered by the question
    "title": 1.0,  # title covered by the question
    "kind": 2.0,  # the kind of thing asked for is there
    "defines": 2.0,  # it defines what the question asks the meaning of
    "length": 1.0,  # a stub is a worse answer than a full article
    "changed": 2.0,  # it says what something was before, and that is asked
    "cover": -2.0,  # it stands under the document's title: dates and offices, not rules
}

# What is known by its number: 9층, 3실, R-22. An amount (50개, 3부) may be one no paper says.
NUMBERED = re.compile(r"(?<![\d.,])\d+\s?(?:층|호실|호|실|관|호선)(?![가-힣]*\d)|[A-Za-z]{1,4}-\d+")
ANNOUNCES = re.compile(r"다음\s*(?:표|각\s*호|과\s*같)")


@dataclass(frozen=True)
class Hit:
    """A candidate: its place in the index, its fit, and the line that covers most."""

    passage: Passage
    fit: float
    covered: float
    line: str


Search = Callable[..., list[Hit]]  # (index, question, limit=, without=) → the best first


def find(index: BM25, question: str, limit: int = READ, without: str | None = None) -> list[Hit]:
    """The passages that fit a question best, best first."""
    found = index.search(question, CANDIDATES, without)
    if not found:
        return []
    words, kind = index.words(question), "|".join(kinds_asked(question))
    defined, before = index.defined(question), asks_before(question)
    asked = frozenset(terms(question)) | ties(question)  # as a heading asks for them in turn
    asked |= concepts(question) & frozenset(c for word in words for c in word.concepts)
    hits = []
    for score, i in found:
        passage, at = index.passages[i], marks(index.passages[i].heading)
        lines = [(line, marks(line)) for line in sentences(passage.text) or [passage.text]]
        covers = [coverage(words, there | at) + told_apart(line, question) for line, there in lines]
        best = max(range(len(lines)), key=covers.__getitem__)
        parts = {
            "search": score / found[0][0],
            "passage": coverage(words, index.marks(i)),
            "line": min(1.0, covers[best]),
            "line_alone": max(coverage(words, there) for _, there in lines),
            "heading": about(index.words(passage.heading), asked),
            "title": about(index.words(passage.trail.split(" > ")[0]), asked),
            "kind": float(bool(kind and re.search(kind, passage.text))),
            "defines": float(i in defined),
            "length": min(1.0, len(passage.text) / LONGEST),
            "changed": float(before and says_before(passage.text)),
            "cover": float(bare(passage.heading) == bare(passage.trail.split(" > ")[0])),
        }
        fit = sum(WEIGHTS[name] * value for name, value in parts.items())
        hits.append(Hit(passage, fit, parts["passage"], lines[best][0]))
    return sorted(hits, key=lambda hit: -hit.fit)[:limit]


def told_apart(line: str, question: str) -> float:
    """What a line's form says: one that only announces a list answers nothing; the row whose range
    holds the question's amount, or the line that defines its term, answers it."""
    if ANNOUNCES.search(line) or asked_english.ANNOUNCES.search(line):
        return -1.0
    label, row, _ = line.partition(" · ")
    if row and (fit := fits(question, label)):
        return fit
    if not asks_meaning(question):
        return 0.0
    return 1.0 if any(names(question, term) for term in defined_in(line)) else 0.0


def bare(text: str) -> str:
    """Letters and digits alone, of one size."""
    return re.sub(r"\W", "", text).lower()


def about(words: list[Word], asked: frozenset[str]) -> float:
    """How far a heading is about what was asked; one without words says nothing either way."""
    return coverage(words, asked) if words else 0.5


def evidence(index: BM25, question: str, hits: list[Hit], passage: Passage) -> tuple[float, ...]:
    """What the gate judges by, of the passage that is cited: its fit, its lead over the mean of all
    found, how far it and how far its headings cover the question; whether its best line has the
    kind of thing asked for (1, or −1 where it lacks it), and 1 where no kind is asked for; (minus)
    how many of the question's words no document here has, and how many words there are: a long
    question is covered less by what answers it. Nothing fits a question about what is known by a
    number that no document here says (9층, R-22). The choice was made with whole folders left out
    (docs/log.md, "Three more houses")."""
    mine = next(hit for hit in hits if hit.passage is passage)
    lead = mine.fit - sum(hit.fit for hit in hits) / max(READ, len(hits))  # of few, none is near
    words, kind = index.words(question), "|".join(kinds_asked(question))
    unknown = sum(
        not any(index.known(term) for term in (*word.idf, *word.concepts)) for word in words
    )
    asked = (1.0 if re.search(kind, mine.line) else -1.0) if kind else 0.0
    asking = (asked, float(not kind), -float(unknown), float(len(words)))
    if not all(map(index.says, NUMBERED.findall(question))):
        return (0.0, 0.0, 0.0, 0.0, *asking)
    return (mine.fit, lead, mine.covered, coverage(words, marks(passage.trail)), *asking)
