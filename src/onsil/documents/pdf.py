"""PDF to paragraphs, through PDFium's text layer.

A PDF stores glyphs at places; paragraphs have to be won back. PDFium gives lines in reading order;
lines that repeat on most pages and page numbers are taken off, then a line joins the next by the
rules of `lines` and by what the page shows: a change of type size or a wider gap ends a paragraph,
and a paragraph may go on over the page. Rules written out in words (제3조) become headings later,
in `structure`; type size alone makes none, for no two makers of PDF agree on it.

Left out: tables (their cells come as lines), scanned pages without a text layer, and files that
need a password.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from onsil.documents.lines import SOFT_HYPHEN, continues, full_width, join, keeps_spaces, words
from onsil.documents.types import Block
from onsil.errors import OnsilError

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

PAGE_NUMBER = re.compile(
    r"[-–—\s\[(<]*(?:p(?:age)?\.?\s*)?\d{1,4}(?:\s*(?:/|of|중)\s*\d{1,4})?\s*(?:쪽|페이지)?[-–—\s\])>]*$"
    r"|[-–—\s]*(?=[ivxl])(?:x[lc]|l?x{0,3})(?:i[vx]|v?i{0,3})[-–—\s]*$",
    re.IGNORECASE,
)
POOR_TITLE = re.compile(
    r"untitled|제목\s?없음|문서\s?\d*$|document\d*$|microsoft "
    r"|.*\.(hwpx?|docx?|pptx?|xlsx?|pdf|tex|indd)$"
    r"|.*[\ufffd\x00-\x1f]",
    re.IGNORECASE,
)
LONGEST_TITLE = 120
EDGE = 2  # lines at the top and bottom of a page that may be running headers and footers
NEAR = 6  # lines above and below that say how wide a full line is here
WIDE_GAP = 1.45  # times the usual distance between lines
OTHER_SIZE = 1.12  # times the type size
MOST_PAGES = 20_000


@dataclass(frozen=True)
class Line:
    """One line: its text (a trailing space kept), where it starts and ends in height, type size.

    PDFium draws the rest of a hyphenated word up to its beginning, so a line may end lower.
    """

    text: str
    top: float
    end: float
    size: float


def read_pdf(data: bytes) -> tuple[str, list[Block]]:
    """The metadata title if it reads like one, and the paragraphs."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise _encrypted() from error
        raise
    try:
        if len(document) > MOST_PAGES:
            raise _too_long(len(document))
        title = _title(document)
        pages = [_lines(document[i]) for i in range(len(document))]
    finally:
        document.close()
    if not any(line.text.strip() for page in pages for line in page):
        raise _no_text(len(pages))
    return title, [Block("paragraph", text) for text in _paragraphs(_without_running(pages))]


def _title(document: "PdfDocument") -> str:
    title = (document.get_metadata_value("Title") or "").strip()
    return "" if len(title) > LONGEST_TITLE or POOR_TITLE.match(title) else title


def _lines(page: "PdfPage") -> list[Line]:
    from pypdfium2 import raw

    textpage = page.get_textpage()
    try:
        lines, start = [], 0
        text = textpage.get_text_range()
        exact = len(text) == textpage.count_chars()  # else indexes and characters part ways
        for part in text.split("\n"):
            body = part.rstrip("\r")
            first = start + len(body) - len(body.lstrip())
            top, end, size = 0.0, 0.0, 0.0
            if exact and body.strip():
                top = textpage.get_charbox(first, loose=True)[1]
                last = start + len(body.rstrip()) - 1
                end = textpage.get_charbox(last, loose=True)[1]
                size = raw.FPDFText_GetFontSize(textpage.raw, first)
            lines.append(Line(body.replace("\u00a0", " ").replace("\x00", ""), top, end, size))
            start += len(part) + 1
        return lines
    finally:
        textpage.close()
        page.close()


def _without_running(pages: list[list[Line]]) -> list[list[Line]]:
    """Pages without page numbers and without the lines that most pages share at their edges."""
    trimmed = [[line for line in page if line.text.strip()] for page in pages]
    said: dict[str, dict[int, list[int]]] = {}
    for number, page in enumerate(trimmed):
        for line in page[:EDGE] + page[-EDGE:]:
            said.setdefault(_key(line), {}).setdefault(number, _numbers(line))
    shared = {
        key
        for key, by_page in said.items()
        if key and len(pages) >= 3 and len(by_page) > len(pages) / 2 and _returns(by_page)
    }
    # A bare number at an edge counts the pages, or it is a figure: of two pages at least.
    steps = Counter(
        int(line.text) - number
        for number, page in enumerate(trimmed)
        for line in {id(line): line for line in (*page[:1], *page[-1:])}.values()
        if line.text.strip().isdecimal() and PAGE_NUMBER.match(line.text.strip())
    )
    kept = []
    for number, page in enumerate(trimmed):
        last = len(page) - 1
        kept.append(
            [
                line
                for i, line in enumerate(page)
                if not (min(i, last - i) < EDGE and _key(line) in shared)
                and not (i in (0, last) and _is_page_number(line, number, steps))
            ]
        )
    return kept


