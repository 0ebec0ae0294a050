"""The rule teacher: questions, answers and citations read off the documents' own structure.

Office rules say in their structure what is worth asking: a definition article, a row and a column
of a table, a number with its unit in a sentence under a heading. Each becomes a question whose
answer is a range of characters in a passage. Nothing is invented: the question is the sentence
with the answer replaced by the word that asks for it, then worn down (words dropped, endings
changed) the way people type. Lessons follow their document's split, so held-out documents teach
nothing.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from onsil.corpus import load_corpus
from onsil.instruction.lessons_english import PART, questions_about
from onsil.instruction.particles import agreeing, followed
from onsil.lineage import Artifact, Run, stage
from onsil.retrieval.bm25 import BM25, coverage, marks
from onsil.retrieval.concepts import ENGLISH, KOREAN, concepts_at, other_words
from onsil.retrieval.passages import Passage, is_row, passages_of, reading_text, sentences

MOST_LESSONS, PER_PASSAGE = 20_000, 4
NUMBER = r"\d[\d,.]*(?:만|천|억)?\s?"
# What a span of text is, and how a person asks for it. First match wins, so longer units lead.
KINDS = [
    (r"\d{4}[.년-]\s?\d{1,2}[.월-]\s?\d{1,2}일?", ("언제", "며칟날", "날짜가 언제")),
    (r"\d{1,2}:\d{2}|\d{1,2}시(?:\s?\d{1,2}분)?", ("몇 시", "언제")),
    (NUMBER + r"(?:만\s?원|천\s?원|원)", ("얼마", "금액이 얼마", "몇 원", "한도가 얼마")),
    (
        NUMBER + r"(?:영업일|근무일|일)(?:\s(?:이내|전))?",
        ("며칠", "언제", "며칠 이내", "기한이 언제"),
    ),
    (NUMBER + r"(?:개월|주일|주)(?:\s(?:이내|전))?", ("몇 개월", "얼마 동안", "기간이 얼마")),
    (NUMBER + r"시간(?:\s(?:이내|전))?", ("몇 시간", "얼마")),
    (NUMBER + r"년(?!\s?\d)", ("몇 년", "얼마 동안", "기간이 얼마")),
    (NUMBER + r"(?:명|인)(?![가-힣])", ("몇 명", "몇 인")),
    (NUMBER + r"(?:퍼센트|%)", ("몇 퍼센트", "몇 %", "비율이 얼마")),
    (NUMBER + r"(?:회|차례|번)(?![가-힣])", ("몇 번", "몇 회")),
    (NUMBER + r"(?:자리|자|개|점|급|매|부|층|대)(?![가-힣])", ("몇 개", "몇")),
]
KIND_PATTERN = re.compile("|".join(f"(?P<k{i}>{pattern})" for i, (pattern, _) in enumerate(KINDS)))
DEFINITION = re.compile(
    r"[\"“«「']([^\"”»」']{2,30})[\"”»」'](?:이란|란|이라 함은|라 함은)\s*"
    r"(.{6,200}?)(?:을|를)\s*말한다"
)
MEANS = re.compile(r"[\"“']([^\"”']{2,30})[\"”'] (?:means|refers to) (.{6,200}?)(?:[.;]|$)")
HANGUL, WORD = re.compile("[가-힣]"), re.compile(r"[가-힣]|[A-Za-z]{2}|^(?:19|20)\d\d$")
COUNTS = re.compile(r"no\.?|연번|순번", re.IGNORECASE)
ASK_CELL = {  # of a row and a column
    "ko": (
        "{} {} 얼마인가요?",
        "{} {}",
        "{}의 {}은/는?",
        "{} {} 알려 주세요",
        "{}은/는 {}이/가 어떻게 되나요?",
    ),
    "en": ("{} {}", "{} {}?", "What is {1} for {0}?", "{1} of {0}?", "How much is {1} for {0}?"),
}
ASK_TOPIC = {
    "ko": ("{}은/는 어떻게 하나요?", "{} 절차", "{} 기준이 뭐예요?", "{}에 대해 알려 주세요"),
    "en": ("What about {}?", "{} rules", "How does {} work?", "Tell me about {}"),
}
ASK_TERM = (
    "{}이란/란?",
    "{}의 뜻은 무엇인가요?",
    "{}은/는 무엇을 말하나요?",
    "{} 정의",
    "{}이/가 뭐예요?",
)
DOER = re.compile(
    r"([가-힣]{2,12}(?:장|부서|위원회|담당자|책임자|관리자|감사|팀|실|과|부))(?:이|가|은|는)\s"
)
# How a statement ends, and how the question made from it does.
ENDINGS = [
    (r"(?:하여야|해야)\s?한다\.?$", ("해야 하나요?", "해야 해요?", "해야 되나요", "해야 하죠?")),
    (r"할 수 있다\.?$", ("할 수 있나요?", "할 수 있어요?", "가능한가요?", "가능해요")),
    (r"(?:으로|로) 한다\.?$", ("인가요?", "예요?", "이죠?", "")),
    (r"한다\.?$", ("하나요?", "해요?", "하죠?", "하는지 알려 주세요", "합니까?")),
    (r"된다\.?$", ("되나요?", "돼요?", "되죠?", "됩니까?")),
    (r"([가-힣])다\.?$", (r"\1나요?", r"\1는지 알려 주세요", r"\1죠?")),
    (r"[\s.,;]*$", ("인가요?", "예요?", "이죠?", "", " 알려 주세요", "?")),
]


@dataclass(frozen=True)
class Lesson:
    """A question on `passage` (its trail and text joined): `answer` is (first, last + 1) character,
    None when this passage does not answer it."""

    question: str
    passage: str
    answer: tuple[int, int] | None
    document: str
    heading: str
    kind: str
    split: str


def _worn(words: list[str], keep: set[str], draw: random.Random) -> str:
    """A question as typed: some words dropped (never those in `keep`), the ending changed."""
    rate = draw.choice((0.0, 0.2, 0.4, 0.6))
    left = [w for w in words if w in keep or draw.random() >= rate]
    text = " ".join(left).strip(" ,;①②③④⑤⑥⑦⑧⑨")
    ending, choices = next((e, c) for e, c in ENDINGS if re.search(e, text))
    return said_otherwise(re.sub(ending, draw.choice(choices), text, count=1), draw)


def said_otherwise(question: str, draw: random.Random) -> str:
    """The question with some of its words as somebody outside the rule book would say them."""
    others = other_words(KOREAN if HANGUL.search(question) else ENGLISH)
    rate, told, last, other = draw.choice((0.0, 0.5, 0.9)), "", 0, ""
    for start, end, name in concepts_at(question):
        words = others.get(name, [])
        if start < last or question[start:end] not in words or draw.random() >= rate:
            continue
        told += followed(other, question[last:start])
        other, last = draw.choice(words), end
        told += other
    return told + followed(other, question[last:])


def _from_sentence(
    sentence: str, heading: str, draw: random.Random
) -> Iterator[tuple[str, str, str]]:
    """(question, answer, kind) for everything askable in one sentence."""
    topic = topic_of(heading)
    if found := MEANS.search(sentence):
        term, meaning = found.groups()
        ask = draw.choice(("What does {} mean?", "What is {}?", "definition of {}", "{} meaning"))
        yield ask.format(term), meaning, "definition"
    if not HANGUL.search(sentence):
        for question, answer, kind in questions_about(sentence, topic, draw):
            yield said_otherwise(question, draw), answer, kind
        return
    for match in KIND_PATTERN.finditer(sentence):
        index = next(i for i in range(len(KINDS)) if match.group(f"k{i}"))
        asking = draw.choice(KINDS[index][1])
        around = sentence[: match.start()] + f" {asking} " + sentence[match.end() :]
        words = around.split()
        at = words.index(asking.split()[0])
        near = words[max(0, at - draw.randint(3, 8)) : at + draw.randint(1, 5)]
        question = _worn(near, set(asking.split()), draw)
        if draw.random() < 0.6:
            question = f"{topic} {question}"
        yield question, match.group().strip(), "number" if index else "date"
    if found := DEFINITION.search(sentence):
        term, meaning = found.groups()
        ask = draw.choice(ASK_TERM)
        yield agreeing(ask.format(term)), meaning, "definition"
    if found := DOER.search(sentence):
        words = sentence[found.end() :].split()[:8]
        who = draw.choice(("누가", "어느 부서가", "담당은 누구인가요", "누구한테"))
        yield f"{_worn([*words], set(), draw)} {who}?", found.group(1), "who"


def lessons_of(passage: Passage, split: str, draw: random.Random) -> Iterator[Lesson]:
    """Every lesson one passage gives, each with its answer's place in `reading_text`."""
    read = reading_text(passage)
    lead = len(read) - len(passage.text)

    def lesson(question: str, answer: str, near: int, kind: str) -> Iterator[Lesson]:
        at = read.find(answer, lead + near)
        if at >= 0 and (kind == "definition" or len(question.split()) > 1):
            place = (at, at + len(answer))
            yield Lesson(question, read, place, passage.document, passage.heading, kind, split)

    spoken = "ko" if HANGUL.search(passage.heading + passage.text) else "en"

    def asked(templates: dict[str, tuple[str, ...]], *names: str) -> str:
        question = draw.choice(templates[spoken]).format(*names)
        return said_otherwise(agreeing(question), draw)

    lines = sentences(passage.text)
    for line in lines:
        near = passage.text.find(line)
        if is_row(line):
            label, cells = line.split(" · ", 1)
            for cell in cells.split(" / "):
                column, _, value = cell.partition(": ")
                if value and _names(column) and _names(label):
                    at = near + line.find(cell) + len(column)
                    question = asked(ASK_CELL, label, column)
                    yield from lesson(question, value.strip(), at, "table")
            continue
        for question, answer, kind in _from_sentence(line, passage.heading, draw):
            yield from lesson(question, answer, near, kind)
    if lines and len(lines[0]) > 15 and " · " not in lines[0]:
        topic = topic_of(passage.heading)
        if _names(topic) and topic != Path(passage.document).stem:
            yield from lesson(asked(ASK_TOPIC, topic), lines[0], 0, "procedure")


