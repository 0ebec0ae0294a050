"""Cells that span rows and columns, laid out as a plain grid.

A merged cell is repeated in every place it covers, so that each row can be read alone: the row
still says which group it belongs to when a passage is cut out of the table.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from onsil.documents.types import Block

FIGURES = re.compile(r"[-+]?\d[\d,.]*%?")
WIDEST_SPAN = 200  # a span beyond this is a broken file, not a table


@dataclass(frozen=True)
class Cell:
    text: str
    columns: int = 1
    rows: int = 1


def grid(source: Iterable[Iterable[Cell]]) -> tuple[tuple[str, ...], ...]:
    """Rows of texts, all equally long; rows and columns without any text are dropped."""
    below: dict[int, tuple[str, int]] = {}  # column -> text that still covers it, rows left
    rows: list[list[str]] = []
    for line in source:
        row: dict[int, str] = {column: text for column, (text, _) in below.items()}
        below = {column: (text, left - 1) for column, (text, left) in below.items() if left > 1}
        column = 0
        for cell in line:
            while column in row:
                column += 1
            for covered in range(column, column + _span(cell.columns)):
                row[covered] = cell.text
                if cell.rows > 1:
                    below[covered] = (cell.text, _span(cell.rows) - 1)
            column += _span(cell.columns)
        rows.append([row.get(i, "") for i in range(max(row, default=-1) + 1)])
    return _trim(rows)


def titles_apart(block: Block) -> Iterator[Block]:
    """A table without the rows around it that are none of its records: titles above, which taken
    for the row of heads would leave the columns without names; notes below, which have no column
    that is theirs."""
    rows, first, last = block.rows, 0, len(block.rows)
    while first < last and _alone(rows[first]):
        first += 1
    while last > first and (_alone(rows[last - 1]) or _is_note(rows[last - 1])):
        last -= 1
    if last - first < 2:
        yield block
        return
    yield from (Block("paragraph", row[0]) for row in rows[:first])
    yield replace(block, rows=rows[first:last])
    for row in rows[last:]:
        text, *rest = (cell for cell, left in zip(row, ("", *row), strict=False) if cell != left)
        yield Block("paragraph", f"{text}: {' / '.join(filter(None, rest))}" if any(rest) else text)


def _alone(row: tuple[str, ...]) -> bool:
    """Whether a row has one text, merged over all of its cells or in the first of three and more: a
    corner left empty, or a second column without a name, makes no title of a row of heads."""
    merged = len(row) > 1 and len(set(row)) == 1
    return merged or (len(row) > 2 and bool(row[0]) and not any(row[1:]))


def _is_note(row: tuple[str, ...]) -> bool:
    """Whether a row of a wide table ends before the middle of it and holds no figures: those of
    a year that has only begun are a record."""
    last = max((i for i, text in enumerate(row, 1) if text), default=0)
    return len(row) >= 6 and 2 * last < len(row) and not any(map(FIGURES.fullmatch, row[1:]))


def _span(count: int) -> int:
    return min(max(count, 1), WIDEST_SPAN)


def _trim(rows: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    """Equally long rows of the columns with text; sparse sheets are never laid out in full."""
    kept = sorted({i for row in rows for i, text in enumerate(row) if text})
    return tuple(tuple(row[i] if i < len(row) else "" for i in kept) for row in rows if any(row))
