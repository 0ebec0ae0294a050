"""Documents to passages: the unit that is found, read and cited.

A passage is what stands under one heading, cut at sentence ends when it is long; its heading is
the innermost one (the citation), and the whole path of headings helps to find it. A table row
becomes a sentence of its own, «row · column: cell», so that a cell can be found by its labels.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from onsil.documents.types import Block, Document

LONGEST = 450
MARKS = "가나다라마바사아자차카타파하"
# A point ends no sentence in a date («2025. 3. 4.») or after the mark of a list («1.», «가.»).
SENTENCE = re.compile(
    rf"(?<=[.!?。])(?<!\d\.)(?<!\s[{MARKS}]\.)(?<!\A[{MARKS}]\.)\s+|(?<=\d\.)\s+(?=[A-Z])"
)
DATE = r"(\d{4})\s*[.년/-]\s*(\d{1,2})\s*[.월/-]\s*(\d{1,2})"
# «시행일자: 2025. 3. 1.», «부칙 <2025. 3. 1.>»; «2025. 3. 1. 개정», «2025년 3월 1일부터 시행한다».
IN_FORCE = re.compile(r"(?:(?:시행|개정|제정)일?자?\s*[:：]?\s*\(?|부\s?칙\s*[<(〈\[])\s*" + DATE)
FROM_THEN = re.compile(
    DATE
    + r"\s*[.일]?\s*(?:,?\s*(?:일부|전부)?\s?(?:개정|제정)|(?:부터|자로)?\s*시행(?!령|규칙|세칙))"
)
PLANNED = re.compile(r"\s*[.일]?\s*예정")  # after a date that may never come
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = rf"({'|'.join(MONTHS)})[a-z]*"
APPLIES = r"\b(?:effective|in force|applies)(?: (?:date|from|as of|since|on))*\s?:?\s*"
IN_FORCE_ENGLISH = re.compile(
    rf"{APPLIES}(?:{DATE}|(\d{{1,2}})(?:st|nd|rd|th)? {MONTH},? (\d{{4}})|"
    rf"{MONTH} (\d{{1,2}})(?:st|nd|rd|th)?,? (\d{{4}}))",
    re.IGNORECASE,
)
# A date in brackets or of amendment, a year, a version, 개정 at the end of a word, and 구, 신, 최종
# alone: the 구 of 구매 and the 신 of 신규 name no edition, nor does the Final of Final Examination.
EDITION = re.compile(
    rf"[\[(（<]\s*(?:시행|개정|제정)?일?\s*:?\s*{DATE}\s*[.일]?\s*(?:(?:일부|전부)?\s?개정|시행|제정)?\s*[\])）>]|"
    r"(?<!\d)(?:19|20)\d\d\s*[.년_-]\s*\d{1,2}(?:\s*[.월_-]\s*\d{1,2})?\s*[.월일]?"
    r"(?=\s*(?:(?:일부|전부)?\s?개정|시행|제정))|"
    r"(?<!\d)(?:19|20)\d\d년?(?!\d)|(?<![a-z])v\d+(?:\.\d+)*(?![a-z\d])|"
    r"제?\d+\s?(?:차\s?(?:전부|일부)?개정|판)(?![가-힣])|"
    r"(?<![a-z])(?:revised|amended|final|(?:rev|revision|edition)\.?[\s_]?\d*)"
    r"(?=[\s_()\[\]\d.v]*$)|"
    r"(?:(?:전부|일부)?개정|(?<![가-힣])(?:구|신|최종|현행|시행|제정))"
    r"(?:판|본|안|\s?(?:예정|전|후))?(?![가-힣])",
    re.IGNORECASE,
)
REPLACED = re.compile(r"개정\s?전|(?<![가-힣])(?:구(?![가-힣])|구(?:판|본))|폐지")  # in a title

CODE = re.compile(r"(?!(?:19|20)\d\d$)[A-Za-z]{0,4}[-_.]?\d[\d./:_-]*")  # no bare year
NOTHING = re.compile(r"[-–—]*")  # an empty cell, or one struck out
NAMED, LONGEST_LABEL = re.compile(r"[가-힣]{2}|[A-Za-z]{3}"), 30

Day = tuple[int, int, int]
NEVER, FOREVER = (0, 0, 0), (9999, 12, 31)
EXCEPTION = re.compile(r"(?:(?<=[.\s)])|^)(?:다만|단)\s?,|\b[Hh]owever,")


@dataclass(frozen=True)
class Passage:
    """`document` path, innermost `heading`, `trail` of all headings with the title, `text`."""

    document: str
    heading: str
    trail: str
    text: str
    superseded: bool = False


def reading_text(passage: Passage) -> str:
    """What a reader sees of a passage: its innermost headings, then its text."""
    return f"{' > '.join(passage.trail.split(' > ')[-2:])}\n{passage.text}"


def is_row(line: str) -> bool:
    """Whether a line is one of `table_lines`."""
    return " · " in line and ": " in line


def sentences(text: str) -> list[str]:
    """Sentences and lines; a row of a table is one, whatever its cells say."""
    parts = ([line] if is_row(line) else SENTENCE.split(line) for line in text.split("\n"))
    return [s.strip() for some in parts for s in some if s.strip()]


def in_force(document: Document) -> Day:
    """The latest date a document says it came into force on; (0, 0, 0) when it names none."""
    return max(_days(document), default=NEVER)


def _days(document: Document) -> list[Day]:
    """Every date a document says it came into force on. What an exception says («다만, 제5조는 …
    시행한다») is no date of the whole."""
    rows = (": ".join(row) for block in document.blocks for row in block.rows)
    text = "\n".join([document.title, *(block.text for block in document.blocks), *rows])
    said = [one for pattern in (IN_FORCE, FROM_THEN) for one in pattern.finditer(text)]
    said = [one for one in said if not PLANNED.match(text, one.end())]
    found = [_day(one.groups()) for one in said if not excepted(text, one.start())]
    return found + [_day(one.groups()) for one in IN_FORCE_ENGLISH.finditer(text)]


def excepted(text: str, at: int) -> str:
    """The sentence or line that stands at a place up to there, when it is an exception
    («다만, …», «However, …»); "" when it is none."""
    begun = text[:at].rpartition("\n")[2]
    for mark in EXCEPTION.finditer(begun):
        after = begun[mark.start() :]
        if len(SENTENCE.split(after)) == 1:
            return after
    return ""


def _day(said: tuple[str | None, ...]) -> Day:
    """Year, month, day of «2025-03-01», «1 March 2025» or «March 1, 2025»."""
    first, second, third = (part for part in said if part)
    if first.isalpha():
        first, second = second, first
    if second.isalpha():
        return int(third), 1 + MONTHS.index(second.casefold()), int(first)
    return int(first), int(second), int(third)


def rule_name(document: Document) -> str:
    """The title without its edition: two versions of one rule share it."""
    return re.sub(r"[\W_]+", "", EDITION.sub(" ", document.title)).lower()


def passages_of(documents: tuple[Document, ...], today: Day = FOREVER) -> list[Passage]:
    """Every passage in document order; `superseded` are those of a rule with a newer version in
    force, and where `today` is told, of a version that comes into force later."""
    dates = [(rule_name(d), _days(d)) for d in documents]
    since = [max((day for day in days if day <= today), default=NEVER) for _, days in dates]
    last = [max(days, default=NEVER) for _, days in dates]
    newest: dict[str, Day] = {}
    for (name, _), day in zip(dates, since, strict=True):
        newest[name] = max(newest.get(name, NEVER), day)
    # A version to come tells the dates of the one in force too.
    plain = {n for (n, _), a, b in zip(dates, since, last, strict=True) if a == b == newest[n]}
    kept = {rule_name(d) for d in documents if not REPLACED.search(d.title)}
    found = []
    for document, (name, _), day, latest in zip(documents, dates, since, last, strict=True):
        now = newest[name]
        old = NEVER not in (now, latest) and (day < now or (latest > day and name in plain))
        old = old or (name in kept and REPLACED.search(document.title) is not None)
        found += [
            Passage(document.path, heading, trail, text, old)
            for heading, trail, text in _sections(document)
        ]
    return found


def _sections(document: Document) -> Iterator[tuple[str, str, str]]:
    trail: list[tuple[int, str]] = []
    lines: list[str] = []
    for block in (*document.blocks, Block("heading", "", 0)):
        if block.kind != "heading":
            lines += table_lines(block.rows) if block.kind == "table" else sentences(block.text)
            continue
        heading = trail[-1][1] if trail else document.title
        path = " > ".join([document.title, *(t for _, t in trail if t != document.title)])
        for text in _packed(lines):
            yield heading, path, text
        lines = []
        trail = [(level, text) for level, text in trail if level < block.level]
        trail.append((block.level, block.text))


def _cut(line: str) -> Iterator[str]:
    """A line in pieces of at most `LONGEST` characters, cut between words; a row of a table
    between cells where it can be, each piece with the row's label."""
    label = line.partition(" · ")[0] + " · " if is_row(line) else ""
    label = label if 3 * len(label) <= LONGEST else ""  # a long one would fill every piece
    marks = (" / ", " ") if label else (" ",)
    while len(line) > LONGEST:
        places = (line.rfind(mark, len(label) + 1, LONGEST) for mark in marks)
        at = next((at for at in places if at > 0), LONGEST)
        yield line[:at]
        line = label + line[at:].removeprefix(" / ").lstrip()
    yield line


