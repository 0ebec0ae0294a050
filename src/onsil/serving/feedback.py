"""What people say of answers, and how it becomes lessons: only on the owner's word.

A click on 좋아요 or 아니에요, perhaps with the right answer, is somebody's claim and nothing more.
It is kept, with identifiers masked, in a file of its own. When the owner has looked at it and
adopts it, the stage `adopt_feedback` makes lessons of it in the form that training reads: a range
of characters in a passage. A right answer that stands in no passage teaches a model that quotes
nothing and is counted as such; neither does a mere «no». A question keeps its document's split.
"""

import json
import os
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onsil.corpus import load_corpus
from onsil.corpus.pii import mask
from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.instruction.lessons import Lesson
from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.lineage.spelling import file_digest, write_atomically
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.passages import Passage, passages_of, reading_text
from onsil.serving.guard import Refused
from onsil.serving.request_log import append_whole, read_lines

FOLDER, FILE = "feedback", "feedback.jsonl"
LARGEST = 16_000_000  # bytes; then somebody has to read it
FIELDS = {  # name → most characters
    "request_id": 64, "verdict": 4, "question": 1_000, "answer": 4_000, "correct": 2_000,
    "document": 500, "heading": 500, "digest": 64,
}  # fmt: skip
VERDICTS = ("good", "bad")
_alone = threading.Lock()


def checked(body: dict[str, Any]) -> dict[str, str]:
    """The fields of a piece of feedback. Raises Refused (400, naming the field)."""
    for name, value in body.items():
        if name not in FIELDS:
            raise Refused(400, f"Unknown field: {name}.", param=name)
        if not isinstance(value, str) or len(value) > FIELDS[name]:
            raise Refused(400, f"{name} must be text of at most {FIELDS[name]}.", param=name)
        if "\0" in value or any(0xD800 <= ord(c) < 0xE000 for c in value):
            raise Refused(400, f"{name} holds NUL or half of a surrogate pair.", param=name)
    if body.get("verdict") not in VERDICTS:
        raise Refused(400, "verdict must be good or bad.", param="verdict")
    for name in ("request_id", "question"):
        if not body.get(name, "").strip():
            raise Refused(400, f"{name} is missing.", param=name)
    return body


def keep(home: Path, owner: str, fields: dict[str, str]) -> str:
    """Append one piece, masked and on the disk before this returns: its id. Raises Refused (507)
    when the file is full or the disk is."""
    said = {name: mask(text)[0] for name, text in fields.items() if text}
    row = {"id": f"feedback-{uuid.uuid4().hex[:12]}", "at": round(time.time(), 3), "owner": owner}
    text = (json.dumps(row | said, ensure_ascii=False) + "\n").encode()
    path = home / FOLDER / FILE
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with _alone:
            if not append_whole(path, text, LARGEST, durable=True):
                raise Refused(507, "There is no room for more feedback.", "server_error")
    except OSError as e:
        raise Refused(507, f"The feedback could not be kept: {e.strerror}.", "server_error") from e
    return row["id"]


def read_feedback(home: Path) -> list[dict[str, Any]]:
    """What was said, oldest first; of one person about one answer the last word only."""
    path = home / FOLDER / FILE
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for row in read_lines(path, kept=0):
        about = row["owner"], row["request_id"]
        last.pop(about, None)
        last[about] = row
    return list(last.values())


def adopt(ws: Workspace, name: str, ids: list[str] | None = None) -> tuple[str, dict[str, int]]:
    """Make lessons of the pieces with these ids (None: of all): (`NAME.feedback@vN`, counts).
    Raises OnsilError when there are none, or the model was not grown from documents."""
    rows = [r for r in read_feedback(ws.root) if ids is None or r["id"] in ids]
    if not rows or (ids and len(rows) < len(set(ids))):
        missing = ", ".join(sorted(set(ids or []) - {r["id"] for r in rows})) or "–"
        raise OnsilError(
            en=(
                f"There is no such feedback: {missing}.",
                "Only what somebody said can be adopted.",
                f"onsil feedback {name} shows what there is.",
            ),
            ko=(
                f"그런 의견이 없습니다: {missing}.",
                "실제로 받은 의견만 학습 자료로 쓸 수 있습니다.",
                f"onsil feedback {name}(으)로 받은 의견을 볼 수 있습니다.",
            ),
        )
    called, _, model = ws.resolve(name)
    corpus = ((ws.record(model.key) or {}).get("arguments") or {}).get("corpus")
    if corpus is None:
        from onsil.retrieval.answering import not_grown

        raise not_grown(called)
    folder = ws.root / FOLDER
    text = "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in rows)
    draft = folder / f"adopting-{os.getpid()}.jsonl"
    write_atomically(draft, text)
    digest = file_digest(draft)
    path = folder / f"{digest[:16]}.jsonl"
    os.replace(draft, path)
    made = adopt_feedback(
        ws,
        corpus=ws.artifact(corpus["artifact"], corpus["key"]),
        feedback=FileRef(path.name, digest),
        run={"source": folder},
    )
    version = ws.register(f"{called}.feedback", made)
    return f"{called}.feedback@{version}", (ws.record(made.key) or {})["notes"]


@stage(version=1)
def adopt_feedback(*, corpus: Artifact, feedback: FileRef, out: Path, run: Run) -> dict:
    """lessons.jsonl of what people said about answers, and feedback.jsonl, what they said."""
    text = (run.source / feedback.path).read_text(encoding="utf-8")
    (out / "feedback.jsonl").write_text(text, encoding="utf-8")
    held = load_corpus(corpus)
    passages = [p for p in passages_of(held.documents) if not p.superseded]
    index, counts = BM25(passages), Counter[str]()
    with (out / "lessons.jsonl").open("w", encoding="utf-8") as f:
        for row in map(json.loads, text.splitlines()):
            lesson = lesson_of(row, index, held.split)
            counts["lessons" if lesson else "not placed"] += 1
            if lesson:
                f.write(json.dumps(asdict(lesson), ensure_ascii=False) + "\n")
    return dict(sorted(counts.items()))


def lesson_of(row: dict[str, Any], index: BM25, split: dict[str, str]) -> Lesson | None:
    """The lesson of one piece: the right answer where it stands, or that the nearest passage has
    none; None where neither is said."""
    good, answered = row["verdict"] == "good", bool(row.get("answer"))
    right = row.get("correct") or (row.get("answer") if good else None)
    for passage in _candidates(row, index):
        read = reading_text(passage)
        if right and (place := _place(right, read, len(read) - len(passage.text))):
            return _lesson(row, passage, place, split)
        if good and not answered and not right:
            return _lesson(row, passage, None, split)
    return None


def _lesson(
    row: dict[str, Any], passage: Passage, place: tuple[int, int] | None, split: dict[str, str]
) -> Lesson:
    read, where = reading_text(passage), (passage.document, passage.heading)
    return Lesson(row["question"], read, place, *where, "feedback", split[passage.document])


def _candidates(row: dict[str, Any], index: BM25) -> Iterator[Passage]:
    """The passage that was cited, then those nearest to the question."""
    cited = row.get("document"), row.get("heading")
    yield from (p for p in index.passages if (p.document, p.heading) == cited)
    yield from (index.passages[i] for _, i in index.search(row["question"], limit=5))


def _place(answer: str, read: str, lead: int) -> tuple[int, int] | None:
    """Where an answer stands in a passage, its own text before its headings; white space may
    differ."""
    shape = re.compile(r"\s+".join(map(re.escape, answer.strip(" .\n").split())))
    found = shape.search(read, lead) or shape.search(read)
    return found.span() if found and found.group() else None
