"""What is known of each request, and the log of it: one JSON line, never a word that was said.

Every request gets an id (the client's own `x-request-id` if it is well-formed, else a new one),
which goes back with the answer and stands in every line about it. The doors fill in an
`Observation` as they learn things; when the request is over it goes to whoever wants it: this log,
the metrics, the prediction log. Lines are written by a thread of their own, so a slow or full disk
never holds up an answer: what cannot be written is counted as dropped.

Left out: questions and answers. They are kept only on purpose, by `monitoring.py`.
"""

import errno
import json
import logging
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsil.serving.life import PROBES
from onsil.serving.speaking import End, Pieces, Speaker

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
LARGEST, KEPT = 20_000_000, 5  # bytes of one file, older files beside it
WAITING = 10_000  # lines not yet written
Row = dict[str, Any]
log = logging.getLogger("onsil.serving")


@dataclass
class Observation:
    """One request, as far as it is known. The doors write the fields from `operation` on."""

    request_id: str
    method: str
    path: str
    began: float = field(default_factory=time.monotonic)
    at: float = field(default_factory=time.time)
    status: int = 0
    seconds: float = 0.0
    first_byte: float | None = None  # seconds until the first piece of the answer
    ended: bool = False  # whether all of the answer left
    route: str = ""  # the path as it is declared, with its parameters' names
    owner: str | None = None
    body: bytes = b""
    operation: str = ""  # gen_ai.operation.name: chat, text_completion, embeddings
    model: str = ""  # name@version
    digest: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token: float | None = None  # seconds until it
    streamed: bool = False
    seed: int | None = None  # of what is drawn
    answered: bool | None = None  # None: nothing that could abstain was asked
    finish: str = ""
    answer: str | None = None
    cited: list[tuple[str, str]] = field(default_factory=list)  # document, heading

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def token(self) -> None:
        """A door says that it has a token of the answer."""
        self.completion_tokens += 1
        if self.first_token is None:
            self.first_token = time.monotonic() - self.began


def observation(scope: Scope | HTTPConnection) -> Observation:
    """What is known of this request, to be written to; one that nobody reads where the request is
    not observed (an application without operations around it)."""
    found = scope.scope if isinstance(scope, HTTPConnection) else scope
    state = found.setdefault("state", {})
    return state.setdefault("observation", Observation("", found["method"], found["path"]))


def observed(app: ASGIApp, *sinks: Callable[[Observation], None]) -> ASGIApp:
    """`app` with an observation of each request, given to every sink when it is over. Stands
    outermost, so that refusals are seen too."""

    async def observing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        seen = Observation(_request_id(scope), scope["method"], scope["path"])
        scope["state"] = scope.get("state", {}) | {"observation": seen}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                mine = (b"x-request-id", seen.request_id.encode())
                message = {**message, "headers": [*message["headers"], mine]}
            elif message["type"] == "http.response.body":
                if seen.first_byte is None and message.get("body"):
                    seen.first_byte = time.monotonic() - seen.began
                seen.ended = not message.get("more_body")
            await send(message)

        try:
            await app(scope, receive, sending)
        finally:
            seen.seconds = time.monotonic() - seen.began
            seen.owner = scope["state"].get("owner")
            seen.body = scope["state"].get("body", b"")
            seen.route = declared(scope)
            for sink in sinks:
                sink(seen)

    return observing


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value.decode("latin-1")):
            return value.decode("ascii")
    return f"req-{uuid.uuid4().hex}"


def declared(scope: Scope) -> str:
    """The path as its route declares it, `/v1/models/{id}`; empty where no route was found, so that
    there are only as many as there are declarations, whatever is asked for."""
    path = scope["path"]
    if "endpoint" not in scope:
        return path if path in PROBES else ""
    for name, value in reversed(scope.get("path_params", {}).items()):
        if str(value):
            path = f"{{{name}}}".join(path.rsplit(str(value), 1))
    return path


async def heard(
    scope: Scope | HTTPConnection, operation: str, speaker: Speaker, pieces: Pieces
) -> Pieces:
    """`pieces` as they come, noted in the request's observation: whose words, when, how many. The
    one call by which a door tells logs, metrics and traces of an answer."""
    from onsil.serving import tracing  # which spells observations out, and so knows this module

    seen, parent, began = observation(scope), tracing.traceparent(), time.time()
    seen.operation, seen.model, seen.digest = operation, speaker.reference, speaker.digest
    texts: list[str] = []
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, End):
                    _ended(seen, piece, "".join(texts))
                else:
                    seen.token()
                    texts.append(piece.text)
                yield piece
    finally:
        told = {
            "gen_ai.usage.input_tokens": seen.prompt_tokens,
            "gen_ai.usage.output_tokens": seen.completion_tokens,
            "onsil.model.digest": seen.digest,
        }
        tracing.record("engine", parent, began, time.time(), told)


