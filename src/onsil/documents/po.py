"""Translation catalogues (gettext PO) to one table: the text and its translation, row by row.

Strings go over several quoted lines and keep C escapes. An entry without a translation has one
cell filled; plural forms stand in one cell, a line each.

Left out: comments, references, contexts, the header entry, and obsolete entries (`#~`).
"""

import re

from onsil.documents.text import decode
from onsil.documents.types import Block

KEYWORD = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr)(?:\[\d+\])?\s+"(.*)"\s*$')
MORE = re.compile(r'"(.*)"\s*$')
ESCAPE = re.compile(r"\\(.)")
ESCAPES = {"n": "\n", "t": "\t", "r": ""}


def read_po(data: bytes) -> tuple[str, list[Block]]:
    """One table of (text, translation); a catalogue names no title."""
    entries: list[dict[str, list[str]]] = []
    field: list[str] | None = None
    for raw in decode(data)[0].splitlines():
        line = raw.strip()
        if match := KEYWORD.match(line):
            if match[1] == "msgid":
                entries.append({})
            key = {"msgid_plural": "msgid"}.get(match[1], match[1])
            field = entries[-1].setdefault(key, []) if entries else [""]
            field.append(match[2])
        elif field and (match := MORE.match(line)):
            field[-1] += match[1]
        else:
            field = None
    rows = tuple(
        (_plain(entry.get("msgid", [])), _plain(entry.get("msgstr", [])))
        for entry in entries
        if _plain(entry.get("msgid", []))
    )
    return "", [Block("table", rows=rows)] if rows else []


def _plain(parts: list[str]) -> str:
    whole = (ESCAPE.sub(lambda m: ESCAPES.get(m[1], m[1]), part) for part in parts)
    return "\n".join(part for part in whole if part).strip()
