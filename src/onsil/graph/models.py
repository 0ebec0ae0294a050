"""A model inside a graph: a question in, a plain JSON answer out, with the digest of who said it.

A reference (`desk@champion`) is looked up when a request begins and what it means then is pinned;
models are loaded by digest, checked against it first, and kept: one for each reference and one
more, so that a new champion answers the next request while the old one finishes its own. One that
is being asked is never let go of. A grown model quotes its documents; any other that can write goes
through an engine.

**Preprocessing by itself** (the prep-pred pattern) works only while both sides agree on tokenizer
and template. Both are files in the model's folder, `preparation` is their digest, and for a grown
model the records say which tokenizer it was made with. What `prep` gives carries the digest; a
model that was made with another refuses the value instead of reading it a little wrongly.
"""

import hashlib
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onsil.errors import OnsilError
from onsil.graph.failures import BadInput, Busy, Failed, Late, NotReady
from onsil.graph.request import NEVER, Pin, caller, step_deadline
from onsil.graph.values import Json
from onsil.lineage import Workspace
from onsil.lineage.spelling import file_digest

LONGEST_QUESTION = 1_000  # characters, as a grown model reads
PREPARING = ("tokenizer.json", "tokenizer_config.json", "template.json", "chat_template.jinja")


@contextmanager
def not_ready() -> Iterator[None]:
    """What the workspace says of a model becomes NotReady."""
    try:
        yield
    except OnsilError as e:
        raise NotReady(e.en[0]) from e


@dataclass
class Held:
    """A model in memory, and how many are asking it."""

    model: "Quoting | Writing"
    users: int = 0


class Models:
    """The models of one workspace, loaded when first asked; `most` of them stay when nobody asks
    them. Safe from several threads."""

    def __init__(self, home: Path):
        self.ws, self.most = Workspace(home), 2
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()

    @not_ready()
    def pin(self, reference: str) -> Pin:
        """What a reference means now. Raises NotReady for one that means nothing."""
        name, version, made = self.ws.resolve(reference)
        return Pin(name, version, made.digest)

    @contextmanager
    def using(self, pin: Pin) -> Iterator["Quoting | Writing"]:
        """The model of a pin, to be asked. Raises NotReady when it is damaged."""
        with self._lock:
            held = self._held.pop(pin.digest, None) or Held(self._load(pin))
            self._held[pin.digest] = held  # the last used is the last to go
            held.users += 1
        try:
            yield held.model
        finally:
            with self._lock:
                held.users -= 1
                idle = [digest for digest, held in self._held.items() if not held.users]
                over = max(len(self._held) - self.most, 0)
                gone = [self._held.pop(digest).model for digest in idle[:over]]
            for old in gone:
                old.close()

    @not_ready()
    def _load(self, pin: Pin) -> "Quoting | Writing":
        folder = self._folder(pin)
        kind = Quoting if (folder / "model.json").is_file() else Writing
        return kind(folder, self.made_with(pin))

    @not_ready()
    def preparing(self, pin: Pin) -> "Preparing":
        """The tokenizer of a pin without its model. Raises NotReady when it is damaged."""
        return Preparing(self._folder(pin))

    def _folder(self, pin: Pin) -> Path:
        return self.ws.whole(self.ws.artifact(pin.digest))

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
            gone, self._held = list(self._held.values()), {}
        for held in gone:
            held.model.close()


class Quoting:
    """A grown model."""

    def __init__(self, folder: Path, made_with: str):
        from onsil.retrieval.answering import Answerer

        self.answerer, self.preparation = Answerer(folder), made_with

    def warm(self) -> None:
        """A first answer."""
        self.answerer.ask("?")

    def ask(self, value: Json, pin: Pin, limit: int) -> dict[str, Json]:
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


