"""Headings that Korean rules write out in words, found wherever they came as paragraphs.

Statutes, company rules and contracts number their parts in the text itself: 편, 장, 절, 관 and the
article, 제12조(연차의 이월). Most files mark them with nothing but bold type, so the words decide.
An article's heading ends with its closing bracket; what follows on the line is its first
paragraph. A sentence that merely cites an article, 제3조(정의)에 따라, goes on with a particle or
with the next part of a citation and stays a sentence.

Left out: numbered lines such as `1. 목적`, which are as often list items as headings; they are
headings only where the format says so.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

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
SENTENCE = re.compile(r"([다요음함]\.|[.?!,])$")
LONGEST_TITLE = 40  # characters
LONGEST = 80  # characters; a longer line is a sentence even if it starts like a heading


def promote_headings(blocks: Iterable[Block]) -> list[Block]:
    """The same blocks with the headings of Korean rules marked as headings."""
    return [promoted for block in blocks for promoted in _promote(block)]


def title_of(blocks: Sequence[Block]) -> str:
    """What a document that states no title is called: its first heading. Where that is a numbered
    part, as the first of every rule is, the line above it all, unless that is a sentence or says
    something of the document («시행일: …»); else nothing."""
    first = next((i for i, block in enumerate(blocks) if block.kind == "heading"), None)
    if first is None:
        return ""
    if _heading(blocks[first].text) is None:
        return blocks[first].text
    above = (block.text.split("\n") for block in blocks[:first] if block.kind == "paragraph")
    line = next((line.strip() for lines in above for line in lines if line.strip()), "")
    named = len(line) <= LONGEST_TITLE and ":" not in line and not SENTENCE.search(line)
    return line if named else ""


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
    if SUPPLEMENT.match(text) and len(text) <= LONGEST:
        return Block("heading", text, LEVELS["장"]), ""
    if (part := PART.match(text)) and len(text) <= LONGEST and not SENTENCE.search(text):
        return Block("heading", text, LEVELS[part["unit"]]), ""
    article = ARTICLE.match(text)
    if article is None or len(article["head"]) > LONGEST:
        return None
    rest = article["rest"]
    if rest and ("가" <= rest[0] <= "힣" or CITATION.match(rest)):
        return None
    return Block("heading", article["head"].rstrip(), LEVELS["조"]), rest.strip()
