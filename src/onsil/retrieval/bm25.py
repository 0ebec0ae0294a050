"""Okapi BM25 over Korean-aware terms and concepts.

Korean glues particles to words, so a term is a pair of neighbouring syllables inside a word
(«연차를» → 연차, 차를): a two-syllable word is found whatever follows it, without an analyser.
Latin words are terms by their stems, numbers as they stand. Headings count as often as the text.
Beside its terms a text has concepts (concepts.py), which count once. Robertson & Zaragoza (2009),
k1 = 1.2, b = 0.75.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from onsil.models.subwords import WORD
from onsil.retrieval import asked_english
from onsil.retrieval.asked import HANGUL
from onsil.retrieval.concepts import concepts, concepts_at, other_side, ties, ties_at
from onsil.retrieval.passages import Passage
from onsil.retrieval.stems import stem

K1, B = 1.2, 0.75
FEWEST = 20  # passages a folder counts as at least: in one page no word is common or rare
# A shared concept against a shared term, in the search and in coverage; chosen on dev.
CONCEPT_FOUND, CONCEPT_COVERS = 1.5, 0.8
ASKING_FOUND = 0.1  # a word that only asks, in the search
# «X가 뭐예요», «X의 뜻», «X란»: the passage that defines X is wanted.
DEFINES = re.compile(
    r"뭔가|뭐예|뭐야|뭔지|뭔데|뭐죠|뭐지|뭔\s*(?:말|뜻|소리)|무엇|뜻|정의|이란|란\?|"
    r"말하나|말하는|말해|무슨|"
    r"어떤 (?:것|걸|제도)|라는 게|뭐 하는|뭘 하는|라는 건|라는 말|"
    r"(?:이|가|랑|과|와) 뭐가? ?(?:죠|지|다른)"
)
TERM = re.compile(r"[\"“«「']([^\"”»」']{2,30})[\"”»」'](?:이란|란|이라|라)")
# «공유 링크: 계정이 없는 사람도 …», «검열인 · 뜻: …»: a line that explains its first words.
EXPLAINED = re.compile(
    r"^[^\w\n]*(?:(?:[가-하]|\d{1,2})[.)]\s*)?([가-힣A-Za-z0-9][가-힣A-Za-z0-9 ]{1,29}?)"
    r"[^\w\n]*(?:: | · )",
    re.MULTILINE,
)
# Syllable pairs of asking («있나요», «어떻게», «얼마인가요»): they say nothing about the subject.
ASKING = """
있나 나요 인가 가요 니까 습니 무엇 엇인 어떻 떻게 어떤 알려 려주 주세 세요 얼마 마인 마예 하나 되나
는지 언제 제까 누가 누구 어디 디서 해야 야하 하는 입니 있는 경우 우에 대해 하면 되는 면되 며칠 칠까
까지 지가 부터 려면 려고 하려 싶은 은데 되죠 하죠 까요 예요 에요 뭔가 뭐예 뭐라 이에 거나 가능 능한
몇 뭐 뭘 좀 저 그 이 수 것 게 때 후 중
"""
STOP = frozenset(ASKING.split())
STOP_ENGLISH = frozenset(map(stem, asked_english.ASKING.split()))
# «zone A», «the IT desk»: in capitals inside a sentence a name, whatever word it looks like.
NAME = re.compile(r"(?<=\w )(?!I\b)[A-Z]{1,2}\b")
# A word that asks, whatever it ends in: 구인 of «누구인가요» and 제예 of «언제예요» are no words.
ASKS = re.compile(r"누구|누가|언제|어디|얼마|며칠|뭐|뭘|뭔|무엇|무슨|어떻게|어떤|어느|왜|몇")


def silent(question: str) -> frozenset[str]:
    """Terms that say nothing about the subject of a question, in its language."""
    if HANGUL.search(question):
        return STOP
    named = () if question.isupper() else map(str.lower, NAME.findall(question))
    return (STOP | STOP_ENGLISH) - set(map(stem, named))


def asks_meaning(question: str) -> bool:
    """Whether a question asks what something is or means."""
    return bool((DEFINES if HANGUL.search(question) else asked_english.DEFINES).search(question))


def defined_in(text: str) -> list[str]:
    """Terms that a text defines or explains: «"X"란 …», «"X" means …», «X: …»."""
    english = [term for term, _ in asked_english.MEANING.findall(text)]
    return [*TERM.findall(text), *english, *EXPLAINED.findall(text)]


def spelled(term: str) -> str:
    """A term as `heard` has it: Korean without its spaces, which are written or not; in other
    letters word by word (no Bay in bayonet)."""
    if HANGUL.search(term):
        return re.sub(r"\W", "", term).lower()
    return f" {' '.join(WORD.findall(term.lower()))} "


def heard(question: str) -> str:
    """A question to look for terms in: without its spaces, and then word by word."""
    low = question.lower()
    return " ".join((re.sub(r"\W", "", low), *WORD.findall(low), ""))


def names(question: str, term: str) -> bool:
    """Whether a question names a term."""
    return spelled(term) in heard(question)


def terms(text: str) -> list[str]:
    """Searchable terms of a text, in order, repeats kept."""
    return [term for word in WORD.findall(text.lower()) for term in _pairs(word)]


def _pairs(word: str) -> list[str]:
    if "가" <= word[0] <= "힣" and len(word) > 2:
        return [word[i : i + 2] for i in range(len(word) - 1)]
    return [stem(word) if "a" <= word[0] <= "z" else word]


@lru_cache(maxsize=1 << 12)  # the lines of what is found come again from question to question
def marks(text: str) -> frozenset[str]:
    """Terms, concepts and ties of a text: what a question's words can be met by."""
    return frozenset(terms(text)) | concepts(text) | ties(text)


