"""A model inside a graph: a question in, a plain JSON answer out, with the digest of who said it.

A reference (`desk@champion`) is looked up when a request begins and what it means then is pinned;
models are loaded by digest, checked against it first, and the two last used are kept, so that a new
champion answers the next request while the old one finishes its own. A grown model quotes its
documents; any other that can write goes through an engine.

**Preprocessing by itself** (the prep-pred pattern) works only while both sides agree on tokenizer
and template. Both are files in the model's folder, `preparation` is their digest, and for a grown
model the records say which tokenizer it was made with. What `prep` gives carries the digest; a
model that was made with another refuses the value instead of reading it a little wrongly.
"""

import hashlib
import threading
import unicodedata
from pathlib import Path
from typing import Any

from onsil.errors import OnsilError
from onsil.graph.failures import BadInput, NotReady
from onsil.graph.request import Pin
from onsil.graph.values import Json
from onsil.lineage import Workspace
from onsil.lineage.spelling import file_digest

KEPT = 2
LONGEST_QUESTION = 1_000  # characters, as a grown model reads
PREPARING = ("tokenizer.json", "tokenizer_config.json", "template.json", "chat_template.jinja")


class Models:
    """The models of one workspace, loaded when first asked. Safe from several threads."""

    def __init__(self, home: Path):
        self.ws = Workspace(home)
        self._loaded: dict[str, Any] = {}
        self._lock = threading.Lock()

    def pin(self, reference: str) -> Pin:
        """What a reference means now. Raises OnsilError for one that means nothing."""
        name, version, made = self.ws.resolve(reference)
        return Pin(name, version, made.digest)

    def loaded(self, pin: Pin) -> "Quoting":
        """The model of a pin, ready to be asked. Raises NotReady when it is damaged."""
        with self._lock:
            found = self._loaded.pop(pin.digest, None) or self._load(pin)
            self._loaded[pin.digest] = found  # the last used is the last to go
            gone = [self._loaded.pop(digest) for digest in list(self._loaded)[:-KEPT]]
        for old in gone:
            old.close()
        return found

    def _load(self, pin: Pin) -> "Quoting":
        try:
            folder = self.ws.whole(self.ws.artifact(pin.digest))
            return Quoting(folder, self.made_with(pin))
        except OnsilError as e:
            raise NotReady(e.en[0]) from e

    def made_with(self, pin: Pin) -> str:
        """The preparation a model was made with: of a grown one as its record says, else that of
        its own files. Raises NotReady when record and files are at odds."""
        made = self.ws.artifact(pin.digest)
        own = preparation(made.path)
        entry = self.ws.versions(pin.name)[pin.version]
        record = self.ws.record(entry["key"]) or {"arguments": {}}
        told = record["arguments"].get("tokenizer")
        if isinstance(told, dict) and told["artifact"] != own:
            raise NotReady(
                f"{pin.name}@{pin.version} was made with the tokenizer {told['artifact'][:12]} and "
                f"has {own[:12]} in its folder."
            )
        return own

    def close(self) -> None:
        """Let go of all of them."""
        with self._lock:
            gone, self._loaded = list(self._loaded.values()), {}
        for old in gone:
            old.close()


class Quoting:
    """A grown model."""

    def __init__(self, folder: Path, made_with: str):
        from onsil.retrieval.answering import Answerer

        self.answerer, self.preparation = Answerer(folder), made_with

    def ask(self, value: Json, pin: Pin) -> dict[str, Json]:
        """The answer to a question. Raises BadInput for a value without one."""
        answer = self.answerer.ask(question_of(value))
        cited = [
            {"document": p.document, "heading": p.heading, "text": p.text} for p in answer.citations
        ]
        return {
            "text": answer.text,
            "answered": answer.text is not None,
            "citations": cited,
            "confidence": round(answer.confidence, 4),
            "model": pin._asdict(),
        }

    def close(self) -> None:
        """Nothing to end: it is memory alone."""


class Preparing:
    """The tokenizer of a model folder, without the model."""

    def __init__(self, folder: Path):
        from onsil.tokenizer import load_tokenizer

        self.preparation = preparation(folder)
        self.tokenizer = load_tokenizer(_parts(folder))

    def prepare(self, value: Json) -> dict[str, Json]:
        """The question tidied, its number of tokens, the digest of what counted them."""
        question = question_of(value)
        tokens = len(self.tokenizer.encode(question).ids)
        return {"question": question, "tokens": tokens, "prep": self.preparation}


def preparation(folder: Path) -> str:
    """The digest of a model folder's tokenizer and template files."""
    total = hashlib.sha256()
    for name in sorted(PREPARING):
        if (file := _parts(folder) / name).is_file():
            total.update(f"{name}\0{file_digest(file)}\n".encode())
    return total.hexdigest()


def _parts(folder: Path) -> Path:
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def question_of(value: Json) -> str:
    """The question in a value: `question`, or the last user's message of `messages`; in NFC, so
    that a question typed on a Mac is the same question."""
    if not isinstance(value, dict):
        raise BadInput("A model takes an object with question or messages.")
    asked = value.get("question") if "question" in value else _last_said(value.get("messages"))
    if not isinstance(asked, str) or not asked.strip():
        raise BadInput("question must be text, or messages must end with a user's.")
    question = unicodedata.normalize("NFC", asked).strip()
    if len(question) > LONGEST_QUESTION:
        length = f"{len(question):,} characters; at most {LONGEST_QUESTION:,} are read"
        raise BadInput(f"The question has {length}.")
    return question


def _last_said(messages: Json) -> Json:
    if not isinstance(messages, list):
        return None
    turns = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    return turns[-1].get("content") if turns else None


def check_preparation(value: Json, made_with: str, pin: Pin) -> None:
    """Raises NotReady when a value was prepared for a model made with something else."""
    prepared = value.get("prep") if isinstance(value, dict) else None
    if prepared is not None and prepared != made_with:
        raise at_odds(str(prepared), made_with, pin)


def at_odds(prepared: str, made_with: str, pin: Pin) -> NotReady:
    return NotReady(
        f"The input was prepared with tokenizer and template {prepared[:12]}, and "
        f"{pin.name}@{pin.version} was made with {made_with[:12]}: it would read other tokens than "
        "were meant. Prepare with the same model."
    )