def _key(line: Line) -> str:
    return re.sub(r"\d+", "#", line.text.strip())


def _numbers(line: Line) -> list[int]:
    return [int(figures[:9]) for figures in re.findall(r"\d+", line.text)]


def _returns(by_page: dict[int, list[int]]) -> bool:
    """Whether lines that differ in their numbers alone are one line that returns: each number
    counts the pages, or is the same on many; else they tell something."""
    for column in zip(*by_page.values(), strict=True):
        counts = {value - page for page, value in zip(by_page, column, strict=True)}
        if len(counts) > 1 and 2 * len(set(column)) > len(column):
            return False
    return True


def _is_page_number(line: Line, page: int, steps: Counter[int]) -> bool:
    text = line.text.strip()
    if not PAGE_NUMBER.match(text):
        return False
    step = int(text) - page if text.isdecimal() else 1
    return not text.isdecimal() or step == 1 or steps[step] > 1


def _paragraphs(pages: list[list[Line]]) -> list[str]:
    texts = [line.text for page in pages for line in page]
    known, spaced = words(texts), keeps_spaces(texts)
    gap = _usual_gap(pages)
    found: list[str] = []
    previous: Line | None = None
    before: list[Line] = []  # the page before, to judge its last line by
    for page in pages:
        for i, line in enumerate(page):
            near = page[max(0, i - NEAR) : i + NEAR] if i else (before or page[:1])[-NEAR:]
            full = full_width(other.text for other in near)
            if previous is not None and _goes_on(previous, line, full, gap):
                kept = previous.text[len(previous.text.rstrip()) :]
                found[-1] = join(found[-1] + kept, line.text, known, spaced)
            else:
                found.append(line.text.strip())
            previous = line
        before = page
    return [SOFT_HYPHEN.sub("", text).strip() for text in found if text.strip()]


def _usual_gap(pages: list[list[Line]]) -> float:
    gaps = [a.end - b.top for page in pages for a, b in pairwise(page)]
    downward = sorted(gap for gap in gaps if gap > 1)
    return downward[len(downward) // 2] if downward else 0.0


def _goes_on(previous: Line, line: Line, full: int, gap: float) -> bool:
    """Whether the two lines are one paragraph, by their words and by how they stand."""
    if previous.size and line.size:
        ratio = max(previous.size, line.size) / min(previous.size, line.size)
        if ratio > OTHER_SIZE:
            return False
    step = previous.end - line.top
    if gap and step > WIDE_GAP * gap and line.top and previous.end:
        return False
    return continues(previous.text, line.text, full)


def _encrypted() -> OnsilError:
    return OnsilError(
        en=(
            "this PDF is encrypted with a password",
            "Its text cannot be read without the password.",
            "Save a copy without the password.",
        ),
        ko=(
            "암호가 걸린 PDF 파일입니다.",
            "암호 없이는 본문을 읽을 수 없습니다.",
            "암호를 해제한 사본을 저장해 주세요.",
        ),
    )


def _too_long(pages: int) -> OnsilError:
    return OnsilError(
        en=(
            f"this PDF claims {pages:,} pages",
            f"At most {MOST_PAGES:,} are read; more is a mistake or made to stall readers.",
            "Split it into parts.",
        ),
        ko=(
            f"{pages:,}쪽이라고 되어 있는 PDF입니다.",
            f"{MOST_PAGES:,}쪽까지만 읽습니다. 그보다 길면 잘못되었거나 일부러 만든 파일로 봅니다.",
            "여러 파일로 나누어 주세요.",
        ),
    )


def _no_text(pages: int) -> OnsilError:
    return OnsilError(
        en=(
            f"this PDF has no text layer on any of its {pages} pages",
            "Its pages are pictures (a scan, perhaps); there is no text to read.",
            "Run character recognition (OCR) over it first, or use the original file.",
        ),
        ko=(
            f"{pages}쪽 모두에 글자 정보가 없는 PDF입니다.",
            "쪽이 그림으로만 되어 있어(스캔 문서 등) 읽을 글이 없습니다.",
            "먼저 문자 인식(OCR)을 하거나 원본 파일을 사용해 주세요.",
        ),
    )