def _packed(lines: list[str]) -> Iterator[str]:
    """Lines joined up to `LONGEST` characters; a longer line is cut."""
    held = ""
    for line in lines:
        for piece in _cut(line):
            if held and len(held) + len(piece) > LONGEST:
                yield held
                held = ""
            held = f"{held}\n{piece}" if held else piece
    if held:
        yield held


def table_lines(rows: tuple[tuple[str, ...], ...]) -> list[str]:
    """«label · column: cell / column: cell» for each row under the heads, which name columns; one
    line a row, whatever line breaks and strokes its cells have. A cell that was merged across
    columns is said once, one that is struck out («-») not at all."""
    rows = tuple(tuple(" ".join(cell.split()).replace(" / ", "/") for cell in row) for row in rows)
    if len(rows) < 2:
        return [" / ".join(row) for row in rows]
    heads = 2 if two_heads(rows) else 1
    names = [" ".join(dict.fromkeys(column)) for column in zip(*rows[:heads], strict=False)]
    label = label_column(rows[heads:])
    lines = []
    for row in rows[heads:]:
        pairs = list(zip(names, row, strict=False))
        apart = [
            pair
            for i, pair in enumerate(pairs)
            if i != label and NOTHING.fullmatch(pair[1]) is None and (not i or pair != pairs[i - 1])
        ]
        cells = [f"{name}: {cell}" if name else cell for name, cell in apart]
        if len(set(row)) == 1:
            lines.append(row[0])
        elif row:
            lines.append(f"{row[label]} · {' / '.join(cells)}")
    return [line for line in lines if line]