class Writing:
    """A model that goes on writing, greedily, so that the same question is the same answer."""

    def __init__(self, folder: Path, made_with: str):
        from onsil.inference.engine import Engine
        from onsil.inference.loading import load_engine

        self.preparation, self.served = made_with, load_engine(folder)
        if not isinstance(self.served.engine, Engine):
            self.served.close()
            raise NotReady("This model makes vectors and cannot write an answer.")
        self.engine = self.served.engine

    def warm(self) -> None:
        """A first token."""
        self._written(self._ids([{"role": "user", "content": "?"}]), 1)

    def ask(self, value: Json, pin: Pin, limit: int) -> dict[str, Json]:
        """What it writes after a chat, `limit` tokens at most. Raises BadInput for a value without
        messages, Busy, and Late when the step's time is over."""
        text, reason = self._written(self._ids(messages_of(value)), limit)
        return {
            "text": text,
            "answered": True,
            "citations": [],
            "confidence": None,
            "finish": reason,
            "model": pin._asdict(),
        }

    def _ids(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """A chat by the model's template; of one without, the last text is gone on from."""
        prompts = self.served.prompts
        try:
            return (
                prompts.chat(messages) if prompts.chats else prompts.text(messages[-1]["content"])
            )
        except OnsilError as e:
            raise BadInput(" ".join(e.en)) from e

    def _written(self, ids: tuple[int, ...], limit: int) -> tuple[str, str]:
        from onsil.inference import engine

        until = step_deadline.get()
        deadline = None if until == NEVER else until
        stop = self.served.prompts.stop
        try:
            stream = self.engine.submit(engine.Request(ids, limit, stop=stop, deadline=deadline))
        except engine.Busy as e:
            raise Busy("The model has as many texts as it can take.", retry_after=1) from e
        except OnsilError as e:
            raise BadInput(" ".join(e.en)) from e
        caller.get().when_gone(stream.cancel)
        pieces = list(stream)
        reason = pieces[-1].reason
        if reason == "deadline":
            raise Late("The answer was not written in time.")
        if reason not in ("stop", "length"):
            raise Failed(f"The model broke off ({reason}).")
        return "".join(piece.text for piece in pieces), reason

    def close(self) -> None:
        """End the engine."""
        self.served.close(drain=False)


class Preparing:
    """The tokenizer of a model folder, without the model."""

    def __init__(self, folder: Path):
        from onsil.tokenizer import load_tokenizer

        self.preparation, self.grown = preparation(folder), (folder / "model.json").is_file()
        self.tokenizer = load_tokenizer(_parts(folder))

    def prepare(self, value: Json) -> dict[str, Json]:
        """The question tidied (for a model that writes: the messages), its number of tokens, the
        digest of what counted them."""
        if self.grown:
            question = question_of(value)
            told: dict[str, Json] = {"question": question}
        else:
            messages = messages_of(value)
            question = "\n".join(message["content"] for message in messages)
            told = {"messages": messages}
        tokens = len(self.tokenizer.encode(question).ids)
        return told | {"tokens": tokens, "prep": self.preparation}


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
    if "question" in _asked(value):
        asked = value["question"]
    else:
        said = [m["content"] for m in messages_of(value) if m["role"] == "user"]
        asked = said[-1] if said else ""
    if not isinstance(asked, str) or not asked.strip():
        raise BadInput("question must be text, or messages must hold a user's.")
    question = unicodedata.normalize("NFC", asked).strip()
    if len(question) > LONGEST_QUESTION:
        length = f"{len(question):,} characters; at most {LONGEST_QUESTION:,} are read"
        raise BadInput(f"The question has {length}.")
    return question


def messages_of(value: Json) -> list[dict[str, str]]:
    """The chat in a value: `messages` with a role and text each, or `question` as a user's."""
    if "question" in _asked(value):
        return [{"role": "user", "content": question_of(value)}]
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadInput("messages must be a list, and not an empty one.")
    for message in messages:
        texts = isinstance(message, dict) and all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        if not texts:
            raise BadInput("Every message is an object with role and content as text.")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _asked(value: Json) -> dict[str, Json]:
    """The value, an object with one of the two. Raises BadInput."""
    if not isinstance(value, dict) or ("question" in value) == ("messages" in value):
        raise BadInput("A model takes an object with question or messages, one of the two.")
    return value


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
