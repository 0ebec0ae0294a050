"""Korean personal identifiers, found by shape and masked by name.

Numbers are read on a folded copy of the text (full-width digits and every kind of dash, dot and
space as ASCII, invisible characters out; never NFKC), and positions point into the original. What
`pii_patterns` asks of the words around is read sentence by sentence, counted in Hangul letters with
all labels and identifiers blanked, so masking changes no later decision: masking twice is masking
once. Masking is one way and no raw value is kept anywhere, the review list included. Names and
addresses need judgement and are left alone.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath

from onsil.corpus.pii_checks import digits_of
from onsil.corpus.pii_patterns import (
    AFTER,
    END,
    LABELS,
    LINE,
    MOST,
    NEAREST,
    REACH,
    RULES,
    START,
    WORDS,
    WORDY,
    Rule,
    spoken_kind,
)
from onsil.documents.types import Block, Document

# -- folding ------------------------------------------------------------------------------------

INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\u00ad\u034f\u180e\r]")
FOLD = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
FOLD |= {code: 0x30 + (code - 0x1D7CE) % 10 for code in range(0x1D7CE, 0x1D800)}
FOLD |= dict.fromkeys(map(ord, "‐‑‒–—―−⁃﹘﹣─ㅡー"), ord("-"))
FOLD |= dict.fromkeys(map(ord, "·・･⋅‧•ㆍ。․∙"), ord("."))
FOLD |= dict.fromkeys(map(ord, "\u00a0\u202f\u205f\u3000\t"), ord(" "))
FOLD |= dict.fromkeys(range(0x2000, 0x200B), ord(" "))
BLANK = "\x01"
WORTH = re.compile(r"[0-9@]|[공영] ?일 ?[공영]|[oO]1[oO]|[\[(][aA][tT][\])]")
# Digits set one by one: «9 0 0 1 0 1 - 1 …», also with a leading letter (M, P, L).
SPACED = re.compile(
    r"(?<![0-9A-Za-z])(?<!(?<![0-9.-])[0-9][ .-])[0-9MSRODGPL]"
    r"(?:(?: {1,2}| ?[-.] ?)[0-9A-Z](?![0-9A-Za-z])){8,24}+(?! {0,2}[-.]? ?[0-9](?![0-9]))"
)
LABEL = re.compile("|".join(map(re.escape, LABELS.values())))


@dataclass(frozen=True)
class Found:
    """A span of the original text, its kind, and the rule that found it or the doubt about it."""

    start: int
    end: int
    kind: str
    rule: str = ""


def fold(text: str) -> tuple[str, list[int]]:
    """The folded text, and for `unfold` where each invisible character was taken out."""
    folded = text.translate(FOLD)
    removed = [m.start() - n for n, m in enumerate(INVISIBLE.finditer(folded))]
    return (INVISIBLE.sub("", folded) if removed else folded), removed


def unfold(position: int, removed: list[int]) -> int:
    return position + bisect_right(removed, position)


# -- the words around ---------------------------------------------------------------------------

HANGUL = re.compile("[가-힣]")
SENTENCE_END = re.compile(r"(?<=[가-힣\x01)])[.!?](?=\s)|(?<=[a-z]{4})[.!?](?=\s)|\n[ \n]*")


class Surroundings:
    """Which kinds the words around a number speak for, by sentence and by Hangul letters.

    A number that opens its line also hears the line above («계좌번호:⏎110-…»). Where that line
    ends with a full stop, it is heard by a line that is no sentence itself, and forbids nothing.
    """

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def blanked(self) -> str:
        text = self.text
        for rule in WORDY:
            text = rule.shape.sub(lambda m: BLANK * len(m.group()), text)
        return text

    @cached_property
    def hangul(self) -> list[int]:
        return [m.start() for m in HANGUL.finditer(self.blanked)]

    @cached_property
    def words(self) -> tuple[list[int], list[int], list[str]]:
        found = list(WORDS.finditer(self.blanked))
        spans = [m.start() for m in found], [m.end() for m in found]
        return *spans, [spoken_kind(m) for m in found]

    @cached_property
    def breaks(self) -> tuple[list[int], list[bool], list[bool]]:
        """Where sentences end; which of these are new lines; which stand after a full stop."""
        found = list(SENTENCE_END.finditer(self.blanked))
        newline = [m.group().startswith("\n") for m in found]
        stopped = [
            n > 0
            and not newline[n - 1]
            and not self.blanked[found[n - 1].end() : m.start()].strip()
            for n, m in enumerate(found)
        ]
        return [m.start() for m in found], newline, stopped

    @cached_property
    def newlines(self) -> list[int]:
        return [m.start() for m in re.finditer("\n", self.blanked)]

    def _letters(self, start: int, end: int) -> int:
        return bisect_left(self.hangul, end) - bisect_left(self.hangul, start)

    def _alone(self, end: int) -> bool:
        """Whether no more than a name or two stands between `end` and the end of its line."""
        after = bisect_left(self.newlines, end)
        line = self.newlines[after] if after < len(self.newlines) else len(self.blanked)
        tail = self.blanked[max(end, line - 9) : line].rstrip(" .!?")
        return self._letters(end, line) <= LINE and not tail.endswith(("다", "요"))

    def around(self, start: int, end: int) -> tuple[str, str, set[str]]:
        """The nearest word's kind, the one that may forbid («other» close before), all in reach."""
        starts, ends, kinds = self.words
        breaks, newline, stopped = self.breaks
        here = bisect_right(breaks, start) - 1
        since = own = breaks[here] if here >= 0 else 0  # `own`: what may forbid begins here
        if here >= 0 and newline[here] and self._letters(since, start) <= 5:
            above = here - 1
            if stopped[here] and self._alone(end):
                above -= 1
            else:
                own = 0
            since = breaks[above] if above >= 0 else 0
        until = breaks[here + 1] if here + 1 < len(breaks) else end + 400
        reach: set[str] = set()
        nearest = forbids = ""
        first = bisect_right(ends, start) - 1
        for i in range(first, max(-1, first - MOST), -1):
            away = self._letters(ends[i], start)
            if starts[i] < since or away > REACH:
                break
            if starts[i] < own and kinds[i] == "other":
                continue
            nearest = nearest or kinds[i]
            if i == first and away <= NEAREST:
                forbids = nearest
            reach.add(kinds[i])
        last = bisect_left(starts, end)
        for i in range(last, min(len(starts), last + 2)):
            if starts[i] < until and self._letters(end, starts[i]) <= AFTER:
                nearest = nearest or kinds[i]
                reach.add(kinds[i])
        return nearest, forbids, reach