def _whole(passage: Passage) -> str:
    return f"{passage.heading}\n{passage.trail}\n{passage.text}"


@dataclass(frozen=True)
class Word:
    """One word of a question: what it tells (the idf of its rarest term), its terms with their
    idf, its concepts."""

    tells: float
    idf: dict[str, float]
    concepts: frozenset[str]

    @cached_property
    def total(self) -> float:
        return math.fsum(self.idf.values())

    def met(self, there: frozenset[str]) -> float:
        """How much of the word is among `there`: 0 … 1."""
        shared = math.fsum(idf for term, idf in self.idf.items() if term in there)
        return max(shared / self.total, CONCEPT_COVERS * (not self.concepts.isdisjoint(there)))


class BM25:
    """An index over passages; `search` gives (score, position) pairs, best first."""

    def __init__(self, passages: list[Passage]):
        self.passages = passages
        counts = [Counter(terms(p.text) + 2 * terms(p.heading) + terms(p.trail)) for p in passages]
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        norm = K1 * (1 - B + B * lengths / max(1.0, lengths.mean() if len(lengths) else 1.0))
        places: dict[str, list[int]] = {}
        times: dict[str, list[int]] = {}
        for i, (count, passage) in enumerate(zip(counts, passages, strict=True)):
            for term, tf in count.items():
                places.setdefault(term, []).append(i)
                times.setdefault(term, []).append(tf)
            for name in sorted(concepts(_whole(passage)) | ties(_whole(passage))):
                places.setdefault(name, []).append(i)
        self.places = {term: np.array(found, dtype=np.int64) for term, found in places.items()}
        # What each occurrence of a term counts, before its idf; a concept counts once.
        self.saturated: dict[str, np.ndarray] = {}
        for term, found in times.items():
            tf, at = np.array(found, dtype=np.float64), self.places[term]
            self.saturated[term] = tf * (K1 + 1) / (tf + norm[at])
        self.factor = np.array([0.5 if p.superseded else 1.0 for p in passages])

        self.terms_defined: dict[str, list[int]] = {}
        for i, passage in enumerate(passages):
            for term in defined_in(passage.text):
                self.terms_defined.setdefault(spelled(term), []).append(i)

    def marks(self, i: int) -> frozenset[str]:
        """Terms and concepts of passage `i` with its headings."""
        return marks(_whole(self.passages[i]))

    def known(self, term: str) -> bool:
        return term in self.places

    def says(self, name: str) -> bool:
        """Whether a passage has this in so many letters, not as the end of a longer number."""
        shape = re.compile(
            r"(?<![\d.,])" + r"\s*".join(map(re.escape, name.replace(" ", ""))), re.I
        )
        return any(shape.search(_whole(passage)) for passage in self.passages)

    def idf(self, term: str) -> float:
        """How telling a term is; one that occurs nowhere tells most."""
        n, df = max(FEWEST, len(self.passages)), len(self.places.get(term, ()))
        return math.log(1 + (n - df + 0.5) / (df + 0.5))

    def search(
        self, question: str, limit: int = 5, without: str | None = None
    ) -> list[tuple[float, int]]:
        """Best passages for a question; `without` leaves one document out (to make questions
        that nothing here answers). Passages of superseded rules lose half their score; the one
        that defines what a question asks the meaning of gains as much."""
        scores, quiet = np.zeros(len(self.passages)), silent(question)
        for term in sorted(set(terms(question))):  # a set has another order in every process
            if term in self.saturated:
                weight = self.idf(term) * (ASKING_FOUND if term in quiet else 1)
                scores[self.places[term]] += weight * self.saturated[term]
        for name in sorted(concepts(question) | frozenset(map(other_side, ties(question)))):
            if name in self.places:
                scores[self.places[name]] += CONCEPT_FOUND * self.idf(name)
        scores *= self.factor
        for i in sorted(self.defined(question)):
            scores[i] *= 2.0
        found: list[tuple[float, int]] = []
        for i in np.argsort(-scores, kind="stable"):
            if len(found) == limit or scores[i] <= 0:
                break
            if self.passages[i].document != without:
                found.append((float(scores[i]), int(i)))
        return found

    def defined(self, question: str) -> set[int]:
        """Passages that define a term of a question that asks what something is."""
        if not asks_meaning(question):
            return set()
        said = heard(question)
        return {i for term, places in self.terms_defined.items() if term in said for i in places}

    def words(self, question: str) -> list[Word]:
        """The words of a question that say something about its subject."""
        low, found, quiet = question.lower(), [], silent(question)
        spans = concepts_at(low) + [(a, b, other_side(tie)) for a, b, tie in ties_at(low)]
        for match in WORD.finditer(low):
            if ASKS.match(match.group()):
                continue
            idf = {t: self.idf(t) for t in _pairs(match.group()) if t not in quiet}
            if idf:
                over = (c for a, b, c in spans if a < match.end() and b > match.start())
                found.append(Word(max(idf.values()), idf, frozenset(over)))
        return found


def coverage(words: list[Word], there: frozenset[str]) -> float:
    """Share of what the words tell that `there` (marks of a text) also has: 0 … 1."""
    told = math.fsum(word.tells for word in words)
    return math.fsum(word.tells * word.met(there) for word in words) / told if told else 0.0