def _ended(seen: Observation, end: End, text: str) -> None:
    seen.prompt_tokens, seen.completion_tokens = end.prompt_tokens, end.completion_tokens
    seen.finish, seen.answer = end.reason, text
    seen.answered = None if end.confidence is None else end.answered
    seen.cited = [(c["document"], c["heading"]) for c in end.annotations]


def line(seen: Observation) -> Row:
    """The log's line: what happened, whose it was, which bytes answered; nothing that was said."""
    known = {
        "time": round(seen.at, 3),
        "id": seen.request_id,
        "method": seen.method,
        "route": seen.route,
        "status": seen.status,
        "seconds": round(seen.seconds, 4),
        "owner": seen.owner,
        "model": seen.model,
        "digest": seen.digest,
        "operation": seen.operation,
        "prompt_tokens": seen.prompt_tokens,
        "completion_tokens": seen.completion_tokens,
        "answered": seen.answered,
        "finish": seen.finish,
        "cut": bool(seen.status) and not seen.ended,
    }
    return {k: v for k, v in known.items() if v or v is False or k == "status"}


class JsonLines:
    """An append-only file of JSON lines with a size limit, for its owner's eyes (mode 0600).

    `append` never waits: a thread writes. A file that would grow past `largest` bytes is moved to
    `NAME.1` (and that to `NAME.2`, at most `kept`) and a new one begun. `dropped` counts the lines
    that could not be written, `waiting` is how many may wait.
    """

    def __init__(
        self, path: Path, largest: int = LARGEST, kept: int = KEPT, waiting: int = WAITING
    ):
        self.path, self.largest, self.kept, self.dropped = path, largest, kept, 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lines: queue.Queue[Callable[[], Row] | threading.Event | None]
        self._lines = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._write, name=f"log {path.name}", daemon=True)
        self._thread.start()

    def append(self, row: Callable[[], Row]) -> None:
        """`row` is called in the writing thread, so that spelling it out may take time."""
        try:
            self._lines.put_nowait(row)
        except queue.Full:
            self.dropped += 1

    def flush(self, seconds: float = 5.0) -> None:
        """Wait until what was appended before is written."""
        done = threading.Event()
        self._lines.put(done)
        done.wait(seconds)

    def close(self) -> None:
        """Write what is left and end the thread; a disk that hangs is waited for 5 seconds."""
        try:
            self._lines.put(None, timeout=5)
        except queue.Full:
            log.error("%s hangs; %s lines are lost", self.path, self._lines.qsize())
        else:
            self._thread.join(5)

    def _write(self) -> None:
        failing = False
        while (row := self._lines.get()) is not None:
            if isinstance(row, threading.Event):
                row.set()
                continue
            try:
                self._append((json.dumps(row(), ensure_ascii=False) + "\n").encode())
                failing = False
            except Exception as e:  # a full disk, half a surrogate pair: the thread goes on
                if not failing:
                    log.error("%s cannot be written to: %s: %s", self.path, type(e).__name__, e)
                failing = True
                self.dropped += 1

    def _append(self, text: bytes) -> None:
        if append_whole(self.path, text, self.largest):
            return
        self._rotate()
        if not append_whole(self.path, text, self.largest):
            raise ValueError(f"a line of {len(text):,} bytes is larger than a whole file")

    def _rotate(self) -> None:
        for n in range(self.kept, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{n}")
            newer = self.path.with_name(f"{self.path.name}.{n - 1}") if n > 1 else self.path
            if newer.exists():
                os.replace(newer, older)


def append_whole(path: Path, text: bytes, largest: int, durable: bool = False) -> bool:
    """Append all of `text` or nothing of it to a file for its owner's eyes (mode 0600), on a line
    of its own, on the disk before this returns if `durable`. False where the file would grow past
    `largest` bytes. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # the line before was cut short
            text = b"\n" + text
        if size + len(text) > largest:
            return False
        if os.write(file, text) < len(text):  # the disk filled up meanwhile
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(file)
        return True
    finally:
        os.close(file)


def read_lines(path: Path, kept: int = KEPT) -> Iterator[Row]:
    """The rows of a `JsonLines` file and its older ones, oldest first. A line that a crash cut
    short is left out."""
    older = [path.with_name(f"{path.name}.{n}") for n in range(kept, 0, -1)]
    for file in [*older, path]:
        if not file.exists():
            continue
        with file.open(encoding="utf-8", errors="replace") as f:
            for text in f:
                try:
                    row = json.loads(text)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
