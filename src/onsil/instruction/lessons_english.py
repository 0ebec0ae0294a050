"""What the rule teacher asks of an English sentence: each amount, date or doer in it."""

import random
import re
from collections.abc import Iterator

from onsil.retrieval.asked_english import CLOCK, DATE, MONEY, SHARE, SIZE, SPAN

# What a span of text is, its type, and how a person asks for it. What comes first keeps its place.
KINDS = (
    (MONEY, "number", ("how much", "what does it cost", "how much money")),
    (DATE, "date", ("when", "what date", "by when")),
    (CLOCK, "date", ("what time", "when")),
    (SPAN, "number", ("how long", "how much time", "how many {}")),
    (SHARE, "number", ("what percentage", "how much")),
    (SIZE, "number", ("how much", "how many {}")),
)
DOER = re.compile(
    r"\b(?P<who>(?:the )?[\w-]+(?: [\w-]+)? (?:manager|officer|team|committee|desk|department))"
    r" (?:must|shall|will|may|can|decides|approves|checks|keeps)\b",
    re.IGNORECASE,
)
RATE = re.compile(r"an? ", re.IGNORECASE)  # «40 hours a week» does not last a week
# «Article 3 – Annual leave» is about annual leave.
PART = re.compile(
    r"^\W*(?:(?i:article|section|part|chapter|clause|appendix|annex|schedule)\s"
    r"(?:\d{1,3}(?:\.\d+)*|[IVX]+|[A-Z])(?=[\s.:–—-]|$)|(?:\d{1,2}(?:\.\d+)*|[IVX]+|[A-Z])[.)]|"
    r"\d{1,2}(?:\.\d+)*\s(?=[A-Z]))[\s.:–—-]*"
)


def questions_about(
    sentence: str, topic: str, draw: random.Random
) -> Iterator[tuple[str, str, str]]:
    """(question, answer, kind): the words around an answer, some of them dropped, after the words
    that ask for it."""
    taken: list[tuple[int, int]] = []
    for pattern, kind, asks in KINDS:
        for match in re.finditer(pattern, sentence):
            if any(match.start() < end and start < match.end() for start, end in taken):
                continue
            if RATE.match(match.group()):
                continue
            taken.append(match.span())
            said = match.group().strip()
            unit = said.lstrip("0123456789., ") or said
            asking = draw.choice(asks).format(unit.split()[-1].lower())
            before, after = sentence[: match.start()].split(), sentence[match.end() :].split()
            near = [*before[-draw.randint(3, 8) :], *after[: draw.randint(1, 5)]]
            yield _asked(asking, near, topic, draw), said, kind
    if found := DOER.search(sentence):
        near = sentence[found.end("who") :].split()[:8]
        yield _asked("who", near, topic, draw), found["who"], "who"


def _asked(asking: str, near: list[str], topic: str, draw: random.Random) -> str:
    rate = draw.choice((0.0, 0.2, 0.4, 0.6))
    words = [word for word in near if draw.random() >= rate] or near
    about = topic.lower() if draw.random() < 0.6 else ""
    said = re.sub(r"[^\w\s'’%£$€-]", "", " ".join([*words, about])).strip()
    return f"{asking} {said}".strip() + draw.choice(("?", ""))
