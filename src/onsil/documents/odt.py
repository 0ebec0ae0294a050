"""OpenDocument text (ODT) to blocks: the XML of `content.xml`, walked in order.

Headings carry their outline level; lists become their items; notes and text boxes follow the
paragraph they hang on; a table is a grid. A cell or row that is written once and repeated is
repeated here too, within reason: spreadsheets pasted into a page repeat blanks by the thousand.

Left out: page headers and footers (they stand in `styles.xml`), tables of contents and indexes,
comments, and text that tracked changes deleted.
"""

import io
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from onsil.documents.packages import check_package
from onsil.documents.tables import Cell, grid
from onsil.documents.types import Block
from onsil.errors import OnsilError

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

MOST_REPEATS = 200
DROPPED = frozenset(("tracked-changes", "annotation", "ruby-text", "title", "desc"))
INDEX = frozenset(
    ("table-of-content", "alphabetical-index", "illustration-index", "table-index", "bibliography")
)
OUTSIDE = frozenset(("note", "frame", "text-box", "custom-shape", "rect", "ellipse", "g", "table"))


def read_odt(data: bytes) -> tuple[str, list[Block]]:
    """The title of the properties and the blocks of the body."""
    check_package(data, ".odt")
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        names = set(package.namelist())
        if "META-INF/manifest.xml" in names and b"encryption-data" in package.read(
            "META-INF/manifest.xml"
        ):
            raise _encrypted()
        if "content.xml" not in names:
            raise _no_content()
        content = _parsed(package.read("content.xml"))
        title = _title(package.read("meta.xml")) if "meta.xml" in names else ""
    return title, [block for body in content.iter("{*}body") for block in _blocks(body)]


def _title(meta: bytes) -> str:
    return next((title.text or "" for title in _parsed(meta).iter("{*}title")), "").strip()


def _parsed(data: bytes) -> "Element":
    import lxml.etree as etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    return etree.fromstring(data, parser)


def _local(element: "Element") -> str:
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _attribute(element: "Element", name: str) -> str:
    for key, value in element.attrib.items():
        if str(key).rpartition("}")[2] == name:
            return str(value)
    return ""


def _count(element: "Element", name: str) -> int:
    value = _attribute(element, name)
    return int(value) if value.isdecimal() else 1


def _blocks(element: "Element") -> Iterator[Block]:
    name = _local(element)
    if name in ("p", "h"):
        yield from _paragraph(element)
    elif name == "table":
        yield from _table(element)
    elif name not in DROPPED and name not in INDEX and name != "note-citation":
        for child in element:
            yield from _blocks(child)


def _paragraph(element: "Element") -> Iterator[Block]:
    """The paragraph's own text, then its notes and boxes."""
    hanging: list[Element] = []
    text = "".join(_text(element, hanging)).strip()
    if text:
        level = _count(element, "outline-level") if _local(element) == "h" else 0
        yield Block("heading" if level else "paragraph", text, level)
    for outside in hanging:
        yield from _blocks(outside)


def _text(element: "Element", hanging: list["Element"]) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        name = _local(child)
        if name == "s":
            count = _attribute(child, "c")
            yield " " * min(int(count) if count.isdecimal() else 1, MOST_REPEATS)
        elif name in ("tab", "line-break"):
            yield "\t" if name == "tab" else "\n"
        elif name in OUTSIDE:
            hanging.append(child)
        elif name and name not in DROPPED:
            yield from _text(child, hanging)
        yield child.tail or ""


def _table(table: "Element") -> Iterator[Block]:
    """The table as a grid, then the tables inside its cells; a frame of text is no table."""
    nested: list[Block] = []
    rows: list[list[Cell]] = []
    for tr in _rows(table):
        row = []
        for tc in tr:
            if _local(tc) == "table-cell":
                cell = _cell(tc, nested)
                repeats = _count(tc, "number-columns-repeated")
                row += [cell] * min(repeats, MOST_REPEATS)
        rows += [row] * min(_count(tr, "number-rows-repeated"), MOST_REPEATS)
    if all(sum(bool(cell.text) for cell in row) < 2 for row in rows):
        yield from (Block("paragraph", cell.text) for row in rows for cell in row if cell.text)
    elif laid_out := grid(rows):
        yield Block("table", rows=laid_out)
    yield from nested


def _rows(table: "Element") -> Iterator["Element"]:
    for child in table:
        name = _local(child)
        if name == "table-row":
            yield child
        elif name in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _rows(child)


def _cell(tc: "Element", nested: list[Block]) -> Cell:
    inside = [block for child in tc for block in _blocks(child)]
    nested += [block for block in inside if block.kind == "table"]
    text = "\n".join(block.text for block in inside if block.kind != "table")
    return Cell(text, _count(tc, "number-columns-spanned"), _count(tc, "number-rows-spanned"))


def _encrypted() -> OnsilError:
    return OnsilError(
        en=(
            "this ODT is encrypted with a password",
            "Its text cannot be read without the password.",
            "Open it in its program, remove the password, save it again.",
        ),
        ko=(
            "암호가 걸린 ODT 파일입니다.",
            "암호 없이는 본문을 읽을 수 없습니다.",
            "만든 프로그램에서 열어 암호를 해제하고 다시 저장해 주세요.",
        ),
    )


def _no_content() -> OnsilError:
    return OnsilError(
        en=(
            "this file is called .odt but has no content.xml",
            "It is another format under this name, or it is damaged.",
            "Open it in LibreOffice and save it as .odt.",
        ),
        ko=(
            "이름은 .odt이지만 본문(content.xml)이 없습니다.",
            "다른 형식의 이름만 바꾸었거나 파일이 손상되었습니다.",
            "리브레오피스(LibreOffice)에서 열어 .odt로 다시 저장해 주세요.",
        ),
    )
