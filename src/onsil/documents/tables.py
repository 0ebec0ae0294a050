"""Cells that span rows and columns, laid out as a plain grid.

A merged cell is repeated in every place it covers, so that each row can be read alone: the row
still says which group it belongs to when a passage is cut out of the table.
"""

from collections.abc import Iterable
from dataclasses import dataclass

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


def _span(count: int) -> int:
    return min(max(count, 1), WIDEST_SPAN)


def _trim(rows: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    """Equally long rows of the columns with text; sparse sheets are never laid out in full."""
    kept = sorted({i for row in rows for i, text in enumerate(row) if text})
    return tuple(tuple(row[i] if i < len(row) else "" for i in kept) for row in rows if any(row))