def label_column(rows: tuple[tuple[str, ...], ...]) -> int:
    """Which column says what a row is about: the first; where that holds codes, serial numbers or
    dates, the first that names each row."""
    columns = list(zip(*rows, strict=False))
    if not columns or 2 * sum(map(bool, map(CODE.fullmatch, columns[0]))) <= len(rows):
        return 0
    for i, column in enumerate(columns):
        named = [cell for cell in column if NAMED.search(cell) and len(cell) <= LONGEST_LABEL]
        if 2 * len(named) > len(rows) and 5 * len(set(column)) >= 4 * len(rows):
            return i
    return 0


def two_heads(rows: tuple[tuple[str, ...], ...]) -> bool:
    """Whether the second row names columns too: one head spans several of them, and the first
    column's spans both rows."""
    if len(rows) < 3 or rows[0][0] != rows[1][0] or not rows[0][0]:
        return False
    pairs = zip(rows[0], rows[0][1:], rows[1], rows[1][1:], strict=False)
    return any(a == b and c != d for a, b, c, d in pairs)


def cells_of(line: str) -> list[tuple[str, str]]:
    """(column, cell) of a line that `table_lines` wrote; empty for any other line."""
    label, dot, rest = line.partition(" · ")
    if not dot or not label:
        return []
    parts = [part.partition(": ") for part in rest.split(" / ")]
    return [(column, cell) for column, colon, cell in parts if colon]
