"""Build the handbook's spreadsheets, slides, lists, mail, ODT and HWP files from their sources.

`build_handbook.py` makes the files a word processor or browser would; these are the other formats
that lie about in an office. The sources stand beside the others in `handbook_sources/` and read
the same way: a heading (`#`), a row of a table (`|`) or a paragraph. What a source means depends
on the format: `##` is a sheet of a workbook and a slide of a presentation; a cell `<` is merged
with the one to its left and `^` with the one above; a paragraph `메모:` is a speaker's note. In a
workbook, amounts, shares and dates become numbers, as people type them.

Run it as `python examples/make_handbook_files.py`; every file comes out the same to the byte. The
HWP file is written by the tests' own writer: headings by style, tables as records, and nothing of
the fonts, page and border records that 한글 itself would add.

Left out: everything the sources do not use.
"""

import csv
import io
import re
import struct
import sys
import zipfile
from datetime import date, datetime
from email import policy
from email.header import Header
from email.message import Message
from xml.sax.saxutils import escape

import openpyxl
import pptx
from build_handbook import ARTICLE, FIXED_TIME, HANDBOOK, HERE, SOURCES, XML, _zip, parts
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.worksheet.worksheet import Worksheet
from pptx.util import Inches, Pt

sys.path.insert(0, str(HERE.parent / "tests"))
from hwp_files import (  # pyright: ignore[reportMissingImports]
    anchor,
    control,
    hwp_file,
    paragraph,
    record,
    styles,
    text_list,
)

ENCODINGS = {"행사물품_대여목록.csv": "cp949", "문화행사일정_2025하반기.csv": "utf-8-sig"}
MODIFIED = re.compile(rb"(<dcterms:modified[^>]*>)[^<]*")
LINE = Side("thin", "808080")
THIN = Border(left=LINE, right=LINE, top=LINE, bottom=LINE)
NUMBER, SHARE, DAY = (re.compile(p) for p in (r"\d+", r"\d+%", r"\d{4}-\d{2}-\d{2}"))


def _repacked(data: bytes) -> bytes:
    """The package with fixed times, which the libraries set to now."""
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        files = [(name, package.read(name)) for name in package.namelist()]
    now = rb"\g<1>2025-06-02T09:00:00Z"
    return _zip([(name, MODIFIED.sub(now, d) if "core.xml" in name else d) for name, d in files])


# --- workbooks ----------------------------------------------------------------------------------


def xlsx(source: str) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for part in parts(source):
        if isinstance(part, list):
            _sheet_table(book.worksheets[-1], part)
        elif part[0] == 1:
            book.properties.title, book.properties.creator = part[1], "한빛기록원"
        elif part[0] == 2:
            book.create_sheet(part[1])
        else:
            book.worksheets[-1].append([part[1]])
    book.properties.created = datetime(*FIXED_TIME)
    buffer = io.BytesIO()
    book.save(buffer)
    return _repacked(buffer.getvalue())


def _sheet_table(sheet: Worksheet, rows: list[list[str]]) -> None:
    """A bordered table below what the sheet holds; a line above it is its title, merged over it."""
    start = sheet.max_row + 1 if sheet["A1"].value else 1
    if start == 2:
        sheet["A1"].font = Font(bold=True, size=14)
        sheet.merge_cells(start_row=1, end_row=1, start_column=1, end_column=len(rows[0]))
    heads = 1 + sum("^" in row and "<" not in row for row in rows[1:2])
    for r, row in enumerate(rows, start):
        for c, text in enumerate(row, 1):
            cell = sheet.cell(r, c, _value(text))
            cell.border, cell.alignment = THIN, Alignment(vertical="center", wrap_text=True)
            if isinstance(cell.value, int):
                cell.number_format = "#,##0"
            elif isinstance(cell.value, float):
                cell.number_format = "0%"
            if r < start + heads:
                cell.font, cell.fill = Font(bold=True), PatternFill("solid", "DDE6F0")
    for top, left, bottom, right in _merges(rows):
        sheet.merge_cells(
            start_row=start + top,
            start_column=left + 1,
            end_row=start + bottom,
            end_column=right + 1,
        )
    for c in range(len(rows[0])):
        width = max(len(row[c]) for row in rows)
        sheet.column_dimensions[chr(65 + c)].width = min(60, 6 + 2 * width)


def _value(text: str) -> str | int | float | date | None:
    if text in ("<", "^", ""):
        return None
    if NUMBER.fullmatch(text):
        return int(text)
    if SHARE.fullmatch(text):
        return int(text[:-1]) / 100
    return date.fromisoformat(text) if DAY.fullmatch(text) else text


