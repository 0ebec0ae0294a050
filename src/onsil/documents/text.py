"""Bytes to text: which of the encodings that Korean offices use is this?

A byte-order mark decides. Without one, bytes that are valid UTF-8 are UTF-8: text in another
encoding almost never is by accident. What remains is CP949 (the Windows code page that contains
EUC-KR) or UTF-16 saved without its mark; each is tried strictly and the reading with the most
Hangul and ASCII wins, CP949 on a tie, for it is far more common. A file that no reading explains
is refused rather than guessed: wrong syllables in a corpus are worse than a missing file.

Plain text has lines and no marks, so its blocks come from `lines`; a table drawn with «|» is one.
Left out: Johab and the encodings of other languages. A few syllables of CP949 that happen to be
valid UTF-8 are read as UTF-8, which only longer text can tell apart.
"""

import codecs
import re
from itertools import groupby

from onsil.documents.lines import paragraphs
from onsil.documents.types import Block
from onsil.errors import OnsilError

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
PLAUSIBLE = 0.5  # below this share of Hangul, ASCII and Han a reading is taken for noise
COMMON = re.compile("[\t-~가-힣]")
RARER = re.compile(  # jamo, Han, the symbols of Korean keyboards, full-width forms
    "[\u00a0-\u00ff\u2010-\u27bf\u3000-\u318f\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]"
)
FEWEST_ROWS = 3  # of a drawn table without a ruled line
RULE = re.compile(r"(?=.*[-=─])[-=+:|─\s]+")
SAMPLE = 100_000  # characters looked at to judge a reading


def decode(data: bytes) -> tuple[str, str]:
    """The text and the name of its encoding; refuses what no encoding explains."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            text = _strict(data[len(mark) :], encoding)
            if text is None:
                raise _unreadable(data)
            return text, encoding
    text = _strict(data, "utf-8")
    if text is not None:
        return text, "utf-8"
    readings = [(_strict(data, name), name) for name in ("cp949", "utf-16-le", "utf-16-be")]
    fitting = [(text, name) for text, name in readings if text is not None]
    if not fitting:
        raise _unreadable(data)
    best, encoding = max(fitting, key=lambda reading: _plausibility(reading[0]))
    if _plausibility(best) < PLAUSIBLE:
        raise _unreadable(data)
    return best, encoding


def read_text(data: bytes) -> tuple[str, list[Block]]:
    """Plain text has no title; blank lines and unwrapped lines part its paragraphs."""
    blocks: list[Block] = []
    prose: list[str] = []
    for drawn, group in groupby(decode(data)[0].splitlines(), key=_barred):
        lines = list(group)
        if drawn and (rows := _table(lines)):
            blocks += [Block("paragraph", p) for p in paragraphs(prose)]
            blocks.append(Block("table", rows=rows))
            prose = []
        else:
            prose += lines
    return "", blocks + [Block("paragraph", p) for p in paragraphs(prose)]


def _barred(line: str) -> bool:
    return "|" in line or RULE.fullmatch(line) is not None


def _table(lines: list[str]) -> tuple[tuple[str, ...], ...]:
    """The rows of a drawn table; none where bars part commands or the entries of a log. A line of
    its own, or bars around it, says that it is one; else heads without a figure over rows with."""
    ruled = [line for line in lines if RULE.fullmatch(line)]
    rows = [
        tuple(cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|"))
        for line in lines
        if not RULE.fullmatch(line)
    ]
    if len(rows) < FEWEST_ROWS - bool(ruled) or len({len(row) for row in rows}) > 1:
        return ()
    if ruled or all(line.strip().startswith("|") for line in lines):
        return tuple(rows)
    figures = [any(map(str.isdigit, "".join(row))) for row in rows]
    return tuple(rows) if len(rows[0]) > 2 and not figures[0] and all(figures[1:]) else ()


def _strict(data: bytes, encoding: str) -> str | None:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if _looks_binary(text) else text


def _looks_binary(text: str) -> bool:
    """A NUL is never text; other control characters are forgiven one in a hundred."""
    if "\0" in text:
        return True
    sample = text[:SAMPLE]
    controls = sum(1 for c in sample if c < " " and c not in "\t\n\r\f\x1a")
    return controls > len(sample) / 100


def _plausibility(text: str) -> float:
    """1.0 for Hangul and ASCII, half as much for Han and the symbols of Korean keyboards."""
    sample = text[:SAMPLE]
    score = len(COMMON.findall(sample)) + len(RARER.findall(sample)) / 2
    return score / max(1, len(sample))


def _unreadable(data: bytes) -> OnsilError:
    start = data[:8].hex(" ")
    return OnsilError(
        en=(
            f"these bytes are not text in UTF-8, UTF-16 or CP949 (they begin {start})",
            "A wrong guess would put broken syllables into everything grown from the file.",
            "Save the file as UTF-8, or remove it if it is not text.",
        ),
        ko=(
            f"UTF-8, UTF-16, CP949 가운데 어느 것으로도 읽히지 않는 파일입니다(첫 바이트 {start}).",
            "인코딩을 잘못 짐작하면 깨진 글자가 말뭉치에 섞입니다.",
            "UTF-8로 다시 저장해 주세요. 글이 아닌 파일이라면 폴더에서 빼 주세요.",
        ),
    )
