"""Binary HWP 5 (한글 2002 and later) to blocks, without 한글.

`hwp_records` opens the container; here the tree of records becomes text. A paragraph is a header
and a string of UTF-16 in which codes below 32 are marks: a tab, a break, or the place where an
object is anchored. The objects follow as control records in the same order: tables, shapes with
text, footnotes, equations. As in `hwpx`, a paragraph becomes its own text followed by what its
objects hold, and a table that only frames text is read as if the frame were not there. Headings
are the paragraphs whose shape (in `DocInfo`) is an outline level, or whose style is called 개요 n.
Page headers and footers stand once, after everything else. Equations stay in 한글's own notation,
in the line. Ruby text (덧말) keeps its main text; overlapped characters stand one by one.

Left out: hidden comments, memos, master pages, the numbers and bullets that 한글 draws itself,
words inside pictures, charts and word art. Text that tracked changes deleted is still there.
"""

import re
from collections.abc import Iterator
from struct import unpack_from

from onsil.documents.hwp_records import (
    CTRL_HEADER,
    EQEDIT,
    LIST_HEADER,
    PARA_HEADER,
    PARA_SHAPE,
    PARA_TEXT,
    STYLE,
    TABLE,
    Record,
    open_hwp,
)
from onsil.documents.hwpx import LONGEST_HEADING, stated_title
from onsil.documents.tables import Cell, grid
from onsil.documents.types import Block

OUTLINE_STYLE = re.compile(r"(?:개요|outline)\s*(\d{1,2})$", re.IGNORECASE)
SINGLE = {10: "\n", 24: "-", 30: "\u00a0", 31: " "}  # marks of one unit that are text
ALONE = frozenset((0, 10, 13, *range(24, 32)))  # marks of one unit; all others take eight
ANCHORS = frozenset((1, 2, 3, 11, 12, 14, 15, 16, 17, 18, 21, 22, 23))  # have a control record
CAPTION_NUMBERS = frozenset((3, 4, 5))  # of a figure, a table, an equation; not of a page or note
SPAN = 16  # bytes of a mark of eight units


def read_hwp(data: bytes) -> tuple[str, list[Block]]:
    """The title of the properties (if the text says it) and the blocks of all sections."""
    file = open_hwp(data)
    walk = _Walk(_levels(file.info))
    blocks = [block for section in file.sections for block in walk.inside(section)]
    blocks += walk.running.values()
    return stated_title(file.title, blocks), blocks


class _Levels:
    """Heading level of a paragraph by its shape, else by its style; 0 is body text."""

    def __init__(self, shapes: list[int], styles: list[int]):
        self.shapes, self.styles = shapes, styles

    def of(self, header: bytes) -> int:
        if len(header) < 11:
            return 0
        shape, style = unpack_from("<HB", header, 8)
        by_shape = self.shapes[shape] if shape < len(self.shapes) else 0
        return by_shape or (self.styles[style] if style < len(self.styles) else 0)


def _levels(info: Record) -> _Levels:
    shapes, styles = [], []
    for record in _below(info):
        if record.tag == PARA_SHAPE:
            kind = unpack_from("<I", record.data.ljust(4, b"\0"))[0]
            shapes.append((kind >> 25 & 7) + 1 if kind >> 23 & 3 == 1 else 0)
        elif record.tag == STYLE:
            name, at = _string(record.data, 0)
            match = OUTLINE_STYLE.match(name) or OUTLINE_STYLE.match(_string(record.data, at)[0])
            styles.append(int(match[1]) if match else 0)
    return _Levels(shapes, styles)


def _below(record: Record) -> Iterator[Record]:
    for child in record.children:
        yield child
        yield from _below(child)


def _string(data: bytes, at: int) -> tuple[str, int]:
    """A counted string of UTF-16 at `at`, and where it ends."""
    if at + 2 > len(data):
        return "", at
    end = at + 2 + 2 * unpack_from("<H", data, at)[0]
    return data[at + 2 : end].decode("utf-16-le", "replace"), end