# -- finding ------------------------------------------------------------------------------------

ORDER = {kind: n for n, kind in enumerate(LABELS)}
CHECKED = {"card", "business", "corporation"}
LOOSE = (  # never masked; a person decides
    ("account", "shape of an account, no word", rf"{START}\d{{2,6}}(?:-\d{{2,8}}){{2,3}}{END}", ""),
    ("rrn", "birth date and sex", rf"{START}\d{{6}} ?- ?[1-8](?![0-9*]){END}", "rrn"),
    ("ip", "address of a machine", rf"{START}(?:\d{{1,3}}\.){{3}}\d{{1,3}}{END}", "ip"),
)
LOOSE_SHAPES = tuple((kind, why, re.compile(shape), word) for kind, why, shape, word in LOOSE)
MACHINE = re.compile(r"(?:\bIP\b|아이피|접속|로그)[^\n]{0,20}$", re.ASCII)
ROUNDS = 8


def _matches(text: str) -> Iterator[tuple[Rule, int, int, str]]:
    for rule in RULES:
        for match in rule.shape.finditer(text):
            number = "number" if "number" in rule.shape.groupindex else 0
            yield rule, *match.span(number), match.group(number)
    for match in SPACED.finditer(text):
        bare = match.group().replace(" ", "")
        for rule in RULES:
            if rule not in WORDY and rule.shape.fullmatch(bare):
                yield rule, match.start(), match.end(), bare


def _numbered(text: str, start: int, end: int) -> bool:
    """«제2024-123호» is the number of a document."""
    before, after = text[max(0, start - 2) : start].rstrip(), text[end : end + 2].lstrip()
    return before.endswith("제") and after.startswith("호")