def _names(text: str) -> bool:
    """Whether a label says what something is: a number that is no year, the head of a column that
    only counts rows, or a sheet's error does not."""
    return bool(WORD.search(text)) and not text.startswith("#") and not COUNTS.fullmatch(text)


def _elsewhere(lesson: Lesson, index: BM25) -> Lesson | None:
    """The same question on the best passage of another document: not answered there."""
    hits = index.search(lesson.question, limit=1, without=lesson.document)
    return _unanswered(lesson.question, index.passages[hits[0][1]], lesson.split) if hits else None


def _not_said(lesson: Lesson, passage: Passage, index: BM25) -> Lesson | None:
    """What `lesson` asks, asked about the subject of another passage that does not say it: the
    question people ask most often in vain."""
    tail = " ".join(lesson.question.split()[-3:])
    said = coverage(index.words(tail), marks(reading_text(passage)))
    if said > 0.4:
        return None
    return _unanswered(f"{topic_of(passage.heading)} {tail}", passage, lesson.split)


def _unanswered(question: str, passage: Passage, split: str) -> Lesson:
    read = reading_text(passage)
    return Lesson(question, read, None, passage.document, passage.heading, "none", split)


def topic_of(heading: str) -> str:
    """«제12조(연차의 이월)» → 연차의 이월."""
    if not HANGUL.search(heading):
        return PART.sub("", heading)
    return re.sub(r"^제\d+조(?:의\d+)?\s*", "", heading).strip("() ")


