"""Lines back into paragraphs, for formats that only know lines (plain text, PDF).

A line was wrapped if it is nearly as wide as its neighbours, ends no sentence, and the next line
starts nothing of its own (an article, a numbered item, a bullet). Korean may be wrapped between
words or inside one, and the page does not say which: where the file keeps the space before the
break that space decides; otherwise the rest of the document does, by whether the two halves occur
elsewhere as one word. A lone particle or ending at the start of a line belongs to the line above.

Left out: tables and columns drawn with spaces; their lines stay lines.
"""

import re
import unicodedata
from collections.abc import Iterable

WRAPPED_AT = 0.78  # of the usual full width: a shorter line ended because its paragraph did
COLUMNS = re.compile(r"\S(?: {3,}|\t+)\S")
NARROWEST = 24  # columns; below this, lines are labels and cells, not wrapped prose
LONGEST_WRAP = 130  # columns; a text whose lines are longer was never wrapped by hand
STARTS = re.compile(
    r"""제\s*\d+\s*[편장절관조]        # 제3장, 제12조
      | 부\s*칙\s*([<(\[（].*)?$
      | 제\s*목\s*[:：]
      | [\[<【]?\s*(별표|별지|붙임|참고)\s*(제?\s*\d|[\]>】])
      | [①-⑳㉠-㉻⑴-⒇ⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩ]
      | \(?\d{1,2}[.)](?!\d)\s* | \d{1,2}(\.\d{1,2})+\.?\s
      | \(?[가나다라마바사아자차카타파하][.)]\s?
      | [□■○●◯◎◇◆▢▣▪▫▶▷►•‣∙·ㆍ※＊*❍◦⦁☐☑✓➢⇒→―–-]\s? """,
    re.VERBOSE,
)
HEADING = re.compile(r"(제\s*\d+\s*[편장절관](의\s*\d+)?(\s.*)?|부\s*칙.*)$")
SENTENCE_END = re.compile(r"""([.!?。:：;]|[다요까]\.|\.\s?["'”’)\]」』>])$""")
SOFT_HYPHEN = re.compile("[\u00ad\ufffe\x02]")  # a hyphen that exists only because of a break
SOFT_END = re.compile("[\u00ad\ufffe\x02]$")
PARTICLE = re.compile(  # never a word of its own
    r"은|는|을|를|의|에|와|과|도|로|으로|에서|에게|까지|부터|한다|하다|된다|이다|다"
    r"|하여야|하여|하고|하는|된|될|됨|며|면"
)


def width(text: str) -> int:
    """Columns on a page: a Hangul or Han character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def full_width(lines: Iterable[str]) -> int:
    """How wide a full line is here: the width only one line in twenty exceeds."""
    parts = (part.strip() for line in lines for part in SOFT_HYPHEN.split(line))
    widths = sorted(width(part) for part in parts if part)
    return widths[round(0.95 * (len(widths) - 1))] if widths else 0


def words(lines: Iterable[str]) -> frozenset[str]:
    """Words seen whole, away from line ends: evidence for how a broken word is spelled."""
    return frozenset(word.strip(".,()") for line in lines for word in line.split()[1:-1])


def continues(line: str, following: str, full: int) -> bool:
    """Whether `following` is the rest of the paragraph that `line` belongs to."""
    line, following = line.strip(), following.strip()
    if not line or not following or STARTS.match(following) or HEADING.match(line):
        return False
    if full < NARROWEST or SENTENCE_END.search(line):
        return False
    if COLUMNS.search(line) and COLUMNS.search(following):  # a table drawn with spaces
        return False
    *before, last = SOFT_HYPHEN.split(line)
    broken = bool(before) and " " not in last  # the rest of a hyphenated word was drawn up here
    return broken or width(last) >= WRAPPED_AT * full


def join(line: str, following: str, known: frozenset[str], keeps_spaces: bool) -> str:
    """The two lines as one, with a space only where there was one."""
    head, tail = line.rstrip(), following.lstrip()
    if not head or not tail:
        return head + tail
    if SOFT_END.search(head):
        return head[:-1] + tail
    if head[-1] == "-" and head[-2:-1].isalpha() and tail[0].islower() and tail[0].isascii():
        return head[:-1] + tail
    if line[-1].isspace():
        return head + " " + tail
    if not (_hangul(head[-1]) and _hangul(tail[0])):
        return head + " " + tail
    if keeps_spaces:
        return head + tail
    first, rest = head.rsplit(None, 1)[-1], tail.split(None, 1)[0].strip(".,()」")
    whole = (first + rest).strip(".,()")
    return head + ("" if whole in known or PARTICLE.fullmatch(rest) else " ") + tail


def keeps_spaces(lines: list[str]) -> bool:
    """Whether the file writes the space that precedes a break (many do after Hangul)."""
    ends = [line for line in lines if line.strip() and _hangul(line.rstrip()[-1])]
    return sum(line[-1].isspace() for line in ends) > 0.2 * len(ends) if ends else False


def paragraphs(lines: list[str]) -> list[str]:
    """The paragraphs of plain text. Blank lines part them; a wrapped line joins the next."""
    full = full_width(lines)
    if full > LONGEST_WRAP:
        return [line.strip() for line in lines if line.strip()]
    known, spaced = words(lines), keeps_spaces(lines)
    found: list[list[str]] = []  # of each, what is done with, and the last words
    previous = ""
    for line in lines:
        if found and continues(previous, line, full):
            last = found[-1].pop() + previous[len(previous.rstrip()) :]
            joined = join(last, line, known, spaced)
            word = joined.rfind(" ", 0, len(joined) - len(line.lstrip())) + 1
            found[-1] += [joined[:word], joined[word:]]
        elif line.strip():
            found.append([line.strip()])
        previous = line
    return ["".join(parts).strip() for parts in found]


def _hangul(c: str) -> bool:
    return "가" <= c <= "힣"
