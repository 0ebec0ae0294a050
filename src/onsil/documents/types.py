"""A document as every later room sees it: an ordered list of blocks with its origin attached.

Readers differ in what they parse, never in what they return. A heading keeps its level, a table
keeps its rows, everything else is a paragraph. Text is what the file says, untouched: NFC and the
other mappings belong to `corpus`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Block:
    """A heading (`level` 1 is the outermost), a paragraph, or a table (`rows` of cell texts)."""

    kind: Literal["heading", "paragraph", "table"]
    text: str = ""
    level: int = 0
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class FileRef:
    """A file as it was found: `path` relative to the folder (NFC, /), `sha256` of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Document:
    """One file read whole: `path` relative to the folder (NFC, /), `sha256` of its bytes."""

    path: str
    sha256: str
    format: str
    title: str
    blocks: tuple[Block, ...]


def write_documents(documents: Iterable[Document], path: Path) -> None:
    """One JSON object a line, keys in declaration order: equal documents are equal bytes."""
    with path.open("w", encoding="utf-8") as f:
        for document in documents:
            f.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")


def read_documents(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            blocks = tuple(
                Block(b["kind"], b["text"], b["level"], tuple(tuple(r) for r in b["rows"]))
                for b in row.pop("blocks")
            )
            yield Document(**row, blocks=blocks)