def _merges(rows: list[list[str]]) -> list[tuple[int, int, int, int]]:
    """Top, left, bottom, right of the cells that swallow the `<` and `^` beside or below them."""
    found = []
    for r, row in enumerate(rows):
        for c, text in enumerate(row):
            if text in ("<", "^"):
                continue
            bottom, right = r, c
            while right + 1 < len(row) and row[right + 1] == "<":
                right += 1
            while bottom + 1 < len(rows) and rows[bottom + 1][c] == "^":
                bottom += 1
            if (bottom, right) != (r, c):
                found.append((r, c, bottom, right))
    return found


# --- slides -------------------------------------------------------------------------------------


def slides(source: str) -> bytes:
    """A title slide; then titles with bullets, and tables in place of the body or below it."""
    show = pptx.Presentation()
    show.slide_width, show.slide_height = Inches(13.333), Inches(7.5)
    pages: list[tuple[str, list[list[list[str]]], list[str]]] = []
    for part in parts(source):
        if isinstance(part, list):
            pages[-1][1].append(part)
        elif part[0]:
            pages.append((part[1], [], []))
        else:
            pages[-1][2].append(part[1])
    for number, (title, tables, lines) in enumerate(pages):
        _slide(show, 0 if number == 0 else 1, title, tables, lines)
    show.core_properties.title, show.core_properties.author = pages[0][0], "한빛기록원"
    show.core_properties.created = show.core_properties.modified = datetime(*FIXED_TIME)
    buffer = io.BytesIO()
    show.save(buffer)
    return _repacked(buffer.getvalue())


def _slide(show, layout: int, title: str, tables: list[list[list[str]]], lines: list[str]) -> None:
    slide = show.slides.add_slide(show.slide_layouts[layout])
    slide.shapes.title.text = title
    notes = [line.removeprefix("메모:").strip() for line in lines if line.startswith("메모:")]
    body = slide.placeholders[1]
    body.left, body.width = Inches(0.7), Inches(12)
    body.top, body.height = Inches(5.2 if tables else 1.6), Inches(1.9 if tables else 5)
    body.text = "\n".join(line for line in lines if not line.startswith("메모:"))
    if not body.text:
        body.element.getparent().remove(body.element)
    for rows in tables:
        frame = slide.shapes.add_table(
            len(rows), len(rows[0]), Inches(0.7), Inches(1.5), Inches(12), Inches(0.5 * len(rows))
        )
        for r, row in enumerate(rows):
            for c, text in enumerate(row):
                frame.table.cell(r, c).text = text
                frame.table.cell(r, c).text_frame.paragraphs[0].font.size = Pt(16)
        if body.text:  # drawn after the table, as it stands below it
            slide.shapes._spTree.append(body.element)
    if notes:
        slide.notes_slide.notes_text_frame.text = "\n".join(notes)


# --- lists and mail -----------------------------------------------------------------------------


def table_file(source: str, encoding: str) -> bytes:
    rows = next(part for part in parts(source) if isinstance(part, list))
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(rows)
    return out.getvalue().encode(encoding)


def mail(source: str) -> bytes:
    """A mail of plain text; its headers come encoded and its body in base64, as webmail sends."""
    head, _, body = source.partition("\n\n")
    message = Message()
    for line in head.splitlines():
        name, _, value = line.partition(": ")
        text, _, address = value.rpartition(" <")
        if address and text:
            value = f"{Header(text, 'utf-8').encode()} <{address}"
        elif not value.isascii():
            value = Header(value, "utf-8").encode()
        message[name] = value
    message["Message-ID"] = "<20251020101200.2212@example.kr>"
    message.set_payload(body.encode(), "utf-8")
    return message.as_bytes(policy=policy.compat32.clone(linesep="\r\n"))


# --- ODT ----------------------------------------------------------------------------------------

ODF = "urn:oasis:names:tc:opendocument:xmlns:"
NAMES = " ".join(
    f'xmlns:{name}="{ODF}{space}:1.0"'
    for name, space in {
        "office": "office", "text": "text", "table": "table", "style": "style", "meta": "meta",
        "fo": "xsl-fo-compatible",
    }.items()
)  # fmt: skip
ODT = "application/vnd.oasis.opendocument.text"