@stage(version=16)
def write_lessons(
    *,
    corpus: Artifact,
    seed: int = 0,
    rounds: int = 4,
    most: int = MOST_LESSONS,
    out: Path,
    run: Run,
) -> dict:
    """lessons.jsonl: `rounds` wordings of every askable thing; for every other one the same
    question on another document, and for every other one about a passage that does not say it."""
    held = load_corpus(corpus)
    passages = [p for p in passages_of(held.documents) if not p.superseded]
    indexes = {
        split: BM25([p for p in passages if held.split[p.document] == split])
        for split in ("train", "heldout")
    }
    # A large corpus has more to ask than a budget can teach: every n-th passage, spread evenly.
    stride = max(1, len(passages) * rounds * PER_PASSAGE // most)
    counts: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    with (out / "lessons.jsonl").open("w", encoding="utf-8") as f:
        for round_ in range(rounds):
            for number in range(round_ % stride, len(passages), stride):
                passage = passages[number]
                draw = random.Random(f"{seed}-{round_}-{number}")
                split = held.split[passage.document]
                for lesson in lessons_of(passage, split, draw):
                    made: list[Lesson | None] = [lesson]
                    if draw.random() < 0.5:
                        made.append(_elsewhere(lesson, indexes[split]))
                    if draw.random() < 0.5:
                        other = draw.choice(indexes[split].passages)
                        made.append(_not_said(lesson, other, indexes[split]))
                    for one in made:
                        if one and (one.question, one.passage) not in seen:
                            seen.add((one.question, one.passage))
                            counts[f"{one.split}/{one.kind}"] += 1
                            f.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
    return {"lessons": dict(sorted(counts.items()))}


def load_lessons(folder: Path | Artifact) -> list[Lesson]:
    with (folder / "lessons.jsonl").open(encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return [Lesson(**(r | {"answer": tuple(r["answer"]) if r["answer"] else None})) for r in rows]
