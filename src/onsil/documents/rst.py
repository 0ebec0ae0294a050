"""reStructuredText to blocks: headings by their adornment, paragraphs, lists, simple tables.

A heading is a line over (or between) a line of punctuation at least as wide; which character means
which level is the order in which they appear, as docutils has it. Directives are dropped with their
options and their content is kept, for a note is text; comments, targets and substitutions go. A
table drawn with `=` or with `+---+` is parted where its rulers part it. Inline marks are stripped.

Left out: what a directive would bring in (`include`, files of a `csv-table`), footnote numbers,
spans in drawn tables.
"""

import csv
import re
import textwrap
from collections.abc import Iterator

from onsil.documents.lines import width
from onsil.documents.tables import Cell, grid
from onsil.documents.text import decode
from onsil.documents.types import Block

RULER = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*$")
SIMPLE = re.compile(r"\s*=+(\s+=+)+\s*$")
DRAWN = re.compile(r"\s*\+(?:[-=]+\+)+\s*$")
DIRECTIVE = re.compile(r"\s*\.\.\s+(?:\|[^|]+\|\s+)?([\w:-]+)\s?::\s*(.*)$")
SILENT = re.compile(
    r"image|include|toctree|index|contents|highlight|raw|meta|auto\w+|module"
    r"|currentmodule"
)
SPOKEN = re.compile(  # directives whose first line is text; of the others it is a setting
    r"note|warning|tip|hint|important|caution|danger|error|attention|seealso|admonition|topic"
    r"|sidebar|rubric|title|versionadded|versionchanged|deprecated|replace|epigraph|todo"
)
CODE = re.compile(r"code(-block)?|sourcecode|parsed-literal|doctest|math|prompt|testcode")
NOTE = r"\.\.\s+\[[^\]]+\]\s+(?=\S)"
COMMENT = re.compile(rf"\s*(?!{NOTE})\.\.(\s|$)")
OPTION = re.compile(r"\s*:[\w-]+:(\s|$)")
ITEM = re.compile(rf"\s*(?:(?:[-*+•]|#[.)])\s+(?=\S)|{NOTE}|(?=\d{{1,3}}[.)]\s+\S))")
INLINE = (
    (re.compile(r"``(.+?)``"), r"\1"),
    (re.compile(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^`>]+>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)(?:\s*<[^`>]+>)?`__?"), r"\1"),
    (re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*]+?)(?<=\S)\*(?![\w*])"), r"\1"),
    (re.compile(r"`([^`]+)`"), r"\1"),
    (re.compile(r"\|([^|\s][^|]*)\|_?"), r"\1"),
    (re.compile(r"\s?\[[#*\w]+\]_(?=\W|$)"), ""),
    (re.compile(r"(?<=\w)__?(?=\W|$)"), ""),
)


def read_rst(data: bytes) -> tuple[str, list[Block]]:
    """The blocks in order; the first heading names the document."""
    lines = [line.expandtabs().rstrip() for line in decode(data)[0].splitlines()]
    return "", list(_Lines(lines).read())


class _Lines:
    """One pass over the lines; `order` is the adornments seen so far, outermost first."""

    def __init__(self, lines: list[str]):
        self.lines, self.order = lines, []

    def read(self) -> Iterator[Block]:
        i, open_lines = 0, []
        while i < len(self.lines):
            line = self.lines[i]
            taken, blocks = self.heading(i) or self.marked(i) or self.table(i) or (0, [])
            if taken and not open_lines:
                yield from blocks
                i += taken
                continue
            if not line.strip() or ITEM.match(line) or taken:
                yield from _paragraph(open_lines)
                if open_lines and open_lines[-1].endswith("::"):
                    end = self.below(i, _indent(self.lines[i - 1]))
                    yield from _code(self.lines[i:end])
                    i = max(end, i + 1 - bool(line.strip()))
                    open_lines = []
                    continue
                open_lines = []
                if taken:
                    continue
            if line.strip():
                item = ITEM.match(line)
                open_lines.append(line[item.end() :] if item else line)
            i += 1
        yield from _paragraph(open_lines)

    def below(self, i: int, indent: int) -> int:
        """Where the lines that stand further in than `indent` end, from line `i` on."""
        while i < len(self.lines) and (not self.lines[i] or _indent(self.lines[i]) > indent):
            i += 1
        return i

    def heading(self, i: int) -> tuple[int, list[Block]] | None:
        above = bool(RULER.match(self.lines[i])) and i + 2 < len(self.lines)
        at = i + 1 if above else i
        if at + 1 >= len(self.lines) or not self.lines[at].strip():
            return None
        text, ruler = self.lines[at].strip(), RULER.match(self.lines[at + 1])
        if not ruler or RULER.match(text) or (not above and self.lines[at][0] == " "):
            return None
        if above and self.lines[i].strip() != self.lines[at + 1].strip():
            return None
        if not above and len(ruler[0].strip()) < min(len(text), width(text)):
            return None
        key = (ruler[1], above)
        if key not in self.order:
            self.order.append(key)
        block = Block("heading", plain(text), min(self.order.index(key) + 1, 9))
        return (3 if above else 2), [block]

    def marked(self, i: int) -> tuple[int, list[Block]] | None:
        """A directive (its words go, its content stays to be read) or a comment (goes whole)."""
        line = self.lines[i]
        directive = DIRECTIVE.match(line)
        if directive is None and not COMMENT.match(line):
            return (1, []) if OPTION.match(line) and line.startswith(" ") else None
        end = self.below(i + 1, _indent(line))
        if directive is None or SILENT.fullmatch(directive[1]):
            return end - i, []
        if directive[1] == "csv-table":
            return end - i, _listed(plain(directive[2]), self.lines[i + 1 : end])
        if CODE.fullmatch(directive[1]):
            body = [line for line in self.lines[i + 1 : end] if not OPTION.match(line)]
            return end - i, list(_code(body))
        shown = plain(directive[2]) if SPOKEN.fullmatch(directive[1]) else ""
        return 1, [Block("paragraph", shown)] if shown else []

    def table(self, i: int) -> tuple[int, list[Block]] | None:
        line = self.lines[i]
        if DRAWN.match(line):
            end = i
            while end < len(self.lines) and self.lines[end].strip()[:1] in ("+", "|"):
                end += 1
            return end - i, _table(_drawn(self.lines[i:end]))
        if SIMPLE.match(line):
            rulers = [n for n in range(i, len(self.lines)) if SIMPLE.match(self.lines[n])]
            blank = [n for n in rulers if not "".join(self.lines[n + 1 : n + 2]).strip()]
            if not blank or len(rulers) < 2:
                return None
            return blank[0] + 1 - i, _table(_simple(line, self.lines[i + 1 : blank[0]]))
        return None


def _paragraph(lines: list[str]) -> Iterator[Block]:
    text = plain(" ".join(line.strip() for line in lines))
    if text.endswith("::"):  # code follows; one colon is read aloud, unless it stands alone
        text = text[:-2].rstrip() if text[:-2].endswith((" ", ":")) else text[:-1]
        text = "" if text == ":" else text
    if text and not RULER.match(text):
        yield Block("paragraph", text)


def _code(lines: list[str]) -> Iterator[Block]:
    """Code keeps its lines."""
    if text := textwrap.dedent("\n".join(lines)).strip("\n"):
        yield Block("paragraph", text)


def _listed(title: str, lines: list[str]) -> list[Block]:
    """A table whose rows are written as CSV, its heads in an option."""
    heads = [line.partition(":header:")[2] for line in lines if ":header:" in line]
    body = [line for line in lines if line.strip() and not OPTION.match(line)]
    rows = csv.reader([text.strip() for text in (*heads, *body)], skipinitialspace=True)
    found = _table([[Cell(plain(cell.strip())) for cell in row] for row in rows])
    return [Block("paragraph", title)] * bool(title) + found


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _table(rows: list[list[Cell]]) -> list[Block]:
    laid_out = grid(rows)
    return [Block("table", rows=laid_out)] if laid_out else []


def _drawn(lines: list[str]) -> list[list[Cell]]:
    rows: list[list[str]] = []
    fresh = True
    for line in lines:
        if line.strip().startswith("+"):
            fresh = True
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if fresh or len(cells) != len(rows[-1]):
            rows.append(cells)
        else:
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
        fresh = False
    return [[Cell(plain(cell)) for cell in row] for row in rows]


def _simple(ruler: str, lines: list[str]) -> list[list[Cell]]:
    """Columns begin where the ruler's pieces do, counted in columns of the page."""
    starts = [match.start() for match in re.finditer("=+", ruler)]
    rows = []
    for line in lines:
        if line.strip() and not SIMPLE.match(line) and set(line.strip()) != {"-", " "}:
            rows.append([Cell(plain(part)) for part in _cut(line, starts)])
    return rows


def _cut(line: str, starts: list[int]) -> list[str]:
    parts, at, column = [""] * len(starts), 0, 0
    for c in line:
        while at + 1 < len(starts) and column >= starts[at + 1]:
            at += 1
        parts[at] += c
        column += width(c)
    return [part.strip() for part in parts]


def plain(text: str) -> str:
    """Inline marks stripped."""
    for pattern, replacement in INLINE:
        text = pattern.sub(replacement, text)
    return re.sub(r"\\(.)", r"\1", text).strip()