def odt(source: str) -> bytes:
    """Headings with outline levels, tables with header rows; an article's head in bold."""
    title = escape(source.splitlines()[0].lstrip("# "))
    body = "".join(_odt_part(part, i) for i, part in enumerate(parts(source)))
    bold = (
        '<style:style style:name="T1" style:family="text">'
        '<style:text-properties fo:font-weight="bold"/></style:style>'
    )
    headings = "".join(
        f'<style:style style:name="Heading_20_{i}" style:display-name="Heading {i}" '
        f'style:family="paragraph" style:default-outline-level="{i}"/>'
        for i in (1, 2)
    )
    entries = "".join(
        f'<manifest:file-entry manifest:full-path="{path}" manifest:media-type="{kind}"/>'
        for path, kind in {
            "/": ODT, "content.xml": "text/xml", "styles.xml": "text/xml", "meta.xml": "text/xml",
        }.items()
    )  # fmt: skip
    files = {
        "mimetype": ODT,
        "content.xml": f'{XML}<office:document-content {NAMES} office:version="1.3">'
        f"<office:automatic-styles>{bold}</office:automatic-styles>"
        f"<office:body><office:text>{body}</office:text></office:body></office:document-content>",
        "styles.xml": f'{XML}<office:document-styles {NAMES} office:version="1.3">'
        f"<office:styles>{headings}</office:styles></office:document-styles>",
        "meta.xml": f"{XML}<office:document-meta {NAMES} "
        'xmlns:dc="http://purl.org/dc/elements/1.1/" office:version="1.3"><office:meta>'
        f"<dc:title>{title}</dc:title><dc:creator>한빛기록원</dc:creator>"
        "<dc:date>2025-06-02T09:00:00</dc:date></office:meta></office:document-meta>",
        "META-INF/manifest.xml": f'{XML}<manifest:manifest xmlns:manifest="{ODF}manifest:1.0" '
        f'manifest:version="1.3">{entries}</manifest:manifest>',
    }
    return _zip([(name, text.encode()) for name, text in files.items()])


def _odt_part(part: tuple[int, str] | list[list[str]], number: int) -> str:
    if not isinstance(part, list):
        level, text = part
        if level:
            style = f'text:style-name="Heading_20_{level}" text:outline-level="{level}"'
            return f"<text:h {style}>{escape(text)}</text:h>"
        article = ARTICLE.match(text)
        if not article:
            return f"<text:p>{escape(text)}</text:p>"
        head = f'<text:span text:style-name="T1">{escape(article[1])}</text:span>'
        return f"<text:p>{head}{escape(article[2])}</text:p>"
    rows = [
        "<table:table-row>"
        + "".join(
            f'<table:table-cell office:value-type="string"><text:p>{escape(text)}</text:p>'
            "</table:table-cell>"
            for text in row
        )
        + "</table:table-row>"
        for row in part
    ]
    return (
        f'<table:table table:name="표{number}">'
        f'<table:table-column table:number-columns-repeated="{len(part[0])}"/>'
        f"<table:table-header-rows>{rows[0]}</table:table-header-rows>{''.join(rows[1:])}"
        "</table:table>"
    )


# --- HWP ----------------------------------------------------------------------------------------


def hwp(source: str) -> bytes:
    """Headings in the styles 개요 1 and 개요 2, tables as 한글 anchors them in a paragraph."""
    title = source.splitlines()[0].lstrip("# ")
    body = b""
    for part in parts(source):
        if not isinstance(part, list):
            body += paragraph(part[1], shape=part[0], style=part[0])
            continue
        shape = record(0x4D, 2, struct.pack("<IHH", 0, len(part), len(part[0])))
        cells = b"".join(
            text_list(2, paragraph(text, 2), cell=(c, r, 1, 1))
            for r, row in enumerate(part)
            for c, text in enumerate(row)
        )
        body += paragraph(anchor(11, "tbl ")) + control("tbl ", 1) + shape + cells
    return hwp_file(body, info=styles([0, 1, 2], ["바탕글", "개요 1", "개요 2"]), title=title)


def build() -> None:
    for path in sorted(SOURCES.glob("*.md")):
        out = HANDBOOK / path.name.removesuffix(".md")
        source = path.read_text(encoding="utf-8")
        match out.suffix:
            case ".xlsx":
                out.write_bytes(xlsx(source))
            case ".pptx":
                out.write_bytes(slides(source))
            case ".csv":
                out.write_bytes(table_file(source, ENCODINGS[out.name]))
            case ".eml":
                out.write_bytes(mail(source))
            case ".odt":
                out.write_bytes(odt(source))
            case ".hwp":
                out.write_bytes(hwp(source))


if __name__ == "__main__":
    build()
