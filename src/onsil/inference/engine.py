"""One model that goes on writing for many at once.

Requests join and leave between steps (continuous batching, Yu et al. 2022): every step feeds one
token of each text that is being written and some blocks of the prompts that are being read, so that
a long prompt does not make others wait. How many blocks is found by the clock: with others writing,
a step may take twice what it takes without. Waiting is bounded: a full queue raises `Busy`.

*Same seed, same bytes under any load.* What a request comes to depends on its tokens, sampling and
grammar alone, not on who else is there, how its prompt was cut, or whether its beginning was in the
cache: `packing` and `slots` say how, `tests/test_engine.py` compares every bit of every log
probability. It holds on one machine with one number of threads.

A request ends with a reason: "stop", "length", "cancelled", "deadline", or "error" (scores that are
no numbers, a grammar that breaks), and takes nobody with it. Everything is computed in the engine's
one thread; `submit`, `cancel` and `close` may be called from any.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from onsil.inference.ending import computing
from onsil.inference.grammar import Grammar, Matcher
from onsil.inference.prefixes import PAGE, Prefixes
from onsil.inference.reading import Reader
from onsil.inference.refusals import Busy, TooLong, impossible, no_states
from onsil.inference.sampling import Sampler, Sampling, is_sound
from onsil.inference.slots import BLOCK, GULP, Part, Runner, Slots
from onsil.inference.streaming import Characters, Piece, Reason, Stops, Stream, Token, Words, tell

QUEUE, CACHE_BYTES = 64, 256 << 20
GREEDY = Sampling()
SLOWER = 2.0  # times what a step takes, at most, while a prompt is read
LONGEST_STEP = 0.1  # seconds, about, when nobody is writing
log = logging.getLogger("onsil.inference")

__all__ = ["Busy", "Engine", "Piece", "Request", "Stream", "Token"]


@dataclass(frozen=True)
class Request:
    """What to go on from and how. `stop`: tokens that end it and are not shown; `stop_texts`
    likewise; `logprobs`: alternatives to tell of each token, None for no chances at all;
    `deadline` on the monotonic clock; `salt`: whose it is, for what was read before is shared
    among equals only."""

    ids: tuple[int, ...]
    limit: int
    sampling: Sampling = GREEDY
    stop: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    deadline: float | None = None
    salt: str = ""


@dataclass
class _Text:
    """A request while it is worked on. `fed`: places of its slot that are filled."""

    request: Request
    stream: Stream
    sampler: Sampler
    characters: Characters
    stops: Stops
    limit: int
    slot: int = -1
    fed: int = 0
    written: int = 0
    last: int = -1
    matcher: Matcher | None = None
    pages: list[bytes] = field(default_factory=list)

    @property
    def reading(self) -> bool:
        return self.written == 0

    @property
    def late(self) -> Reason | None:
        """Why it should end, whatever it is doing."""
        if self.stream.cancelled:
            return "cancelled"
        deadline = self.request.deadline
        return "deadline" if deadline is not None and time.monotonic() >= deadline else None


class Engine:
    """Writes with what a model is run by: `Slots` for a decoder, `Pairs` for an encoder-decoder.
    `reader`: what makes vectors, if not the decoder itself. It is there until it is closed."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Any,
        queue: int = QUEUE,
        cache_bytes: int = CACHE_BYTES,
        reader: Reader | None = None,
    ):
        self.runner, self.reader = runner, reader
        self.slots, self.context = runner.slots, runner.context
        self.tokenizer, self.words, self.queue = tokenizer, Words(tokenizer), queue
        self.prefixes = Prefixes(cache_bytes)
        self.steps = self.tokens_read = self.tokens_written = 0
        self._waiting: deque[_Text] = deque()
        self._running: list[_Text] = []
        self._free = list(range(self.slots))
        self._to_tell: list = []
        self._changed = threading.Condition()
        self._closing = False
        self._beat, self._row = 0.0, 0.0  # seconds a step without reading, and a row read
        self._embedding = threading.Lock()
        self._own: Slots | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close, drain=False)  # a thread inside a kernel must not be torn away

    # ── for callers ─────────────────────────────────────────────────────────────────────────────

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def vocabulary(self) -> int:
        return self.runner.vocabulary

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises Busy when the queue is full, and OnsilError for a prompt that is
        empty or leaves no room, tokens the model does not know, or sampling that makes no sense."""
        self._check(request)
        limit = min(request.limit, self.context - self.runner.taken(len(request.ids)))
        if self.runner.lead:
            request = replace(request, ids=(*self.runner.lead, *request.ids))
        text = _Text(
            request,
            Stream(self._wake),
            Sampler(request.sampling, self.vocabulary),
            Characters(self.tokenizer.decode),
            Stops(request.stop_texts),
            limit,
        )
        with self._changed:
            if self._closing:
                raise Busy("the engine is closing")
            if len(self._waiting) >= self.queue:
                raise Busy(f"{self.queue} requests are waiting")
            self._waiting.append(text)
            self._changed.notify()
        return text.stream

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """(N, D) float32, each row of length one: the mean of a text's last hidden states. Runs in
        the caller's thread, beside what is being written. Raises OnsilError for a text that is
        empty or too long, or a model that has no states of its own."""
        if self.reader is not None:
            return self.reader.embed(texts)
        runner = self.runner
        if not isinstance(runner, Slots):
            raise no_states()
        for ids in texts:
            if not 0 < len(ids) <= self.context:
                raise TooLong(len(ids), self.context)
        with self._embedding:
            self._own = self._own or runner.beside()
            return np.stack([self._vector(self._own, ids) for ids in texts])

    @computing()
    def _vector(self, own: Slots, ids: Sequence[int]) -> np.ndarray:
        return own.embed(list(ids)).numpy().copy()

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and end; those that are here are finished first, or cancelled when
        not to `drain` or when `timeout` seconds have passed."""
        with self._changed:
            self._closing = True
            everybody = [*self._waiting, *self._running]
            self._changed.notify()
        if drain:
            self._thread.join(timeout)
        if self._thread.is_alive():
            for text in everybody:
                text.stream.cancel()
            self._thread.join()
        atexit.unregister(self.close)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _check(self, request: Request) -> None:
        taken = self.runner.taken(len(request.ids))
        if not request.ids or taken >= self.context or len(request.ids) > self.context:
            raise TooLong(len(request.ids), self.context)
        known = range(self.vocabulary)
        named = [*request.ids, *(token for token, _ in request.sampling.logit_bias)]
        if min(named) < 0 or max(named) >= len(known):
            raise impossible(f"token {next(t for t in named if t not in known)}", len(known))
        if not is_sound(request.sampling) or request.limit < 1:
            raise impossible(f"{request.sampling}, limit {request.limit}", len(known))

    # ── the engine's thread ─────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._running and not self._closing:
                    self._changed.wait()
                if self._closing and not self._waiting and not self._running:
                    return
            self._admit()
            self._leave_late()
            if self._running:
                self._step()
            tell(self._to_tell)
            self._to_tell = []

    def _admit(self) -> None:
        """Give free slots to who waits; who was cancelled or is late ends without one."""
        with self._changed:
            for text in [text for text in self._waiting if text.late]:
                self._waiting.remove(text)
                self._end(text, text.late)
            begun = []
            while self._waiting and self._free:
                text = self._waiting.popleft()
                text.slot = self._free.pop()
                self._running.append(text)
                begun.append(text)
        for text in begun:
            try:
                self._begin(text)
            except Exception as e:  # its own alone; it is told and logged
                self._fail(text, e)

    def _begin(self, text: _Text) -> None:
        request = text.request
        if request.grammar is not None:
            text.matcher = request.grammar.start()
        if self.prefixes.most and self.runner.cuts:
            text.pages = self.prefixes.names(request.ids, request.salt)
            for page in self.prefixes.found(text.pages):
                self.runner.put(text.slot, text.fed, page)
                text.fed += PAGE
            text.stream.cached = text.fed

    def _leave_late(self) -> None:
        for text in [text for text in self._running if text.late]:
            self._end(text, text.late)

    def _step(self) -> None:
        """One pass of the model, and a token for each text that has all of its prompt read."""
        began = time.perf_counter()
        parts, texts = self._parts()
        read = 0
        try:
            scores = self.runner.step(parts)
            for part, text in zip(parts, texts, strict=True):
                text.fed += len(part.ids)
                if text.reading:
                    read += len(part.ids)
                    self._remember(text, part)
        except Exception as e:  # of all in this step; the engine goes on with the next
            for text in texts:
                self._fail(text, e)
            return
        self.steps += 1
        self.tokens_read += read
        writing = [text for part, text in zip(parts, texts, strict=True) if part.asks]
        self._write(writing, scores)
        self._learn(time.perf_counter() - began, read, sum(len(p.ids) for p in parts) > read)

    def _parts(self) -> tuple[list[Part], list[_Text]]:
        """The last token of every text being written, and of prompts as much as there is time."""
        parts, texts = [], []
        for text in self._running:
            if not text.reading:
                parts.append(Part(text.slot, text.fed, [text.last], len(text.request.ids)))
                texts.append(text)
        rows = self._rows(bool(parts))
        for text in self._running:
            if text.reading and rows > 0:
                ids = text.request.ids
                many = len(ids) - text.fed
                many = min(many, rows) if self.runner.cuts else many
                part = list(ids[text.fed : text.fed + many])
                asks = text.fed + many == len(ids)
                parts.append(Part(text.slot, text.fed, part, len(ids), asks))
                texts.append(text)
                rows -= -(-many // BLOCK) * BLOCK
        return parts, texts

    def _rows(self, others: bool) -> int:
        """How much of the prompts to read in this step: whole blocks."""
        if not self._row:
            return BLOCK
        allowed = (SLOWER - 1) * self._beat if others else LONGEST_STEP
        return min(GULP, max(1, int(allowed / self._row / BLOCK)) * BLOCK)

    def _learn(self, seconds: float, read: int, writing: bool) -> None:
        """From the time of a step, what the next may hold."""
        if not read:
            self._beat = 0.8 * self._beat + 0.2 * seconds if self._beat else seconds
        elif not writing or self._beat:
            rest = max(seconds - (self._beat if writing else 0.0), seconds / 10) / read
            self._row = 0.8 * self._row + 0.2 * rest if self._row else rest

    def _remember(self, text: _Text, part: Part) -> None:
        """Keep the pages that this part filled."""
        first, last = part.start // PAGE, (part.start + len(part.ids)) // PAGE
        for number in range(first, min(last, len(text.pages))):
            if text.pages[number] not in self.prefixes.pages:
                page = self.runner.page(text.slot, number * PAGE, (number + 1) * PAGE)
                if page is not None:
                    self.prefixes.keep(text.pages[number], page)

    def _write(self, texts: list[_Text], scores_NV: Tensor) -> None:
        if not texts:
            return
        finite = scores_NV.sum(-1).isfinite().tolist()
        for text, row, sound in zip(texts, scores_NV, finite, strict=True):
            try:
                if not sound and not bool(row.isfinite().all()):
                    raise ArithmeticError("the model's scores are not finite")
                self._next(text, row)
            except Exception as e:  # a grammar that breaks, say; it ends this text alone
                self._fail(text, e)

    def _next(self, text: _Text, scores_V: Tensor) -> None:
        """The next token of one text, and what can be shown of it."""
        request, matcher = text.request, text.matcher
        shifted = text.sampler.shifted(scores_V)
        token = text.sampler.pick(shifted if matcher is None else matcher.masked(shifted))
        text.written += 1
        self.tokens_written += 1
        if token in request.stop:
            self._end(text, "stop", text.stops.rest())
            return
        if matcher is not None:
            matcher.accept(token)
        text.last = token
        told = (self.words.told(scores_V, token, request.logprobs),)
        shown, met = text.stops.add(text.characters.add(token))
        if met:
            self._end(text, "stop", shown, told)
        elif matcher is not None and matcher.finished:
            self._end(text, "stop", shown + text.stops.rest(), told)
        elif text.written >= text.limit:
            self._end(text, "length", shown + text.stops.rest(), told)
        else:
            self._put(text, Piece(shown, told))

    def _fail(self, text: _Text, error: Exception) -> None:
        log.error("a request ended with an error: %s", error, exc_info=error)
        text.stream.error = str(error)
        self._end(text, "error")

    def _end(
        self, text: _Text, reason: Reason | None, shown: str = "", told: tuple[Token, ...] = ()
    ) -> None:
        if text in self._running:
            self._running.remove(text)
            self._free.append(text.slot)
        self._put(text, Piece(shown, told, reason))

    def _put(self, text: _Text, piece: Piece) -> None:
        waiting = text.stream.put(piece)
        if waiting is not None:
            self._to_tell.append(waiting)
