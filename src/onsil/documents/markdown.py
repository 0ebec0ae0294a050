"""Markdown to blocks: headings, pipe tables, paragraphs.

Line by line, as the CommonMark block structure allows for the marks people use: ATX and setext
headings, fenced code, quotes, list items, GFM tables. Inline marks are stripped and their text
kept; code keeps its text exactly. YAML front matter is not body text, but its `title` (or `제목`)
names the document.

Left out: reference definitions, footnote numbering, indented code (read as paragraphs) and HTML
blocks, whose tags are dropped and whose text stays.
"""

import html
import re
from bisect import bisect_right

from onsil.documents.text import decode
from onsil.documents.types import Block

FRONT = re.compile(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
FRONT_TITLE = re.compile(r"^(?:title|제목)[ \t]*:[ \t]*(.+?)[ \t]*$", re.MULTILINE | re.IGNORECASE)
ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$")
FENCE = re.compile(r"[ \t]*(`{3,}(?!.*`)|~{3,})")
BULLET = re.compile(r"[ \t]*[-*+][ \t]+(?:\[[ xX]\][ \t]+)?(?=\S)")
NUMBER = re.compile(r"[ \t]*\d{1,9}[.)][ \t]+(?=\S)")
QUOTE = re.compile(r" {0,3}>[ \t]?")
DELIMITER = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
REFERENCE = re.compile(  # «[name]: place "title"», not «[비고]: 수습 직원은 …»
    r" {0,3}\[(?!\^)[^\]]+\]:[ \t]*(?:<[^<>]*>|\S*[/.#:@]\S*)"
    r"(?:[ \t]+(?:\"[^\"]*\"|'[^']*'|\([^()]*\)))?[ \t]*$"
)
FOOTNOTE = re.compile(r" {0,3}\[\^[^\]]+\]:[ \t]*")

CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
INLINE = (
    (re.compile(r"\[\^\w+\]"), ""),
    (re.compile(r"!?\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?:[^()]|\([^()]*\))*\)"), r"\1"),
    (re.compile(r"!?\[([^\[\]]+)\]\[[^\[\]]*\]"), r"\1"),
    (re.compile(r"<((?:https?|mailto):[^<>\s]+)>"), r"\1"),
    (re.compile(r"<br\s*/?>", re.IGNORECASE), "\n"),
    (re.compile(r"</?[A-Za-z][A-Za-z0-9-]*(?:\s+[A-Za-z_:][^<>]*|\s*/?)>"), ""),
    (re.compile(r"(\*{1,3})(?=[^\s*])(.+?)(?<=\S)\1", re.DOTALL), r"\2"),
    (re.compile(r"(?<!\w)(_{1,3})(?=\S)(.+?)(?<=\S)\1(?!\w)", re.DOTALL), r"\2"),
    (re.compile(r"~~(?=\S)(.+?)(?<=\S)~~", re.DOTALL), r"\1"),
)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
HELD = re.compile("\ue000(\\d+)\ue001")


def read_markdown(data: bytes) -> tuple[str, list[Block]]:
    """The title of the front matter (or nothing) and the blocks in order."""
    text = decode(data)[0].replace("\r\n", "\n").replace("\r", "\n")
    title = ""
    if front := FRONT.match(text):
        text = text[front.end() :]
        if named := FRONT_TITLE.search(front[1]):
            title = named[1].strip("\"'")
    return title, _Blocks(text.split("\n")).read()


def plain(text: str) -> str:
    """Inline marks stripped. Code and escaped characters are held aside while marks are found."""
    held: list[str] = []

    def hold(kept: str) -> str:
        held.append(kept)
        return f"\ue000{len(held) - 1}\ue001"

    text = CODE.sub(lambda m: hold(_code(m[2])), text)
    text = ESCAPE.sub(lambda m: hold(m[1]), text)
    text = COMMENT.sub("", text)
    for pattern, replacement in INLINE:
        text = pattern.sub(replacement, text)
    return HELD.sub(lambda m: held[int(m[1])], html.unescape(text)).strip()


def cells(line: str) -> tuple[str, ...]:
    """The cells of a pipe row; `\\|` is a pipe inside a cell."""
    row = line.strip().removeprefix("|")
    if row.endswith("|") and not row.endswith("\\|"):
        row = row[:-1]
    parts = re.split(r"(?<!\\)\|", row)
    return tuple(plain(part.replace("\\|", "|")) for part in parts)


def _code(text: str) -> str:
    text = text.replace("\n", " ")
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == " " and text.strip() else text


class _Blocks:
    """One pass over the lines, with the paragraph that is still open."""

    def __init__(self, lines: list[str]):
        self.lines, self.blocks, self.open = lines, [], []
        self.ends = [i for i, line in enumerate(lines) if "-->" in line]
        self.prose = True  # what is open is no item of a list
        self.quoted = False  # what is open was quoted

    def read(self) -> list[Block]:
        i = 0
        while i < len(self.lines):
            i = self.step(i)
        self.close()
        return self.blocks

    def step(self, i: int) -> int:
        """Take the construct at line `i`; where the next one begins."""
        line = self.lines[i]
        if fence := FENCE.match(line):
            return self.fenced(i, fence[1])
        quote = QUOTE.match(line)
        line = QUOTE.sub("", line, count=1)
        bare = CODE.sub(lambda m: "·" * len(m[0]), line)
        if "-->" not in bare[(at := bare.rfind("<!--")) :] and at >= 0 and (end := self.ending(i)):
            if line[:at].strip():
                self.open.append(line[:at])
            self.lines[end] = self.lines[end].partition("-->")[2]
            return end
        if note := FOOTNOTE.match(line):
            self.close()
            line = line[note.end() :]
        if self.open and SETEXT.match(line) and self.prose and self.quoted == bool(quote):
            self.close(level=1 if "=" in line else 2)
        elif heading := ATX.match(line):
            self.close()
            self.add(Block("heading", plain(heading[2] or ""), len(heading[1])))
        elif not line.strip() or RULE.match(line) or REFERENCE.match(line):
            self.close()
        elif "|" in line and i + 1 < len(self.lines) and self.is_table(line, self.lines[i + 1]):
            return self.table(i)
        elif bullet := BULLET.match(line):
            self.close()
            self.open, self.prose = [line[bullet.end() :]], False
        elif NUMBER.match(line):
            self.close()
            self.open, self.prose = [line], False
        else:
            self.quoted = bool(quote) if not self.open else self.quoted
            self.open.append(line)
        return i + 1

    def is_table(self, line: str, following: str) -> bool:
        following = QUOTE.sub("", following, count=1)
        return (
            "-" in following
            and DELIMITER.match(following) is not None
            and len(cells(line)) == len(cells(following))
        )

    def table(self, i: int) -> int:
        self.close()
        rows = [cells(QUOTE.sub("", self.lines[i], count=1))]
        columns, i = len(rows[0]), i + 2
        while i < len(self.lines) and "|" in self.lines[i] and self.lines[i].strip():
            row = cells(QUOTE.sub("", self.lines[i], count=1))
            rows.append((row + ("",) * columns)[:columns])
            i += 1
        self.add(Block("table", rows=tuple(row for row in rows if any(row))))
        return i

    def fenced(self, i: int, fence: str) -> int:
        self.close()
        inside = []
        i += 1
        while i < len(self.lines) and not self.lines[i].strip().startswith(fence):
            inside.append(self.lines[i])
            i += 1
        self.add(Block("paragraph", "\n".join(inside).strip("\n")))
        return i + 1

    def ending(self, i: int) -> int:
        """The line on which a comment that begins on line `i` ends; 0 for one that never does,
        which is text."""
        following = bisect_right(self.ends, i)
        return self.ends[following] if following < len(self.ends) else 0

    def close(self, level: int = 0) -> None:
        """End the open paragraph; two trailing spaces or a backslash keep its line breaks."""
        text = ""
        for line in self.open:
            hard = line.endswith("  ") or line.rstrip().endswith("\\")
            text += line.strip().removesuffix("\\") + ("\n" if hard else " ")
        self.open, self.prose = [], True
        kind = "heading" if level else "paragraph"
        self.add(Block(kind, plain(text), level))

    def add(self, block: Block) -> None:
        if block.text.strip() or block.rows:
            self.blocks.append(block)