class _Walk:
    """The tree of a section to blocks; `running` gathers page headers and footers by text."""

    def __init__(self, levels: _Levels):
        self.levels = levels
        self.running: dict[str, Block] = {}

    def inside(self, record: Record) -> Iterator[Block]:
        """The paragraphs anywhere below a record."""
        for child in record.children:
            if child.tag == PARA_HEADER:
                yield from self.paragraph(child)
            else:
                yield from self.inside(child)

    def paragraph(self, record: Record) -> Iterator[Block]:
        """The paragraph's own text, then what its tables, shapes and notes hold."""
        controls = [child for child in record.children if child.tag == CTRL_HEADER]
        raw = next((child.data for child in record.children if child.tag == PARA_TEXT), b"")
        text = _text(raw, controls).strip()
        if text:
            level = self.levels.of(record.data) if len(text) <= LONGEST_HEADING else 0
            yield Block("heading" if level else "paragraph", text, level)
        for control in controls:
            yield from self.control(control)

    def control(self, control: Record) -> Iterator[Block]:
        name = _name(control)
        if name == "tbl ":
            yield from self.table(control)
        elif name in ("head", "foot"):
            for block in self.inside(control):
                self.running.setdefault(repr(block.rows or block.text), block)
        elif name in ("gso ", "eqed", "fn  ", "en  "):
            yield from self.inside(control)

    def table(self, control: Record) -> Iterator[Block]:
        """The table as a grid after its caption, then the tables that stand inside its cells."""
        lists = _lists(control)
        at = next((i for i, r in enumerate(control.children) if r.tag == TABLE), -1)
        for place, _, paragraphs in lists:
            if place < at:
                yield from self.inside(Record(0, b"", paragraphs))
        rows: dict[int, list[tuple[int, Cell, list[Block]]]] = {}
        for place, header, paragraphs in lists:
            if place > at and len(header) >= 16:
                column, row, columns, spanned = unpack_from("<4H", header, 8)
                inside = list(self.inside(Record(0, b"", paragraphs)))
                text = "\n".join(block.text for block in inside if block.kind != "table")
                rows.setdefault(row, []).append((column, Cell(text, columns, spanned), inside))
        laid = [
            sorted(rows.get(i, []), key=lambda c: c[0]) for i in range(max(rows, default=-1) + 1)
        ]
        if all(sum(bool(inside) for _, _, inside in row) < 2 for row in laid):
            for _, _, inside in (cell for row in laid for cell in row):
                yield from inside
            return
        if cells := grid([cell for _, cell, _ in row] for row in laid):
            yield Block("table", rows=cells)
        for _, _, inside in (cell for row in laid for cell in row):
            yield from (block for block in inside if block.kind == "table")


def _lists(control: Record) -> list[tuple[int, bytes, list[Record]]]:
    """The lists of a control (caption, cells): place, header, and the paragraphs that follow."""
    found: list[tuple[int, bytes, list[Record]]] = []
    for i, child in enumerate(control.children):
        if child.tag == LIST_HEADER:
            found.append((i, child.data, list(child.children)))
        elif child.tag == PARA_HEADER and found:
            found[-1][2].append(child)
    return found


def _name(control: Record) -> str:
    return control.data[:4][::-1].decode("latin-1")


def _text(raw: bytes, controls: list[Record]) -> str:
    """The text of a paragraph; at an anchor stands the text of its control, if it has any."""
    units = memoryview(raw[: len(raw) // 2 * 2]).cast("H")
    parts, start, i, anchor = [], 0, 0, 0
    while i < len(units):
        mark = units[i]
        if mark >= 32:
            i += 1
            continue
        parts.append(raw[2 * start : 2 * i].decode("utf-16-le", "replace"))
        if mark in SINGLE:
            parts.append(SINGLE[mark])
        elif mark == 9:
            parts.append("\t")
        elif mark in ANCHORS:
            if anchor < len(controls):
                parts.append(_inline(controls[anchor]))
            anchor += 1
        i += 1 if mark in ALONE else SPAN // 2
        start = i
    parts.append(raw[2 * start :].decode("utf-16-le", "replace"))
    return "".join(parts)


def _inline(control: Record) -> str:
    """What a control says in the line: an equation, a caption's number, the main text of ruby."""
    name = _name(control)
    if name == "atno" and len(control.data) >= 10:
        kind, number = unpack_from("<IH", control.data, 4)
        return str(number) if kind & 0xF in CAPTION_NUMBERS else ""
    if name == "eqed":
        script = next((_string(r.data, 4)[0] for r in control.children if r.tag == EQEDIT), "")
        return " ".join(script.replace("`", " ").replace("~", " ").split())
    if name in ("tdut", "tcps"):
        return _string(control.data, 4)[0]
    return ""
