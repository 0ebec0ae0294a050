"""Documents to corpus: normalise, drop what repeats, mask what is personal, split by document."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from onsil.corpus.deduplicate import copies, repeated_lines
from onsil.corpus.names import shown_path
from onsil.corpus.normalize import normalize
from onsil.corpus.pii import mask, mask_document
from onsil.documents.types import Block, Document, read_documents, write_documents
from onsil.lineage import Artifact, Run, stage

HELD_OUT = 0.12


@dataclass(frozen=True)
class Corpus:
    """Curated documents and the split each belongs to."""

    documents: tuple[Document, ...]
    split: dict[str, str]

    @property
    def train(self) -> tuple[Document, ...]:
        return tuple(d for d in self.documents if self.split[d.path] == "train")

    @property
    def heldout(self) -> tuple[Document, ...]:
        return tuple(d for d in self.documents if self.split[d.path] == "heldout")


def document_text(document: Document) -> str:
    """A document as plain text: headings and paragraphs on lines, table rows as «a | b»."""
    lines = []
    for block in document.blocks:
        lines += [" | ".join(r) for r in block.rows] if block.kind == "table" else [block.text]
    return "\n".join(line for line in lines if line)


def map_text(document: Document, change: Callable[[str], str]) -> Document:
    """The document with `change` applied to title, blocks and cells."""
    blocks = tuple(
        Block(b.kind, change(b.text), b.level, tuple(tuple(map(change, r)) for r in b.rows))
        for b in document.blocks
    )
    return replace(document, title=change(document.title), blocks=blocks)


def split_documents(documents: list[Document]) -> dict[str, str]:
    """`{path: "train" | "heldout"}` by digest of each document; with four or more documents at
    least one is held out, with fewer none."""

    def place(document: Document) -> float:
        return int(hashlib.sha256(document.sha256.encode()).hexdigest()[:8], 16) / 2**32

    held = {d.path for d in documents if place(d) < HELD_OUT}
    if len(documents) < 4:
        held = set()
    elif not held:
        held = {min(documents, key=place).path}
    return {d.path: "heldout" if d.path in held else "train" for d in documents}


def curate_documents(documents: list[Document]) -> tuple[list[Document], dict]:
    """Curated documents and the report of what was changed, removed and masked."""
    kept, report, _ = review_documents(documents)
    return kept, report


def review_documents(documents: list[Document]) -> tuple[list[Document], dict, list[dict]]:
    """`curate_documents` with the review list: every identifier masked or doubtful, no values.
    A document whose path holds an identifier goes by its shown path from here on."""
    rules: Counter[str] = Counter()
    pii: dict[str, Counter[str]] = {}

    def normal(text: str) -> str:
        changed, counts = normalize(text)
        rules.update(counts)
        return changed

    read = [map_text(d, normal) for d in documents]
    repeated = repeated_lines(read)
    numbers = [[i for i, b in enumerate(d.blocks) if not _repeats(b, repeated)] for d in read]
    read = [
        replace(d, blocks=tuple(d.blocks[i] for i in left))
        for d, left in zip(read, numbers, strict=True)
    ]
    removed = {
        i: ("nothing left to read", "") for i, d in enumerate(read) if not document_text(d).strip()
    }
    said = [i for i in range(len(read)) if i not in removed]
    removed |= {said[i]: why for i, why in copies([read[i] for i in said]).items()}
    shown = [shown_path(d.path, d.sha256) for d in read]
    called = {d.path: path for d, path in zip(read, shown, strict=True)} | {"": ""}
    kept, reviews = [], []
    for i, document in enumerate(read):
        if i in removed:
            continue
        masked, done = mask_document(document, numbers[i], shown[i])
        kept.append(masked)
        reviews += done.reviews
        if done.counts:
            pii.setdefault(masked.path, Counter()).update(done.counts)
    texts = [document_text(d) for d in kept]
    hangul = sum(len(re.findall("[가-힣]", t)) for t in texts)
    latin = sum(len(re.findall("[A-Za-z]", t)) for t in texts)
    report = {
        "documents_in": len(documents),
        "documents_out": len(kept),
        "characters": sum(map(len, texts)),
        "bytes": sum(len(t.encode()) for t in texts),
        "hangul_share": round(hangul / max(1, hangul + latin), 4),
        "removed": sorted(
            ({"path": shown[i], "reason": r, "of": called[of]} for i, (r, of) in removed.items()),
            key=lambda row: row["path"],
        ),
        "boilerplate": [{"text": mask(t)[0], "documents": n} for t, n in sorted(repeated.items())],
        "normalisation": dict(sorted(rules.items())),
        "pii": {
            "by_kind": dict(sorted(sum(pii.values(), Counter()).items())),
            "by_document": {p: dict(sorted(c.items())) for p, c in sorted(pii.items())},
        },
    }
    return kept, report, reviews


def _repeats(block: Block, repeated: Counter[str]) -> bool:
    return block.kind == "paragraph" and block.text.strip() in repeated


@stage(version=7)
def curate(*, documents: Artifact, out: Path, run: Run) -> dict:
    """documents.jsonl (curated), split.json, report.json and pii_review.jsonl."""
    kept, report, reviews = review_documents(list(read_documents(documents / "documents.jsonl")))
    split = split_documents(kept)
    write_documents(kept, out / "documents.jsonl")
    for name, value in (("split", split), ("report", report)):
        text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True)
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    with (out / "pii_review.jsonl").open("w", encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in reviews)
    return {k: report[k] for k in ("documents_in", "documents_out", "bytes")}


def load_corpus(corpus: Artifact | Path) -> Corpus:
    split = json.loads((corpus / "split.json").read_text(encoding="utf-8"))
    return Corpus(tuple(read_documents(corpus / "documents.jsonl")), split)
