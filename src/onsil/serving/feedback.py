"""What people say of answers, and what of it the owner adopts.

A click on 좋아요 or 아니에요, perhaps with the right answer, is somebody's claim and nothing more.
It is kept, with identifiers masked, in a file of its own. What the owner has looked at and adopted
is an artefact with a name, `NAME.feedback`, whose newest version `onsil grow --name NAME` makes
lessons of (`instruction/feedback.py`); what was adopted can be dropped again.
"""

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from onsil.corpus.pii import mask
from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.instruction.feedback import adopt_feedback, adopted_for, lessons_from, load_feedback
from onsil.lineage import Workspace
from onsil.lineage.spelling import write_atomically
from onsil.serving.guard import Refused
from onsil.serving.request_log import append_whole, read_lines

FOLDER, FILE = "feedback", "feedback.jsonl"
LARGEST = 16_000_000  # bytes; then somebody has to read it
FIELDS = {  # name → most characters
    "request_id": 64, "verdict": 4, "question": 1_000, "answer": 4_000, "correct": 2_000,
    "document": 500, "heading": 500,
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


def keep(home: Path, model: str, owner: str, fields: dict[str, str]) -> str:
    """Append one piece about a model, masked and on the disk before this returns: its id. Raises
    Refused (507) when the file is full or the disk is."""
    said = {name: mask(text)[0] for name, text in fields.items() if text}
    row = {"id": f"feedback-{uuid.uuid4().hex[:12]}", "at": round(time.time(), 6)}
    row |= {"model": model, "owner": owner}
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


def read_feedback(home: Path, model: str) -> list[dict[str, Any]]:
    """What was said of a model, oldest first; of one person about one answer the last word only."""
    rows = read_lines(home / FOLDER / FILE, kept=0)
    return _last_words(row for row in rows if row.get("model") == model)


def _last_words(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        about = row["owner"], row["request_id"]
        last.pop(about, None)
        last[about] = row
    return list(last.values())


def adopted_rows(ws: Workspace, name: str) -> list[dict[str, Any]]:
    """What is adopted now, oldest first."""
    made = adopted_for(ws, name)
    return load_feedback(made) if made else []


def adopt(
    ws: Workspace, name: str, ids: Collection[str] | None = None
) -> tuple[str, dict[str, int]]:
    """Adopt the pieces with these ids (None: all), beside those adopted before: as for `drop`.
    Raises OnsilError when there are none, or the model was not grown from documents."""
    called = ws.resolve(name)[0]
    said = {row["id"]: row for row in read_feedback(ws.root, called)}
    ids = list(said) if ids is None else ids
    missing = sorted(set(ids) - set(said))
    if missing or not ids:
        raise _nothing_such(called, ", ".join(missing))
    return _adopt(ws, called, [*adopted_rows(ws, called), *(said[id_] for id_ in ids)])


def drop(ws: Workspace, name: str, ids: Collection[str]) -> tuple[str, dict[str, int]]:
    """Adopt these no longer: (`NAME.feedback@vN`, what becomes of all that is adopted now, in the
    documents of the present model). Raises OnsilError for one that is not adopted."""
    called = ws.resolve(name)[0]
    before = adopted_rows(ws, called)
    if missing := sorted(set(ids) - {row["id"] for row in before}):
        raise _nothing_such(called, ", ".join(missing))
    return _adopt(ws, called, [row for row in before if row["id"] not in ids])


def _adopt(ws: Workspace, name: str, rows: list[dict[str, Any]]) -> tuple[str, dict[str, int]]:
    record = ws.record(ws.resolve(name)[2].key) or {}
    corpus = (record.get("arguments") or {}).get("corpus")
    if corpus is None:
        from onsil.retrieval.answering import not_grown

        raise not_grown(name)
    rows = _last_words(sorted(rows, key=lambda row: (row["at"], row["id"])))
    text = "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in rows)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = ws.root / FOLDER / f"{digest}.jsonl"
    write_atomically(path, text)
    try:
        run = {"source": path.parent}
        made = adopt_feedback(ws, feedback=FileRef(path.name, digest), run=run)
    finally:
        path.unlink()
    version = ws.register(f"{name}.feedback", made)
    ws.set_alias(f"{name}.feedback", "champion", version)
    counts = lessons_from(rows, ws.artifact(corpus["artifact"]).path, ())[1]
    return f"{name}.feedback@{version}", counts


def _nothing_such(name: str, missing: str) -> OnsilError:
    if not missing:
        return OnsilError(
            en=(
                f"Nobody has said anything of {name} yet.",
                "Only what somebody said can be adopted.",
                f"Serve it (onsil serve {name}); there are two buttons below each answer.",
            ),
            ko=(
                f"{name}의 답에 대한 의견이 아직 없습니다.",
                "실제로 받은 의견만 학습 자료로 쓸 수 있습니다.",
                f"모델을 열면(onsil serve {name}) 답마다 의견 단추가 있습니다.",
            ),
        )
    return OnsilError(
        en=(
            f"There is no such feedback: {missing}.",
            "Only what somebody said can be adopted, and only what is adopted can be dropped.",
            f"onsil feedback {name} shows what there is.",
        ),
        ko=(
            f"그런 의견이 없습니다: {missing}.",
            "실제로 받은 의견만 채택할 수 있고, 채택한 의견만 뺄 수 있습니다.",
            f"다음 명령으로 받은 의견을 볼 수 있습니다: onsil feedback {name}",
        ),
    )