def _pass(text: str, near: Surroundings) -> tuple[list[Found], list[Found]]:
    """The best non-overlapping candidates, and what looked like one and was refused."""
    accepted: list[tuple[int, Found]] = []
    refused: list[Found] = []
    for rule, start, end, value in _matches(text):
        if _numbered(text, start, end):
            continue
        nearest, forbids, reach = near.around(start, end)
        said = rule.kind in reach if rule.words == "word" else nearest == rule.kind
        bare = rule.kind == "rrn" and value.isdigit()
        vetoed = (bare or rule.words != "free") and forbids == "other"
        # A resident number is masked whatever the words say; other kinds yield to the word.
        boost = nearest == rule.kind and (rule.kind != "account" or rule.name == "groups")
        rank = -1 if rule.kind == "email" else ORDER[rule.kind] + (0 if boost else 20)
        rank = 15 if rule.kind == "rrn" else rank
        if rule.check(value, said) and not vetoed:
            accepted.append((rank, Found(start, end, rule.kind, rule.name)))
        elif rule.kind == "rrn" and rule.words == "free" and "-" in value:
            refused.append(Found(start, end, "rrn", "impossible date"))
        elif rule.kind in CHECKED and said:
            refused.append(Found(start, end, rule.kind, "checksum fails"))
        elif vetoed and rule.words != "word" and rule.check(value, said):
            refused.append(Found(start, end, rule.kind, "after another word"))
    kept: list[Found] = []
    starts: list[int] = []
    for _, one in sorted(accepted, key=lambda a: (a[0], a[1].start, -a[1].end)):
        i = bisect_left(starts, one.start)
        if (i == 0 or kept[i - 1].end <= one.start) and (
            i == len(kept) or one.end <= kept[i].start
        ):
            kept.insert(i, one)
            starts.insert(i, one.start)
    return kept, refused


def _loose(text: str, near: Surroundings) -> Iterator[Found]:
    for kind, why, shape, word in LOOSE_SHAPES:
        for match in shape.finditer(text):
            nearest, _, reach = near.around(match.start(), match.end())
            if kind == "account":
                fits = 10 <= len(digits_of(match.group())) <= 14 and not nearest
            elif kind == "ip":
                fits = bool(MACHINE.search(text[max(0, match.start() - 24) : match.start()]))
            else:
                fits = word in reach
            if fits and not _numbered(text, match.start(), match.end()):
                yield Found(match.start(), match.end(), kind, why)


def scan(text: str, beside: str = "") -> tuple[list[Found], list[Found]]:
    """What to mask and what is doubtful, in order. `beside` is text that stands with this one and
    may speak for it: the head of a table's column."""
    if not WORTH.search(text) and not any(ord(c) > 0xFF00 for c in text):
        return [], []
    lead = f"{beside}\n" if beside else ""
    folded, removed = fold(lead + text)
    found: list[Found] = []
    doubts: list[Found] = []
    folded = LABEL.sub(lambda m: BLANK * len(m.group()), folded)
    for _ in range(ROUNDS):  # each round sees what masking would leave, until it finds nothing
        near = Surroundings(folded)
        more, doubts = _pass(folded, near)
        found += more
        if not more:
            break
        pieces, last = [], 0
        for one in more:
            pieces += [folded[last : one.start], BLANK * (one.end - one.start)]
            last = one.end
        folded = "".join([*pieces, folded[last:]])
    doubts = _first_of_each([*doubts, *_loose(folded, Surroundings(folded))])
    return _placed(found, removed, len(lead)), _placed(doubts, removed, len(lead))


def _first_of_each(finds: list[Found]) -> list[Found]:
    """One doubt per place: the first rule that raised it."""
    ordered = sorted(enumerate(finds), key=lambda pair: (pair[1].start, pair[0]))
    kept: list[Found] = []
    for _, one in ordered:
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def _placed(finds: list[Found], removed: list[int], lead: int) -> list[Found]:
    placed = []
    for one in sorted(finds, key=lambda f: f.start):
        start, end = unfold(one.start, removed) - lead, unfold(one.end - 1, removed) + 1 - lead
        if start >= 0:
            placed.append(Found(start, end, one.kind, one.rule))
    return placed


def find(text: str, beside: str = "") -> list[Found]:
    """Identifiers in order, not overlapping; where two kinds fit, the word nearest decides."""
    return scan(text, beside)[0]


def mask(text: str, beside: str = "") -> tuple[str, Counter[str]]:
    """The text with a label in place of each identifier, and how many of each kind there were."""
    return replaced(text, find(text, beside))


