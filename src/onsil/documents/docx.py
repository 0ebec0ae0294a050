"""Word documents to blocks, in document order, tables where they stand.

python-docx opens the package and knows the styles; the body is walked here, because content
controls, tracked insertions and text boxes hold text that its paragraphs do not show. A heading is
a paragraph whose style is called Heading n or 제목 n, or that has an outline level of its own or
from its style. A note is a paragraph after the one that has its mark. Deleted text (tracked
changes) is not part of the document.

Left out: headers, footers, comments, equations, and the numbers Word draws itself.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from onsil.documents.tables import Cell, grid
from onsil.documents.types import Block
from onsil.errors import OnsilError

if TYPE_CHECKING:
    from docx.document import Document as WordDocument

OLE = bytes.fromhex("d0cf11e0a1b11ae1")  # the container of old Office files and of encrypted ones
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
HEADING = re.compile(r"(?:heading|제목)\s*(\d)$", re.IGNORECASE)
TITLES = frozenset(("title", "제목"))
BREAKS = {f"{W}tab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}
SKIPPED = frozenset((f"{W}del", f"{W}moveFrom", f"{W}txbxContent", FALLBACK, f"{W}pPr", f"{W}rPr"))
WRAPPERS = frozenset(f"{W}{n}" for n in ("sdt", "sdtContent", "ins", "smartTag", "customXml"))
LONGEST_HEADING = 200
KINDRED = (  # templates and what has macros, which python-docx leaves out
    "application/vnd.ms-word.document.macroEnabled.main+xml",
    "application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
)


class Word(NamedTuple):
    """What stands outside of the body: style id → heading level, and the notes."""

    levels: dict[str, int]
    notes: dict[tuple[str, str], str]


def read_docx(data: bytes) -> tuple[str, list[Block]]:
    """The title of the properties, and the blocks of the body."""
    from docx.opc.part import PartFactory
    from docx.package import Package
    from docx.parts.document import DocumentPart

    if data.startswith(OLE):
        raise _not_a_package(encrypted="EncryptedPackage".encode("utf-16-le") in data)
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise _not_a_package(encrypted=False)
    PartFactory.part_type_for.update(dict.fromkeys(KINDRED, DocumentPart))
    part = Package.open(io.BytesIO(data)).main_document_part
    if not isinstance(part, DocumentPart):
        raise _not_a_package(encrypted=False)
    document = part.document
    title = (document.core_properties.title or "").strip()
    word = Word(_levels(document), _notes(part))
    return title, list(_blocks(document.element.body, word))


def _notes(part: Any) -> dict[tuple[str, str], str]:
    """(footnote or endnote, its id) → what it says."""
    import lxml.etree as etree

    found = {}
    for relation in part.rels.values():
        kind = relation.reltype.rpartition("/")[2]
        if kind not in ("footnotes", "endnotes") or relation.is_external:
            continue
        parser = etree.XMLParser(resolve_entities=False, no_network=True)
        for note in etree.fromstring(relation.target_part.blob, parser):
            text = " ".join(filter(None, ("".join(_text(p)).strip() for p in note.iter(f"{W}p"))))
            found[kind.removesuffix("s"), note.get(f"{W}id", "")] = text
    return found


def _levels(document: "WordDocument") -> dict[str, int]:
    """Style id -> heading level, for the styles that are headings."""
    levels = {}
    for style in document.styles:
        name = (style.name or "").strip()
        if match := HEADING.match(name):
            levels[style.style_id] = max(1, int(match[1]))
        elif name.lower() in TITLES:
            levels[style.style_id] = 1
        elif level := _outline_of(style):
            levels[style.style_id] = level
    return levels


def _outline_of(style: Any) -> int:
    """The outline level a style has or inherits (1 outermost), or 0; 9 means body text."""
    for _ in range(20):  # a chain of base styles; a broken file may close it into a ring
        if style is None:
            return 0
        mark = style.element.find(f"{W}pPr/{W}outlineLvl")
        if mark is not None:
            level = int(mark.get(f"{W}val", "9"))
            return level + 1 if level < 9 else 0
        style = getattr(style, "base_style", None)
    return 0


def _blocks(parent: Any, word: Word) -> Iterator[Block]:
    for child in parent:
        if child.tag == f"{W}p":
            yield from _paragraph(child, word)
        elif child.tag == f"{W}tbl":
            yield from _table(child, word)
        elif child.tag in WRAPPERS:
            yield from _blocks(child, word)


def _paragraph(p: Any, word: Word) -> Iterator[Block]:
    text = "".join(_text(p)).strip()
    if text:
        level = _level(p, word.levels) if len(text) <= LONGEST_HEADING else 0
        yield Block("heading" if level else "paragraph", text, level)
    for mark in p.iter(f"{W}footnoteReference", f"{W}endnoteReference"):
        kind = mark.tag.removeprefix(W).removesuffix("Reference")
        if said := word.notes.get((kind, mark.get(f"{W}id", ""))):
            yield Block("paragraph", said)
    for box in p.iter(f"{W}txbxContent"):
        if not any(up.tag == FALLBACK for up in box.iterancestors()):
            yield from _blocks(box, word)


def _level(p: Any, levels: dict[str, int]) -> int:
    mark = p.find(f"{W}pPr/{W}outlineLvl")
    if mark is not None:
        level = int(mark.get(f"{W}val", "9"))
        return level + 1 if level < 9 else 0
    style = p.find(f"{W}pPr/{W}pStyle")
    return levels.get(style.get(f"{W}val", ""), 0) if style is not None else 0


def _text(element: Any) -> Iterator[str]:
    for child in element:
        if child.tag == f"{W}t":
            yield child.text or ""
        elif child.tag in BREAKS:
            yield BREAKS[child.tag]
        elif child.tag not in SKIPPED:
            yield from _text(child)


def _table(tbl: Any, word: Word) -> Iterator[Block]:
    """The table as a grid, then the tables that stand inside its cells."""
    nested: list[Block] = []
    above: dict[int, str] = {}
    rows = []
    for tr in _within(tbl, f"{W}tr"):
        if tr.find(f"{W}trPr/{W}del") is not None:
            continue
        row, column = [], 0
        for tc in _within(tr, f"{W}tc"):
            span = _span(tc)
            inside = list(_blocks(tc, word))
            nested += [block for block in inside if block.kind == "table"]
            text = "\n".join(block.text for block in inside if block.kind != "table")
            merge = tc.find(f"{W}tcPr/{W}vMerge")
            if merge is not None and merge.get(f"{W}val", "continue") == "continue":
                text = above.get(column, text)
            above[column] = text
            row.append(Cell(text, span))
            column += span
        rows.append(row)
    laid_out = grid(rows)
    if laid_out:
        yield Block("table", rows=laid_out)
    yield from nested


def _within(parent: Any, tag: str) -> Iterator[Any]:
    """Rows of a table or cells of a row, those inside content controls too."""
    for child in parent:
        if child.tag == tag:
            yield child
        elif child.tag in WRAPPERS:
            yield from _within(child, tag)


def _span(tc: Any) -> int:
    mark = tc.find(f"{W}tcPr/{W}gridSpan")
    return int(mark.get(f"{W}val", "1")) if mark is not None else 1


def _not_a_package(encrypted: bool) -> OnsilError:
    if encrypted:
        return OnsilError(
            en=(
                "this DOCX is encrypted with a password",
                "Its text cannot be read without the password.",
                "Open it in Word, remove the password, save it again.",
            ),
            ko=(
                "암호가 걸린 DOCX 파일입니다.",
                "암호 없이는 본문을 읽을 수 없습니다.",
                "워드에서 열어 암호를 해제하고 다시 저장해 주세요.",
            ),
        )
    return OnsilError(
        en=(
            "this file is called .docx but is not a DOCX package",
            "It is an older Word file (.doc) under another name, or it is damaged.",
            "Open it in Word and save it as .docx.",
        ),
        ko=(
            "이름은 .docx이지만 DOCX 형식이 아닙니다.",
            "예전 워드 파일(.doc)의 이름만 바꾸었거나 파일이 손상되었습니다.",
            "워드에서 열어 .docx로 다시 저장해 주세요.",
        ),
    )
