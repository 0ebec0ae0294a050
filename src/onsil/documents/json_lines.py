"""JSON Lines to paragraphs: the fields of each line that are text.

A data set is a line an object. A string is taken for text if it has two words or Hangul in it;
identifiers, addresses and labels are not what anybody asks about. A `title` (or 제목, subject,
name, headline) becomes a heading over the rest of its line. Lists and objects inside are gone
through in order, so a conversation keeps its turns.

Left out: the names of the fields, numbers, and short codes.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from onsil.documents.text import decode
from onsil.documents.types import Block
from onsil.errors import OnsilError

TITLES = frozenset(("title", "subject", "headline", "name", "제목", "이름"))
LONGEST_HEADING = 200
TEXT = re.compile(r"\S\s+\S|[가-힣]")
ADDRESS = re.compile(r"\s*(?:https?|ftp|file|mailto):\S+\s*$")


def read_jsonl(data: bytes) -> tuple[str, list[Block]]:
    """The blocks of all lines; a data set names no title."""
    blocks: list[Block] = []
    for number, line in enumerate(decode(data)[0].split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise _not_json(number, str(error)) from error
            blocks += _blocks(value, "")
    return "", blocks


def _blocks(value: Any, key: str) -> Iterator[Block]:
    if isinstance(value, dict):
        titles = [k for k in value if k.lower() in TITLES and isinstance(value[k], str)]
        for k in titles[:1] + [k for k in value if k not in titles[:1]]:
            yield from _blocks(value[k], k)
    elif isinstance(value, list):
        for item in value:
            yield from _blocks(item, key)
    elif isinstance(value, str) and TEXT.search(value) and not ADDRESS.match(value):
        text = value.strip()
        heading = key.lower() in TITLES and "\n" not in text and len(text) <= LONGEST_HEADING
        yield Block("heading" if heading else "paragraph", text, int(heading))


def _not_json(number: int, what: str) -> OnsilError:
    return OnsilError(
        en=(
            f"line {number} is not JSON ({what})",
            "In JSON Lines every line is one JSON value.",
            "Mend the line, or rename the file if it is something else.",
        ),
        ko=(
            f"{number}번째 줄이 JSON이 아닙니다({what}).",
            "JSON Lines는 한 줄에 JSON 값 하나를 적는 형식입니다.",
            "그 줄을 고치거나, 다른 형식이라면 파일 이름을 바꾸어 주세요.",
        ),
    )
