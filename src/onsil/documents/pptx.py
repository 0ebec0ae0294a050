"""PowerPoint slides to blocks: the title of a slide is a heading, its notes follow its text.

python-pptx gives the slides in order and the shapes in the order they were drawn, groups included.
Every paragraph of a text frame is a paragraph; a table is a grid with merged cells repeated.

Left out: charts, SmartArt, words inside pictures, slide numbers, dates and footers, comments.
"""

import io
from collections.abc import Iterator
from typing import Any

from onsil.documents.packages import check_package
from onsil.documents.tables import Cell, grid
from onsil.documents.types import Block

RUNNING = frozenset(("DATE", "FOOTER", "HEADER", "SLIDE_NUMBER"))


def read_pptx(data: bytes) -> tuple[str, list[Block]]:
    """The title of the properties, and the blocks of all slides."""
    import pptx

    check_package(data, ".pptx")
    show = pptx.Presentation(io.BytesIO(data))
    blocks: list[Block] = []
    for slide in show.slides:
        title = slide.shapes.title
        heading = _clean(title.text_frame.text).replace("\n", " ") if title is not None else ""
        if heading:
            blocks.append(Block("heading", heading, 1))
        for shape in slide.shapes:
            if title is None or shape.shape_id != title.shape_id:
                blocks += _shape(shape)
        if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
            blocks += _frame(notes)
    title = (show.core_properties.title or "").strip()
    return "" if title == "PowerPoint Presentation" else title, blocks


def _shape(shape: Any) -> Iterator[Block]:
    if hasattr(shape, "shapes"):  # a group
        for inner in shape.shapes:
            yield from _shape(inner)
    elif shape.is_placeholder and shape.placeholder_format.type.name in RUNNING:
        return
    elif getattr(shape, "has_table", False):
        if rows := grid([_cell(cell) for cell in _own(row)] for row in shape.table.rows):
            yield Block("table", rows=rows)
    elif shape.has_text_frame:
        yield from _frame(shape.text_frame)


def _frame(frame: Any) -> Iterator[Block]:
    for paragraph in frame.paragraphs:
        if text := _clean(paragraph.text):
            yield Block("paragraph", text)


def _own(row: Any) -> list[Any]:
    return [cell for cell in row.cells if not cell.is_spanned]


def _cell(cell: Any) -> Cell:
    wide, high = (cell.span_width, cell.span_height) if cell.is_merge_origin else (1, 1)
    return Cell(_clean(cell.text_frame.text), wide, high)


def _clean(text: str) -> str:
    return text.replace("\v", "\n").strip()