def replaced(text: str, finds: list[Found]) -> tuple[str, Counter[str]]:
    parts, last, counts = [], 0, Counter()
    for found in finds:
        parts += [text[last : found.start], LABELS[found.kind]]
        counts[found.kind] += 1
        last = found.end
    return "".join([*parts, text[last:]]), counts


def find_in_path(path: str) -> list[Found]:
    """Identifiers in the names of a path; a folder's name may speak for what is in it."""
    found, start, before = [], 0, ""
    for name in path.split("/"):
        left, stem = name, name.rpartition(".")[0]
        for part in (len(stem), len(name)):  # «….7z» is no digit of a number, «@a.kr» no ending
            for one in find(left[:part], before):
                found.append(replace(one, start=start + one.start, end=start + one.end))
                left = left[: one.start] + BLANK * (one.end - one.start) + left[one.end :]
        start, before = start + len(name) + 1, _speaks(name)
    return sorted(found, key=lambda f: f.start)


# -- the review list ----------------------------------------------------------------------------


def shape(value: str) -> str:
    """What a value looked like and nothing of what it was: digits «#», letters «x», Hangul «가».

    No hash is kept either: a resident number has so few possibilities that all of them can be
    tried against a hash in minutes.
    """
    return "".join(map(_hidden, value))


def _hidden(character: str) -> str:
    if character.isdigit():
        return "#"
    if "가" <= character <= "힣":
        return "가"
    return "x" if character.isalnum() else character


ALL_LABELS = frozenset(LABELS.values())
SHORT = 30  # characters of a block or cell that can be the name of what follows


def _speaks(text: str) -> str:
    """`text` where it can name what stands beside it: short, and no identifier itself."""
    short = len(text) <= SHORT and not re.search(r"[\d@\[]", text)
    return text.strip() if short else ""


def _beside(rows: tuple[tuple[str, ...], ...], row: int, column: int) -> str:
    left = rows[row][column - 1] if column else ""
    head = rows[0][column] if row and column < len(rows[0]) else ""
    return " ".join(filter(None, map(_speaks, (left, head))))


class Masking:
    """One document masked. `reviews` has a row for each find and each doubt, with no raw value:
    path, block (None is the title, "path" the path; in the order given by `numbers`), cell, offset
    in characters of the unmasked block, kind, the rule or the doubt, the shape, and whether it was
    masked.
    """

    def __init__(self, path: str):
        self.path = path
        self.counts: Counter[str] = Counter()
        self.reviews: list[dict] = []

    def text(self, text: str, beside: str, **place: object) -> str:
        found, doubts = scan(text, beside)
        return self.masked(text, found, doubts, **place)

    def masked(self, text: str, found: list[Found], doubts: list[Found], **place: object) -> str:
        both = [(f, True) for f in found] + [(d, False) for d in doubts]
        for one, masked in sorted(both, key=lambda pair: pair[0].start):
            self.reviews.append(
                {
                    "path": self.path,
                    **place,
                    "offset": one.start,
                    "kind": one.kind,
                    "reason": one.rule,
                    "shape": shape(text[one.start : one.end]),
                    "masked": masked,
                }
            )
        hidden, counts = replaced(text, found)
        self.counts += counts
        return hidden

    def block(self, block: Block, number: int, before: str) -> Block:
        rows = tuple(
            tuple(
                self.text(cell, _beside(block.rows, r, c), block=number, cell=[r, c])
                for c, cell in enumerate(row)
            )
            for r, row in enumerate(block.rows)
        )
        return replace(block, text=self.text(block.text, before, block=number), rows=rows)


def mask_document(document: Document, numbers: list[int], shown: str) -> tuple[Document, Masking]:
    """The document masked and called `shown`, and what was done. A short block names the one after
    it, the head of a column its cells; `numbers` are the blocks' numbers in the document as it was
    read."""
    done = Masking(shown)
    done.masked(document.path, find_in_path(document.path), [], block="path")
    if shown != document.path and document.title == PurePosixPath(document.path).stem:
        title = PurePosixPath(shown).stem
    else:
        title = done.text(document.title, "", block=None)
    blocks, before = [], ""
    for block, number in zip(document.blocks, numbers, strict=True):
        masked = done.block(block, number, before)
        blocks.append(masked)
        if masked.text not in ALL_LABELS:  # two numbers under one name: both are named
            before = _speaks(block.text)
    return replace(document, path=shown, title=title, blocks=tuple(blocks)), done
