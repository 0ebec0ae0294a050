"""The engine: who waits, who leaves, who fails, who reads; nobody is harmed by anybody else."""

import asyncio
import math
import threading
import time
from dataclasses import replace

import pytest
import torch
from engines import SENTENCE, V, engines, ids_of, small, told

from onsil.errors import OnsilError
from onsil.inference import Sampling
from onsil.inference.engine import Busy, Request
from onsil.inference.prefixes import PAGE, Prefixes
from onsil.inference.streaming import Piece, Stream, tell
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer


@pytest.fixture
def engine_of():
    yield from engines()


def test_a_prompt_is_read_in_parts_while_others_go_on(engine_of):
    engine = engine_of(slots=2)
    first = engine.submit(Request(ids_of(SENTENCE), 900))
    next(first)
    steps = engine.steps
    long = engine.submit(Request(ids_of(SENTENCE) * 30, 2))
    next(long)
    passed = engine.steps - steps
    seen = sum(len(piece.tokens) for piece in [next(first)])
    assert passed > 3 and seen > 3
    first.cancel()


# ── what was read before ────────────────────────────────────────────────────────────────────────


def test_a_beginning_is_found_again_by_its_caller_alone(engine_of):
    engine = engine_of()
    request = Request(ids_of(SENTENCE) * 8, 5, logprobs=0, salt="a")
    first, again, other = (engine.submit(replace(request, salt=s)) for s in "aab")
    cold, warm, strange = (told(stream) for stream in (first, again, other))
    assert cold == warm == strange
    second = engine.submit(request)
    assert told(second) == cold
    assert second.cached == (len(request.ids) - 1) // PAGE * PAGE
    stranger = engine.submit(replace(request, salt="c"))
    assert told(stranger) == cold and stranger.cached == other.cached == 0
    longer = engine.submit(replace(request, ids=(*request.ids, 5)))
    told(longer)
    assert longer.cached >= second.cached


def test_the_cache_keeps_to_its_bytes_and_forgets_ends_before_beginnings():
    page = torch.zeros(64)
    kept = Prefixes(4 * 256)
    names = kept.names(list(range(4 * PAGE + 1)), "")
    for name in names:
        kept.keep(name, page)
    assert len(kept.found(names)) == 4
    kept.keep(b"other", page)
    assert len(kept.found(names)) == 3 and kept.bytes == 4 * 256
    kept.keep(b"huge", torch.zeros(10_000))
    assert b"huge" not in kept.pages
    assert names != kept.names(list(range(4 * PAGE + 1)), "salt")


# ── waiting, leaving, failing ───────────────────────────────────────────────────────────────────


def test_a_full_queue_says_so_and_who_leaves_makes_room(engine_of):
    engine = engine_of(slots=1, queue=1)
    running = engine.submit(Request((5, 6), 1000))
    next(running)
    waiting = engine.submit(Request((5, 6), 1000))
    with pytest.raises(Busy):
        engine.submit(Request((5, 6), 5))
    assert (engine.running, engine.waiting) == (1, 1)
    waiting.cancel()
    assert told(waiting)[2] == "cancelled"
    assert (
        told(engine.submit(Request((5, 6), 5, deadline=time.monotonic() + 0.05)))[2] == "deadline"
    )
    steps = engine.steps
    running.cancel()
    assert told(running)[2] == "cancelled"
    assert engine.steps - steps <= 2
    assert told(engine.submit(Request((5, 6), 5)))[2] == "length"
    assert (engine.running, engine.waiting) == (0, 0)


def test_a_deadline_ends_what_is_running(engine_of):
    _, tokens, reason = told(
        engine_of().submit(Request((5, 6), 1000, deadline=time.monotonic() + 0.1))
    )
    assert reason == "deadline" and 0 < len(tokens) < 1000


class Breaks:
    """A grammar that gives up: at the start, or at its third token."""

    finished = False

    def __init__(self, at: int):
        self.left = at

    def start(self):
        if not self.left:
            raise ValueError("no start")
        return self

    def masked(self, scores_V):
        return scores_V

    def accept(self, token):
        self.left -= 1
        if not self.left:
            raise ValueError("no further")


@pytest.mark.parametrize("at", [0, 3])
def test_who_fails_fails_alone(at, engine_of):
    engine = engine_of(slots=3)
    request = Request(ids_of(SENTENCE), 30, logprobs=1)
    wanted = told(engine.submit(request))
    streams = [engine.submit(r) for r in (request, replace(request, grammar=Breaks(at)), request)]
    first, broken, last = map(told, streams)
    assert first == last == wanted
    assert broken[2] == "error" and len(broken[1]) == max(0, at - 1)
    assert streams[1].error in ("no start", "no further")
    assert told(engine.submit(request)) == wanted


def test_scores_that_are_no_numbers_end_their_request_alone(engine_of):
    model = Transformer(decoder_shape(V, 64, 2)).initialise(3)
    assert model.embedding is not None and model.head is not None
    model.head.weight = torch.nn.Parameter(model.head.weight.data.clone())
    model.shape = replace(model.shape, tied=False)
    model.embedding.weight.data[7] = torch.nan
    engine = engine_of(model, slots=3)
    good = Request(ids_of(SENTENCE), 30)
    wanted = told(engine.submit(good))
    streams = [engine.submit(r) for r in (good, Request((5, 7, 9), 30), good)]
    first, broken, last = map(told, streams)
    assert first == last == wanted and broken == ("", [], "error")


