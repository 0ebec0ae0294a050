"""Headings that rules and notices write out in words, found wherever they came as paragraphs.

Statutes, company rules and contracts number their parts in the text itself: 편, 장, 절, 관 and the
article, 제12조(연차의 이월). Most files mark them with nothing but bold type, so the words decide.
An article's heading ends with its closing bracket; what follows on the line is its first
paragraph. A sentence that merely cites an article, 제3조(정의)에 따라, goes on with a particle or
with the next part of a citation and stays a sentence.

Plans, notices and requests number theirs by the rules of official letters instead: Ⅰ., then 1.,
then 가. Where neither the format nor an article says what the headings are, a line with a Roman
numeral is one, and so is a short numbered line over a line that begins with 가. Where one such is
found, the short lines that go on counting from 1. are headings too («1. 목적» over a sentence or a
table). Elsewhere they are as often items of a list, and headings only if they count from 1 to four
at least, each over a line that is no number and begins anew.

English papers write «Article 3 – Annual leave» or «Appendix B», or set the names of their parts in
capitals («2. THE SHIFTS», «OPENING HOURS»).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from onsil.documents.types import Block

LEVELS = {"편": 1, "장": 2, "절": 3, "관": 3, "조": 4}
PART = re.compile(r"제\s?\d+\s?(?P<unit>[편장절관])(?:의\s?\d+)?(?:\s+(?P<name>\S.*))?$")
ARTICLE = re.compile(
    r"""(?P<head>제\s?\d+\s?조(?:의\s?\d+)*\s?
        (?: \((?:[^()]|\([^()]*\))+\) | （[^（）]+） | \[[^\[\]]+\] | 【[^【】]+】 ))
        (?P<rest>.*)$""",
    re.VERBOSE | re.DOTALL,
)
CITATION = re.compile(  # after a space: the line goes on citing, so the article is no heading
    r"\s+(및|또는|내지|와|과|부터|까지|중|각\s?호|제\s?\d+\s?[조항호목]|단서|전단|후단|본문|에|의)(?![가-힣])"
    r"|\s+제\s?\d+\s?[조항호목]|\s*[,·ㆍ~∼]"
)
SUPPLEMENT = re.compile(r"부\s*칙(\s*[<(（\[].*)?$")
# [별표 1] 수수료, 별지 제2호서식(신청서): with a name or alone, and no particle after it.
SHEET = r"별\s?[표지]\s?(?:제?\s?\d+\s?호?(?:의\s?\d+)?)?\s?(?:서식)?\s?"
ANNEX = re.compile(rf"(?:[\[<(【〔]\s?{SHEET}[\]>)】〕].*|{SHEET}(?:[(（<].*)?)$")
# Article 3 – Annual leave; Section 4.2: Claims; Part II; Appendix B (Forms). What goes on without a
# sign between is a sentence: «Section 4 applies to …».
ENGLISH_PART = re.compile(
    r"(?:(?P<part>Part|Chapter|Schedule|Appendix|Annex)|Article|Section|Clause)\s"
    r"(?:\d{1,3}(?:\.\d+)*|[IVXLC]+|[A-Z])(?:\s?[.:–—-]\s+\S.*|\s\([^()]+\)|(?P<bare>[.:]?))$",
    re.IGNORECASE,
)
# OPENING HOURS, or after a number a single word: 5. BREAKS; no code, no address, no plate.
CAPITALS = re.compile(r"[A-Z][A-Z ,.'’&/():–—-]+(?:(?:19|20)\d\d)?")
COUNTED = re.compile(r"(?P<number>\d{1,2})(?:\s?[.)]\s*(?=[가-힣A-Z])|\s+(?=[A-Z]))")
ROMAN = re.compile(r"[Ⅰ-Ⅻ]{1,2}\s*\.?(?:\s+(?P<name>\S.*))?$")
NUMBERED = re.compile(r"\d{1,2}\s?\.\s+\S.*$")
LETTERED = re.compile(r"가\s?\.\s")
PAGE_NUMBER = re.compile(r"[\s.·…]\d{1,3}$")
STATED = re.compile(r"(?:제\s*목|건\s*명|Subject|SUBJECT)\s*[:：]\s*([^(\[\sa-z].{1,79})$")
STATED_WITHIN = 5  # lines: further down somebody else's title is quoted
DECORATION = "-–—~=·*※□■◇◆○●▶ \t"
SENTENCE = re.compile(r"([다요음함]\.|[.?!,])$")
FEWEST_PARTS, LONGEST_PART = 4, 30  # numbered lines to be more than a list; characters of each
LONGEST_TITLE = 40  # characters
LONGEST = 80  # characters; a longer line is a sentence even if it starts like a heading


def promote_headings(blocks: Iterable[Block]) -> list[Block]:
    """The same blocks with the headings of Korean rules and official letters marked as headings."""
    blocks = list(blocks)
    promoted = [part for block in blocks for part in _promote(block)]
    stated = any(block.kind == "heading" for block in blocks[1:])  # the first may be a title alone
    if stated or any(b.kind == "heading" and b.level == LEVELS["조"] for b in promoted):
        return promoted
    return list(_numbered(promoted))


def _numbered(blocks: list[Block]) -> Iterator[Block]:
    """The same with the parts of an official letter as headings: Ⅰ. of level 2, 1. of level 3."""
    lines: list[tuple[Block, str]] = []
    for block in blocks:
        said = block.text.split("\n") if block.kind == "paragraph" else [""]
        lines += [(block, line) for line in said]
    written = [line.strip() for _, line in lines]
    headings = _parts(written) or _plain_parts(written)
    waiting: list[str] = []
    for at, (block, line) in enumerate(lines):
        heading = headings.get(at)
        if at not in headings and block.kind == "paragraph":
            waiting.append(line)
        ends = at + 1 == len(lines) or lines[at + 1][0] is not block
        if waiting and (heading or ends or block.kind != "paragraph"):
            yield Block("paragraph", "\n".join(waiting))
            waiting = []
        if heading:
            yield heading
        elif block.kind != "paragraph":
            yield block


def _parts(lines: list[str]) -> dict[int, Block | None]:
    """Which lines are headings of an official letter; a numeral may have its name on the next line,
    which is then None: no line of its own."""
    found: dict[int, Block | None] = {}
    counted: list[int] = []
    lettered, last = False, 0
    for at, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=False)):
        if at in found:
            continue
        if roman := ROMAN.match(line):
            name = roman["name"] or following
            listed = PAGE_NUMBER.search(name)  # in a table of contents
            if name and len(name) <= LONGEST_TITLE and not (listed or SENTENCE.search(name)):
                last, apart = 0, not roman["name"]
                whole = f"{line} {following}" if apart else line
                found[at] = Block("heading", whole, LEVELS["장"])
                if apart:
                    found[at + 1] = None
            continue
        if len(line) > LONGEST_TITLE or SENTENCE.search(line) or not NUMBERED.match(line):
            continue
        number, over = int(re.split(r"\D", line)[0]), bool(LETTERED.match(following))
        if over or (number == last + 1 and not NUMBERED.match(following)):
            counted.append(at)
            lettered, last = lettered or over, number
    if lettered:
        found |= {at: Block("heading", lines[at], LEVELS["절"]) for at in counted}
    return found


def _plain_parts(lines: list[str]) -> dict[int, Block | None]:
    """Which lines are headings of a notice without 가.: those in capitals over a line that is not,
    and short numbered ones that count through."""
    found: dict[int, Block | None] = {}
    counted: list[int] = []
    korean = any("가" <= c <= "힣" for line in lines for c in line)  # names firms in capitals
    for at, (line, following) in enumerate(pairwise(lines)):  # a table is a line without text
        if len(line) > LONGEST or SENTENCE.search(line):
            continue
        numbered = COUNTED.match(line)
        if not korean and _capitals(line) and not _capitals(following):
            found[at] = Block("heading", line, LEVELS["절" if numbered else "장"])
        elif numbered and len(line) <= LONGEST_PART:
            anew = not (COUNTED.match(following) or following[:1].islower())
            if anew and int(numbered["number"]) == len(counted) + 1:
                counted.append(at)
    if len(found) == 1 and min(found) > 1:  # a cry in the middle of a letter
        found = {}
    if len(counted) >= FEWEST_PARTS:
        found |= {at: Block("heading", lines[at], LEVELS["절"]) for at in counted}
    return found


def _capitals(line: str) -> bool:
    """Whether a line is the name of a part in capitals: two words, or one after a number."""
    numbered = COUNTED.match(line)
    name = line[numbered.end() :] if numbered else line
    if len(name) > LONGEST or not CAPITALS.fullmatch(name):
        return False
    words = re.findall(r"[A-Z]{2,}", name)
    return len(words) > 1 or (numbered is not None and len(max(words, key=len, default="")) > 2)


def title_of(blocks: Sequence[Block]) -> str:
    """What a document that states no title is called: what a line above all headings says it is
    («제목: …»), else its first heading of the highest level, if the others there are numbered
    parts. Where it is one of many (a sheet among others) or a
    part itself (the first of every rule), the line above them all, unless that is a sentence or
    says something of the document («시행일: …»); else nothing."""
    first = next((i for i, block in enumerate(blocks) if block.kind == "heading"), len(blocks))
    above = [block.text.split("\n") for block in blocks[:first] if block.kind == "paragraph"]
    bare = [line for lines in above for one in lines if (line := one.strip(DECORATION))]
    for line in bare[:STATED_WITHIN]:
        if stated := STATED.match(line):
            return stated[1]
        if SENTENCE.search(line):
            break
    if first == len(blocks):
        return ""
    headings = [block for block in blocks if block.kind == "heading"]
    top = min(block.level for block in headings)
    highest = [block.text for block in headings if block.level == top]
    names = [name for name in highest if not _counted(name)]
    if len(names) == 1 and names[0] == highest[0]:
        return names[0]
    line = bare[0] if bare else ""
    named = len(line) <= LONGEST_TITLE and ":" not in line and not SENTENCE.search(line)
    return line if named else ""


def _counted(heading: str) -> bool:
    """Whether a heading is a part by number, 제1조(목적) or 1. 개요."""
    return bool(_heading(heading) or ROMAN.match(heading) or NUMBERED.match(heading))


def _promote(block: Block) -> Iterator[Block]:
    if block.kind != "paragraph":
        yield block
        return
    waiting: list[str] = []
    for line in block.text.split("\n"):
        parts = _heading(line)
        if parts is None:
            waiting.append(line)
            continue
        if waiting:
            yield replace(block, text="\n".join(waiting))
        heading, rest = parts
        yield heading
        waiting = [rest] if rest else []
    if waiting:
        yield replace(block, text="\n".join(waiting))


def _heading(line: str) -> tuple[Block, str] | None:
    """The heading a line opens with and the text after it, or None for ordinary text."""
    text = line.strip()
    if (SUPPLEMENT.match(text) or ANNEX.match(text)) and len(text) <= LONGEST:
        return Block("heading", text, LEVELS["장"]), ""
    if (part := PART.match(text)) and len(text) <= LONGEST and not SENTENCE.search(text):
        return Block("heading", text, LEVELS[part["unit"]]), ""
    named = ENGLISH_PART.match(text) if len(text) <= LONGEST else None
    if named and (named["bare"] is not None or not SENTENCE.search(text)):
        return Block("heading", text, LEVELS["장" if named["part"] else "조"]), ""
    article = ARTICLE.match(text)
    if article is None or len(article["head"]) > LONGEST:
        return None
    rest = article["rest"]
    if rest and ("가" <= rest[0] <= "힣" or CITATION.match(rest)):
        return None
    return Block("heading", article["head"].rstrip(), LEVELS["조"]), rest.strip()
