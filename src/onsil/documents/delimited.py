"""CSV and TSV to one table: what separates the cells is found, not asked.

The encoding is found as in `text` (Excel in Korea writes CP949 unless told otherwise). For the
separator, each candidate reads the first rows; the one under which most rows have the same number
of cells, and more than one, is right. A file with a single column has no cells to keep apart, so
its rows are paragraphs.

Left out: which row is a heading (a table's first row says it as well as we could), and numbers or
dates as values; cells are text.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable

from onsil.documents.tables import Cell, grid
from onsil.documents.text import decode
from onsil.documents.types import Block
from onsil.errors import OnsilError

SEPARATORS = ",\t;|"
SAID = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # a first line only Excel writes and reads
SAMPLE = 60  # rows that decide
LONGEST_CELL = 2**24


def read_csv(data: bytes) -> tuple[str, list[Block]]:
    """The rows as one table; a CSV names no title."""
    text = decode(data)[0]
    said = SAID.match(text)
    if said:
        text = text[said.end() :]
    csv.field_size_limit(LONGEST_CELL)
    rows = list(
        csv.reader(io.StringIO(text, newline=""), delimiter=said[1] if said else separator(text))
    )
    laid_out = grid([Cell(cell.strip()) for cell in row] for row in rows)
    if laid_out and len(laid_out[0]) == 1:
        return "", [Block("paragraph", row[0]) for row in laid_out]
    return "", [Block("table", rows=laid_out)] if laid_out else []


def separator(text: str) -> str:
    """The character that parts the cells, judged by how evenly it parts the first rows."""
    evenness = _evenness(text)
    if evenness("\t")[0] == 1.0:  # nobody writes a tab by chance, as he writes 1,200,000
        return "\t"
    return max(SEPARATORS, key=evenness)


def is_delimited(data: bytes) -> bool:
    """Whether this is text of two lines or more most of which have the same number of cells."""
    try:
        text = decode(data)[0]
    except OnsilError:
        return False
    share, _ = max(map(_evenness(text), SEPARATORS))
    return share > 1 / 2 and len(text.splitlines()) > 1


def _evenness(text: str) -> Callable[[str], tuple[float, int]]:
    """Of a separator: the share of the first rows with the usual number of cells, and that."""
    head = "".join(text.splitlines(keepends=True)[: 2 * SAMPLE])

    def evenness(candidate: str) -> tuple[float, int]:
        rows = list(csv.reader(io.StringIO(head, newline=""), delimiter=candidate))[:SAMPLE]
        counts = Counter(len(row) for row in rows if row)
        usual, times = counts.most_common(1)[0] if counts else (1, 0)
        return (times / max(1, sum(counts.values())), usual) if usual > 1 else (0.0, 1)

    return evenness
