"""HTML to blocks: headings, paragraphs, list items and tables, without the page around them.

The tree is walked once; text gathers until a block element begins or ends. Navigation, page
headers and footers, asides, scripts and hidden elements are not what the page says, so they are
dropped (a header inside an article stays: it holds the article's title). A table inside a cell
becomes a table of its own after the outer one, and a table of a single cell is only a frame, so
its contents are read as if the frame were not there.

Left out: text that a script would write, and what a form's fields hold.
"""

import re
from typing import TYPE_CHECKING

from onsil.documents.tables import Cell, grid
from onsil.documents.text import MARKS, decode
from onsil.documents.types import Block

if TYPE_CHECKING:
    from bs4 import Tag

DROPPED = re.compile(
    r"script|style|noscript|template|nav|header|footer|aside|button|select|textarea|svg|iframe|head"
    r"|object|audio|video|canvas"
)
BLOCKS = re.compile(
    r"p|div|section|article|main|body|html|ul|ol|li|dl|dt|dd|blockquote|figure|figcaption|address"
    r"|details|summary|fieldset|center|hr|tr|td|th|caption|thead|tbody|tfoot|pre"
)
HEADINGS = {f"h{level}": level for level in range(1, 7)}
META = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([A-Za-z0-9_-]+)""", re.IGNORECASE)
KOREAN = frozenset(("euc-kr", "euckr", "ks_c_5601-1987", "ksc5601", "ks_c_5601", "cp949", "uhc"))
WESTERN = frozenset(("iso-8859-1", "latin1", "latin-1", "windows-1252", "cp1252"))
SPACES = re.compile(r"[ \t\r\n\f]+")


def read_html(data: bytes) -> tuple[str, list[Block]]:
    """The page's `<title>` and its blocks in document order."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(_decoded(data), "lxml")
    title = SPACES.sub(" ", soup.title.get_text()).strip() if soup.title else ""
    walk = _Walk()
    walk.children(soup.body or soup)
    walk.flush()
    return title, walk.blocks


def _decoded(data: bytes) -> str:
    """A mark decides, then the page's own charset where it holds, then the bytes themselves."""
    declared = META.search(data[:4096])
    if declared and not any(data.startswith(mark) for mark, _ in MARKS):
        name = declared[1].decode("ascii").lower()
        if name in WESTERN and not _western(data):
            return decode(data)[0]
        if name.startswith("utf-16"):  # the page could not have said so
            name = "utf-8"
        try:
            return data.decode("cp949" if name in KOREAN else name)
        except (LookupError, UnicodeDecodeError):
            pass  # pages misdeclare themselves often; the bytes are judged instead
    return decode(data)[0]


def _western(data: bytes) -> bool:
    """Whether the bytes beyond ASCII stand alone, as accents do; Hangul comes in pairs."""
    pairs = sum(len(run) for run in re.findall(rb"[\x80-\xff]{2,}", data))
    return 2 * pairs <= sum(len(run) for run in re.findall(rb"[\x80-\xff]+", data))


def _dropped(tag: "Tag") -> bool:
    if tag.name in ("header", "footer") and tag.find_parent(["article", "main"]):
        return False
    style = str(tag.get("style") or "").replace(" ", "").lower()
    return bool(DROPPED.fullmatch(tag.name)) or tag.has_attr("hidden") or "display:none" in style


class _Walk:
    """The blocks so far and the text that no block has claimed yet."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.text: list[str] = []

    def children(self, tag: "Tag") -> None:
        from bs4.element import NavigableString, PreformattedString, Tag

        for child in tag.children:
            if isinstance(child, Tag):
                if not _dropped(child):
                    self.tag(child)
            elif isinstance(child, NavigableString) and not isinstance(child, PreformattedString):
                self.text.append(SPACES.sub(" ", str(child)))

    def tag(self, tag: "Tag") -> None:
        if tag.name in HEADINGS:
            self.flush()
            self.children(tag)
            self.flush(HEADINGS[tag.name])
        elif tag.name == "br":
            self.text.append("\n")
        elif tag.name == "table":
            self.flush()
            self.table(tag)
        elif tag.name == "pre":
            self.flush()
            self.text.append(tag.get_text())
            self.flush()
        elif BLOCKS.fullmatch(tag.name):
            self.flush()
            self.children(tag)
            self.flush()
        else:
            self.children(tag)

    def table(self, table: "Tag") -> None:
        rows = [row for row in table.find_all("tr") if row.find_parent("table") is table]
        own = [
            [cell for cell in row.find_all(["td", "th"], recursive=False) if not _dropped(cell)]
            for row in rows
            if not _dropped(row)
        ]
        if sum(len(row) for row in own) == 1:
            self.tag(own[0][0] if own[0] else next(row[0] for row in own if row))
            return
        nested: list[Block] = []
        if (caption := table.find("caption")) and caption.find_parent("table") is table:
            self.tag(caption)
        laid_out = grid([self.cell(cell, nested) for cell in row] for row in own)
        if laid_out:
            self.blocks.append(Block("table", rows=laid_out))
        self.blocks += nested

    def cell(self, cell: "Tag", nested: list[Block]) -> Cell:
        inside = _Walk()
        inside.children(cell)
        inside.flush()
        nested += [block for block in inside.blocks if block.kind == "table"]
        text = "\n".join(block.text for block in inside.blocks if block.kind != "table")
        return Cell(text, _number(cell.get("colspan")), _number(cell.get("rowspan")))

    def flush(self, level: int = 0) -> None:
        """What was gathered becomes a heading or a paragraph; spaces around breaks go."""
        text = re.sub(r" ?\n ?", "\n", re.sub(r" {2,}", " ", "".join(self.text))).strip()
        self.text = []
        if text:
            self.blocks.append(Block("heading" if level else "paragraph", text, level))


def _number(value: object) -> int:
    text = str(value or "1").strip()
    return int(text) if text.isdecimal() else 1