def test_a_step_that_fails_does_not_end_the_engine(engine_of, monkeypatch):
    engine = engine_of()
    good = told(engine.submit(Request((5, 6), 5)))
    step = engine.runner.step
    monkeypatch.setattr(engine.runner, "step", lambda parts: 1 / 0)
    assert told(engine.submit(Request((5, 6), 5)))[2] == "error"
    monkeypatch.setattr(engine.runner, "step", step)
    assert told(engine.submit(Request((5, 6), 5))) == good


def test_a_page_that_cannot_be_copied_ends_its_request_alone(engine_of, monkeypatch):
    engine = engine_of()
    request = Request(ids_of(SENTENCE) * 4, 5)
    good = told(engine.submit(request))
    with monkeypatch.context() as here:
        here.setattr(engine.runner, "put", lambda slot, start, page: 1 / 0)
        assert told(engine.submit(request))[2] == "error"
    assert told(engine.submit(request)) == good


def test_a_loop_that_closes_meanwhile_takes_nobody_with_it():
    """A server's loop may close between two steps, with readers still waiting in it."""
    closing, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    futures = [loop.create_future() for loop in (closing, other)]
    closing.is_closed = lambda: False  # as it was just before
    closing.close()
    tell([(closing, futures[0]), (other, futures[1])])
    other.run_until_complete(futures[1])
    other.close()
    del closing.is_closed


def test_closing_finishes_what_is_there_or_cancels_it(engine_of):
    engine = engine_of(slots=1)
    streams = [engine.submit(Request((5, 6), 20)) for _ in range(3)]
    engine.close()
    assert [told(stream)[2] for stream in streams] == ["length"] * 3
    with pytest.raises(Busy):
        engine.submit(Request((5, 6), 20))
    engine = engine_of(slots=1)
    streams = [engine.submit(Request((5, 6), 1000)) for _ in range(3)]
    engine.close(timeout=0.1)
    assert [told(stream)[2] for stream in streams] == ["cancelled"] * 3


@pytest.mark.parametrize(
    "request_",
    [
        Request((), 5),
        Request((5,) * 1024, 5),
        Request((V,), 5),
        Request((-1,), 5),
        Request((5,), 0),
        Request((5,), 5, Sampling(float("nan"))),
        Request((5,), 5, Sampling(-1.0)),
        Request((5,), 5, Sampling(1.0, 0.0)),
        Request((5,), 5, Sampling(logit_bias=((V, 1.0),))),
        Request((5,), 5, Sampling(logit_bias=((1, math.inf),))),
    ],
)
def test_what_makes_no_sense_is_refused(request_, engine_of):
    with pytest.raises(OnsilError):
        engine_of().submit(request_)


def test_a_text_ends_where_the_context_does(engine_of):
    engine = engine_of(small(64))
    _, tokens, reason = told(engine.submit(Request((5,) * 60, 50)))
    assert (len(tokens), reason) == (4, "length")
    assert told(engine.submit(Request((5,) * 63, 50)))[2] == "length"


# ── readers ─────────────────────────────────────────────────────────────────────────────────────


async def read(stream: Stream) -> list[Piece]:
    return [piece async for piece in stream]


def test_an_event_loop_reads_the_same_and_a_slow_reader_gets_it_in_one(engine_of):
    engine = engine_of(slots=3)
    request = Request(ids_of(SENTENCE), 40)
    wanted = told(engine.submit(request))

    async def main() -> list[list[Piece]]:
        return await asyncio.gather(*(read(engine.submit(request)) for _ in range(3)))

    for pieces in asyncio.run(main()):
        assert "".join(piece.text for piece in pieces) == wanted[0]
        assert pieces[-1].reason == "length"
    so_far = engine.tokens_written
    slow = engine.submit(request)
    while engine.tokens_written < so_far + 40 or engine.running:
        time.sleep(0.01)
    pieces = list(slow)
    assert len(pieces) == 1 and (pieces[0].text, list(pieces[0].tokens)) == wanted[:2]


def test_many_threads_ask_at_once(engine_of):
    engine = engine_of(slots=4, queue=100)
    requests = [Request((5, 6, n + 10), 10) for n in range(12)]
    wanted = [told(engine.submit(request)) for request in requests]
    found: dict[int, tuple] = {}

    def ask(number: int) -> None:
        found[number] = told(engine.submit(requests[number]))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(12)] == wanted


def test_texts_end_at_stop_tokens_and_stop_texts(engine_of):
    engine = engine_of()
    request = Request(ids_of(SENTENCE), 60, Sampling(1.0))
    text, tokens, _ = told(engine.submit(request))
    at = next(i for i in range(5, 60) if tokens[i].id not in [t.id for t in tokens[:i]])
    ended = told(engine.submit(replace(request, stop=frozenset([tokens[at].id]))))
    assert ended[1] == tokens[:at] and ended[2] == "stop" and text.startswith(ended[0])
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    pieces = list(engine.submit(replace(request, stop_texts=(stop, "\0never"))))
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]
    assert pieces[-1].reason == "stop"
