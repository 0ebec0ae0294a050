"""Excel workbooks to blocks: every sheet a heading and a table of what its cells show.

openpyxl reads the rows as a stream, values instead of formulas (the value Excel last calculated).
Dates are written as ISO dates; numbers as their format shows them (`number_formats`), «247,000원»
and «010-1234-5678». Merged cells, which a streaming reader does not report,
are taken from the sheet's own XML and repeated over the cells they cover, as in every table here;
one that fills its row alone, a title or a note, is a paragraph.

Left out: formulas that were never calculated, charts, comments, and formats that scale (an amount
in thousands is the number in the cell).
"""

import datetime
import io
import zipfile
from collections.abc import Iterator
from itertools import compress
from typing import Any

from onsil.documents.number_formats import shown
from onsil.documents.packages import check_package
from onsil.documents.tables import Cell, grid
from onsil.documents.types import Block


def read_xlsx(data: bytes) -> tuple[str, list[Block]]:
    """The title of the properties, and per sheet a heading and a table."""
    import openpyxl

    check_package(data, ".xlsx")
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    try:
        blocks: list[Block] = []
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            for sheet in book.worksheets:
                merged = _merged(package, getattr(sheet, "_worksheet_path", ""))
                if parts := list(_parts(_rows(sheet, merged))):
                    blocks += [Block("heading", sheet.title, 1), *parts]
        return (book.properties.title or "").strip(), blocks
    finally:
        book.close()


def _rows(sheet: Any, merged: list[tuple[int, int, int, int]]) -> list[tuple[list[str], bool]]:
    """The texts of each row, and whether one merged cell fills it."""
    sheet.reset_dimensions()  # what a file claims about its size is often wrong
    rows = [[_text(cell) for cell in row] for row in sheet.iter_rows()]
    widest, filled = max(map(len, rows), default=0), [any(row) for row in rows]
    whole: set[int] = set()
    for left, top, right, bottom in merged:
        right = min(right, widest)
        if top <= len(rows) and left <= len(rows[top - 1]) and (text := rows[top - 1][left - 1]):
            for row in compress(rows[top - 1 : bottom], filled[top - 1 : bottom]):
                row += [""] * (right - len(row))
                row[left - 1 : right] = [text] * (right - left + 1)
            whole |= set(range(top - 1, min(bottom, len(rows)))) if right > left else set()
    return [(row, n in whole and len({*filter(None, row)}) == 1) for n, row in enumerate(rows)]


def _parts(rows: list[tuple[list[str], bool]]) -> Iterator[Block]:
    """Rows that one merged cell fills are paragraphs; what stands between, a table, and another
    after an empty row that other heads follow."""
    part: list[list[str]] = []
    for n, (row, alone) in enumerate(rows):
        after = [row for row, _ in rows[n + 1 : n + 3]]
        if alone or (not any(row) and any(map(_figures, part[1:])) and _heads(after)):
            yield from _table(part)
            part = []
        if alone:
            yield Block("paragraph", next(filter(None, row)))
        elif any(row):
            part.append(row)
    yield from _table(part)


def _table(rows: list[list[str]]) -> Iterator[Block]:
    if laid_out := grid([Cell(text) for text in row] for row in rows):
        yield Block("table", rows=laid_out)


def _heads(rows: list[list[str]]) -> bool:
    """Whether the first of two rows names columns, of which the second has figures: entries that
    are names alone, parted by empty rows, are one table."""
    return len(rows) == 2 and sum(map(bool, rows[0])) > 1 and _figures(rows[0]) < _figures(rows[1])


def _figures(row: list[str]) -> bool:
    return any(c.isdigit() for text in row for c in text)


def _merged(package: zipfile.ZipFile, path: str) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom (from 1) of the merged ranges of a sheet."""
    import lxml.etree as etree
    from openpyxl.utils.cell import range_boundaries

    if path not in package.namelist():
        return []
    found = []
    with package.open(path) as part:
        for _, element in etree.iterparse(part, tag="{*}mergeCell", resolve_entities=False):
            left, top, right, bottom = range_boundaries(element.get("ref", ""))
            if left and top and right and bottom:
                found.append((left, top, right, bottom))
    return found


def _text(cell: Any) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat(" ", "minutes")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, int | float):
        return shown(value, cell.number_format or "General")
    return str(value).strip()
