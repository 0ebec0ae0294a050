"""Tokens to text as they come: whole characters, never part of a stop text, a piece at a time.

A Korean syllable may lie in three tokens, and "###" may or may not become a stop text: what is not
certain yet is held back. Every token costs the same however long the text is: only the last few are
decoded again, and stop texts are looked for with Knuth, Morris and Pratt's tables (1977).

A `Stream` hands pieces from the engine's thread to one reader, in a thread (`for`) or in an event
loop (`async for`). A reader that is slow gets what has piled up as one piece.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from onsil.inference.sampling import log_chances

Reason = Literal["stop", "length", "cancelled", "deadline", "error"]
UNTOLD = float("nan")
PATIENCE = 6  # tokens that may pass before an unfinished character counts as broken
LOOKED_AT, KEPT = 24, 8  # tokens decoded again; the last few hold any unfinished character


class Token(NamedTuple):
    """A token that was written; `logprob` and `top` (id, text, log probability) when asked for."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]


class Piece(NamedTuple):
    """Some more text and the tokens it (or what is held back) came from; the last has a reason."""

    text: str
    tokens: tuple[Token, ...]
    reason: Reason | None = None


class Characters:
    """Ids to text, as soon as characters are whole. Together the pieces are what `decode` makes of
    all ids, without characters at the end that never were finished.

    Decoded are the tokens of the last whole characters and what came since: some decoders treat a
    first token otherwise, and some read bytes only as a whole run.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode = decode
        self.ids: list[int] = []
        self.shown = 0  # characters of decode(ids) that are given out
        self.fresh = 0  # of the ids, those since the last whole character
        self.stalled = 0  # ids since anything was shown

    def add(self, token: int) -> str:
        """What can be shown now."""
        self.ids.append(token)
        self.fresh += 1
        self.stalled += 1
        text = self.decode(self.ids)
        whole = len(text) if self.stalled > PATIENCE else len(text.rstrip("\ufffd"))
        new = text[self.shown : whole]
        if new:
            self.shown, self.stalled = whole, 0
        if whole == len(text):
            self._forget(self.ids[-self.fresh :], 0)
            self.fresh = 0
        elif len(self.ids) > LOOKED_AT:
            self._forget(self.ids[-KEPT:], len(text) - whole)
        return new

    def _forget(self, ids: list[int], held: int) -> None:
        """Go on from the last ids, of whose text all but the last `held` characters is shown."""
        self.ids, self.shown = ids, len(self.decode(ids)) - held
        self.fresh = min(self.fresh, len(ids))


class Stops:
    """Looks for stop texts in what is shown. `after`: what came behind the one that was met."""

    def __init__(self, texts: Iterable[str]):
        self.texts = [text for text in texts if text]
        self.tables = [_borders(text) for text in self.texts]
        self.matched = [0] * len(self.texts)
        self.held = self.after = ""

    def add(self, new: str) -> tuple[str, bool]:
        """What can be shown, and whether a stop text was met; it and what follows is not shown."""
        if not self.texts:
            return new, False
        text, start = self.held + new, len(self.held)
        for at in range(start, len(text)):
            met = [len(self.texts[i]) for i in range(len(self.texts)) if self._step(i, text[at])]
            if met:
                self.held, self.after = "", text[at + 1 :]
                return text[: at + 1 - max(met)], True
        sure = len(text) - max(self.matched)
        self.held = text[sure:]
        return text[:sure], False

    def rest(self) -> str:
        """What was held back after all."""
        rest, self.held = self.held, ""
        return rest

    def _step(self, i: int, character: str) -> bool:
        text, table, n = self.texts[i], self.tables[i], self.matched[i]
        while n and text[n] != character:
            n = table[n - 1]
        self.matched[i] = n + (text[n] == character)
        return self.matched[i] == len(text)


def _borders(text: str) -> list[int]:
    """For each beginning of a text the length of its longest proper one that also ends it."""
    table = [0] * len(text)
    n = 0
    for i in range(1, len(text)):
        while n and text[n] != text[i]:
            n = table[n - 1]
        n += text[n] == text[i]
        table[i] = n
    return table


class Words:
    """The texts of single tokens, kept once they were asked for."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        found = self.known.get(token)
        if found is None:
            found = self.tokenizer.decode([token], skip_special_tokens=False)
            self.known[token] = found
        return found

    def told(self, scores_V, token: int, many: int | None) -> Token:
        """The token with its chances; NaN where nobody asked."""
        if many is None:
            return Token(token, self[token], UNTOLD, ())
        own, top = log_chances(scores_V, token, many)
        return Token(token, self[token], own, tuple((i, self[i], chance) for i, chance in top))


class Stream:
    """The pieces of one request, for one reader. `cached`: tokens of the prompt that had been read
    before; `error`: why it ended, when the reason is "error"."""

    def __init__(self, wake: Callable[[], None] = lambda: None):
        self.cached = 0
        self.error: str | None = None
        self.cancelled = False
        self._wake = wake
        self._lock = threading.Condition()
        self._pieces: deque[Piece] = deque()
        self._ended = False  # the reader has seen the last piece
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Future] | None = None

    def cancel(self) -> None:
        """End it; its slot is free one step later. Nothing happens when it has ended."""
        self.cancelled = True
        self._wake()

    def put(self, piece: Piece) -> tuple[asyncio.AbstractEventLoop, asyncio.Future] | None:
        """For the engine: one more piece. Returns who waits for it in an event loop, to be told
        with `tell`."""
        with self._lock:
            self._pieces.append(piece)
            self._lock.notify()
            waiting, self._waiting = self._waiting, None
        return waiting

    def _taken(self) -> Piece | None:
        """All pieces there are, as one. The lock is held."""
        if not self._pieces:
            return None
        if len(self._pieces) == 1:
            piece = self._pieces.popleft()
        else:
            parts = list(self._pieces)
            self._pieces.clear()
            tokens = tuple(token for part in parts for token in part.tokens)
            piece = Piece("".join(part.text for part in parts), tokens, parts[-1].reason)
        self._ended = piece.reason is not None
        return piece

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Piece:
        with self._lock:
            if self._ended:
                raise StopIteration
            while (piece := self._taken()) is None:
                self._lock.wait()
            return piece

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Piece:
        while True:
            with self._lock:
                if self._ended:
                    raise StopAsyncIteration
                if (piece := self._taken()) is not None:
                    return piece
                loop = asyncio.get_running_loop()
                future = loop.create_future()
                self._waiting = (loop, future)
            await future


def tell(waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future]]) -> None:
    """Wake the readers of a step: one call into each event loop, not one for each reader."""
    by_loop: dict[Any, list[asyncio.Future]] = {}
    for loop, future in waiting:
        by_loop.setdefault(loop, []).append(future)
    for loop, futures in by_loop.items():
        with suppress(RuntimeError):  # a loop that is closed: nobody reads there any more
            loop.call_soon_threadsafe(_set, futures)


def _set(futures: list[asyncio.Future]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
