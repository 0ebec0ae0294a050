"""The engine: the same bytes under any load, and nobody harmed by anybody else."""

import asyncio
import math
import random
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import DECODERS, PAIRS, make
from hypothesis import given, settings
from hypothesis import strategies as st
from test_base import published
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.inference import Sampling, packing, written
from onsil.inference.engine import Busy, Engine, Request
from onsil.inference.loading import load_engine
from onsil.inference.prefixes import PAGE, Prefixes
from onsil.inference.refusals import TooLong
from onsil.inference.sampling import Sampler, log_chances, picked
from onsil.inference.slots import BLOCK, Batch, Part, Slots
from onsil.inference.streaming import Characters, Piece, Stops, Stream
from onsil.models.adapters import new_prompt, save_prompt
from onsil.models.checkpoint import load, save
from onsil.models.positions import rotary_tables
from onsil.models.shape import decoder_shape, encoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.templates import ONSIL
from onsil.tokenizer.turns import Message, save_template
from onsil.training.supervised import load_chat

BASE = Path(__file__).parents[1] / "base"
WORDS = Tokenizer.from_file(str(BASE / "tokenizer.json"))
V = WORDS.get_vocab_size()
SENTENCE = "연차는 10일까지 이월할 수 있다. 숙박비는 하루 80,000원까지 지급한다. "


@cache
def small(context: int = 1024) -> Transformer:
    """Random, and sharp enough that another rounding would soon be another token."""
    model = Transformer(decoder_shape(V, 64, 2, context)).initialise(3).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4
    return model


@pytest.fixture
def engine_of():
    made: list[Engine] = []

    def of(model=None, **settings) -> Engine:
        made.append(Engine(model or small(), WORDS, **settings))
        return made[-1]

    yield of
    for engine in made:
        engine.close(drain=False)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(WORDS.encode(text).ids)


def told(stream: Stream) -> tuple[str, list, str | None]:
    pieces = list(stream)
    tokens = [token for piece in pieces for token in piece.tokens]
    return "".join(piece.text for piece in pieces), tokens, pieces[-1].reason


# ── the same bytes under any load ───────────────────────────────────────────────────────────────


def scores_of(slots: Slots, prompt: list[int], cut: int, company: float, seed: int) -> torch.Tensor:
    """Ten rows of scores of one request in slot 1, its prompt cut after `cut` tokens, with others
    in each other slot at each step by the chance of `company`."""
    draw, filled, rows, at = random.Random(seed), [0] * slots.slots, [], 0
    while len(rows) < 10:
        part = prompt[at : at + cut] if at < len(prompt) else [int(rows[-1].argmax())]
        mine = Part(1, at, part, len(prompt), at + len(part) >= len(prompt))
        at += len(part)
        parts = [mine]
        for slot in {0, *range(2, slots.slots)}:
            if draw.random() < company:
                many = BLOCK if filled[slot] % BLOCK == 0 and draw.random() < 0.5 else 1
                filled[slot] = 0 if filled[slot] + many > 40 else filled[slot]
                ids = [draw.randrange(3, 90) for _ in range(many)]
                parts.append(Part(slot, filled[slot], ids, filled[slot] + many))
                filled[slot] += many
        draw.shuffle(parts)
        scores = slots.step(parts)
        if mine.asks:
            rows.append(scores[[part for part in parts if part.asks].index(mine)])
    return torch.stack(rows)


@pytest.mark.parametrize("name", [n for n in DECODERS if n != "llama dynamic"])
def test_scores_are_the_same_bits_in_any_company_and_the_published_token(name, tmp_path):
    make(DECODERS[name]).save_pretrained(tmp_path)
    model = load(tmp_path)[0].eval()
    prompt = [random.Random(1).randrange(3, 90) for _ in range(37)]
    slots = Slots(model, 5, 64)
    alone = scores_of(slots, prompt, 64, 0.0, 0)
    assert alone.argmax(-1).tolist() == list(written(model, prompt, limit=10))
    for cut, company in ((16, 0.0), (32, 0.9), (64, 0.4)):
        assert torch.equal(alone, scores_of(slots, prompt, cut, company, cut)), (cut, company)


@pytest.mark.parametrize(
    ("name", "compute"), [("llama", "bf16"), ("mixtral", "bf16"), ("gpt2", "fp32")]
)
@pytest.mark.parametrize("grouped", [False, True])
def test_so_they_are_in_bfloat16_and_without_onednn(name, compute, grouped, tmp_path):
    make(DECODERS[name]).save_pretrained(tmp_path)
    model = load(tmp_path, compute)[0].eval()
    slots = Slots(model, 5, 64, grouped=grouped)
    prompt = [random.Random(2).randrange(3, 90) for _ in range(20)]
    alone = scores_of(slots, prompt, 64, 0.0, 0)
    assert torch.equal(alone, scores_of(slots, prompt, 16, 0.7, 5))
    kinds = {type(m) for m in slots.model.modules()}
    assert (packing.Grouped in kinds) == grouped


def test_frequencies_that_grow_with_the_text_grow_the_same_way(tmp_path):
    make(DECODERS["llama dynamic"]).save_pretrained(tmp_path)
    model = load(tmp_path)[0].eval()
    model.shape = replace(model.shape, context=64)
    prompt = [random.Random(1).randrange(3, 90) for _ in range(37)]
    slots = Slots(model, 5, 64)
    alone = scores_of(slots, prompt, 64, 0.0, 0)
    assert alone.argmax(-1).tolist() == list(written(model, prompt, limit=10))
    rotary, places = model.shape.rotary, torch.arange(37)[None]
    for got, wanted in zip(
        Batch(slots, [Part(0, 0, prompt, 37)]).rotary("G"),
        rotary_tables(rotary, model.shape, places),
        strict=True,
    ):
        assert torch.allclose(got, wanted)
    assert torch.equal(alone, scores_of(slots, prompt, 16, 0.9, 1))
    assert slots.page(1, 0, 16) is None


def test_a_product_that_feels_company_is_found_out():
    """MKL's own product of float32 sums a few rows in another order than many."""

    class Moody(packing.Packed):
        def forward(self, x, other=None):
            return super().forward(x, other) + 1e-6 * (x.flatten(0, -2).size(0) == 4)

    weight = torch.randn(48, 32)
    assert packing.steady(packing.Packed(weight, None, torch.float32), 32, torch.float32)
    assert not packing.steady(Moody(weight, None, torch.float32), 32, torch.float32)


@pytest.mark.parametrize("width", [64, 2048])
def test_one_row_alone_is_the_same_row(width):
    """Of an input wider than 1,024 oneDNN makes a dot product when it comes alone."""
    packer = packing.Packer(torch.float32)
    x = torch.randn(9, width)
    for activation in ("none", "silu", "gelu"):
        product = packer.product(torch.randn(96, width), None, activation)
        assert all(torch.equal(product(x[i : i + 1]), product(x)[i : i + 1]) for i in range(9))
        assert isinstance(product, packing.Packed)


def test_a_long_prompt_is_the_same_bits_read_at_once_or_in_parts():
    ids = list(ids_of(SENTENCE) * 20)[:333]
    slots = Slots(small(), 2, 1024)

    def last(cut: int) -> torch.Tensor:
        scores = torch.empty(0)
        for at in range(0, len(ids), cut):
            part = ids[at : at + cut]
            scores = slots.step([Part(1, at, part, len(ids), at + len(part) == len(ids))])
        return scores

    assert torch.equal(last(16), last(512)) and torch.equal(last(16), last(64))


def a_request(draw: random.Random) -> Request:
    text = SENTENCE * draw.randrange(0, 8) + SENTENCE[: draw.randrange(5, 40)]
    how = draw.choice(
        [
            Sampling(),
            Sampling(1.0, 0.9, draw.randrange(99)),
            Sampling(0.7, 1.0, draw.randrange(99), top_k=40),
            Sampling(1.0, 1.0, draw.randrange(99), 0, 0.5, 0.5, ((17, 2.0),)),
        ]
    )
    return Request(ids_of(text), draw.randrange(3, 25), how, logprobs=3, salt=draw.choice("ab"))


def test_the_same_request_gives_the_same_bytes_alone_and_under_random_load(engine_of):
    """Text, tokens and every bit of every log probability; also with the prompt's beginning found
    in the cache, which it is whenever a neighbour had the same one."""
    draw = random.Random(11)
    requests = [a_request(draw) for _ in range(24)]
    alone = engine_of(slots=1, cache_bytes=0)
    wanted = [told(alone.submit(request)) for request in requests]
    loaded = engine_of(slots=6, queue=100)
    for _ in range(2):
        streams = {}
        for number in draw.sample(range(24), 24):
            streams[number] = loaded.submit(requests[number])
            time.sleep(draw.random() * 0.01)
        assert [told(streams[number]) for number in range(24)] == wanted
    assert loaded.prefixes.hits > 0 and alone.prefixes.hits == 0
    assert len({text for text, _, _ in wanted}) > 12


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


def test_closing_finishes_what_is_there_or_cancels_it():
    engine = Engine(small(), WORDS, slots=1)
    streams = [engine.submit(Request((5, 6), 20)) for _ in range(3)]
    engine.close()
    assert [told(stream)[2] for stream in streams] == ["length"] * 3
    with pytest.raises(Busy):
        engine.submit(Request((5, 6), 20))
    engine = Engine(small(), WORDS, slots=1)
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


def test_an_event_loop_reads_the_same_and_a_slow_reader_gets_it_in_one(engine_of):
    engine = engine_of(slots=3)
    request = Request(ids_of(SENTENCE), 40)
    wanted = told(engine.submit(request))

    async def read(stream: Stream) -> list[Piece]:
        return [piece async for piece in stream]

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


# ── sampling ────────────────────────────────────────────────────────────────────────────────────


def drawn(how: Sampling, scores: torch.Tensor, times: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(how.seed)
    found = [picked(scores, how, generator) for _ in range(times)]
    return np.bincount(found, minlength=len(scores)) / times


def test_draws_follow_the_chances_that_are_left():
    scores = torch.tensor([0.6, 0.25, 0.1, 0.05]).log() + 3
    shares = {
        (1.0, 1.0, 0): [0.6, 0.25, 0.1, 0.05],
        (1.0, 0.7, 0): [0.6 / 0.85, 0.25 / 0.85, 0, 0],
        (1.0, 1.0, 3): [0.6 / 0.95, 0.25 / 0.95, 0.1 / 0.95, 0],
        (1.0, 0.5, 3): [1, 0, 0, 0],
        (0.5, 1.0, 0): (np.array([0.6, 0.25, 0.1, 0.05]) ** 2 / 0.435).tolist(),
        (1e-10, 1.0, 0): [1, 0, 0, 0],
    }
    for (temperature, top_p, top_k), wanted in shares.items():
        how = Sampling(temperature, top_p, 1, top_k)
        assert np.allclose(drawn(how, scores, 4000), wanted, atol=0.025), how


def test_a_wide_nucleus_is_cut_where_a_full_sort_would_cut_it():
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    sure = drawn(Sampling(1.0, 0.9, 4), scores, 600)
    chances, order = scores.softmax(-1).sort(descending=True)
    allowed = set(order[chances.cumsum(0) - chances < 0.9].tolist())
    found = set(np.flatnonzero(sure))
    assert found <= allowed and len(allowed) > 1000 and len(found) > 300


def test_penalties_and_biases_move_scores_as_told():
    how = Sampling(0.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((2, 1.5),))
    sampler = Sampler(how, 4)
    scores = torch.tensor([1.0, 0.9, 0.0, 0.0])
    first, second, third = (sampler.pick(sampler.shifted(scores)) for _ in range(3))
    assert (first, second, third) == (2, 0, 1)  # 1.5 − 0.75 < 1.0; 1.0 − 0.75 < 0.9
    assert sampler.shifted(scores).tolist() == pytest.approx([0.25, 0.15, 0.75, 0.0])


def test_a_draw_depends_on_its_seed_and_not_on_who_drew_before(engine_of):
    engine = engine_of(slots=1)
    ids = ids_of(SENTENCE)
    one, two = (Request(ids, 20, Sampling(1.0, 1.0, seed)) for seed in (1, 2))
    first, second = told(engine.submit(one)), told(engine.submit(two))
    assert told(engine.submit(two)) == second and told(engine.submit(one)) == first
    assert first != second


def test_chances_are_the_models_own(engine_of):
    model = small()
    request = Request(ids_of(SENTENCE), 12, Sampling(1.0, 0.5, 3, 0, 1.0, 1.0), logprobs=5)
    _, tokens, _ = told(engine_of().submit(request))
    ids = [*request.ids, *(token.id for token in tokens)]
    with torch.no_grad():
        wanted = model(torch.tensor([ids]))[0].log_softmax(-1)[len(request.ids) - 1 :]
    for token, row in zip(tokens, wanted, strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=2e-3)
        best = row.topk(5)
        assert [t[0] for t in token.top] == best.indices.tolist()
        assert [t[2] for t in token.top] == pytest.approx(best.values.tolist(), abs=2e-3)
    assert log_chances(torch.zeros(3), 1, 0) == (pytest.approx(-math.log(3)), ())
    plain = told(engine_of().submit(replace(request, logprobs=None)))[1]
    assert all(math.isnan(token.logprob) and token.top == () for token in plain)


# ── text ────────────────────────────────────────────────────────────────────────────────────────


def shown_by(decode, ids: list[int]) -> list[str]:
    characters = Characters(decode)
    return [characters.add(number) for number in ids]


@given(st.text(max_size=80), st.lists(st.integers(0, V - 1), max_size=30))
@settings(max_examples=60, deadline=None)
def test_pieces_are_whole_characters_and_together_what_decode_gives(text, tail):
    ids = WORDS.encode(text).ids
    pieces = shown_by(WORDS.decode, ids)
    assert "".join(pieces) == WORDS.decode(ids).rstrip("\ufffd")
    ids += tail
    whole = "".join(shown_by(WORDS.decode, ids))
    assert WORDS.decode(ids).rstrip("\ufffd") == whole.rstrip("\ufffd")


def bytes_with_fallback() -> Tokenizer:
    """Pieces and bytes as LLaMA 2 has them."""
    letters = {f"<0x{n:02X}>": n for n in range(256)} | {"▁": 256, "▁a": 257, "b": 258}
    words = Tokenizer(BPE(vocab=letters, merges=[], byte_fallback=True))
    words.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return words


def test_bytes_that_count_only_as_a_run_are_waited_for():
    words = bytes_with_fallback()
    ids = [257, *"연차".encode(), 258, 257, *"는 🙂".encode(), 258]
    pieces = shown_by(words.decode, ids)
    assert "".join(pieces) == words.decode(ids) == "a연차b a는 🙂b"
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_token_costs_the_same_however_long_the_text_is():
    longest = 0

    def decode(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return WORDS.decode(ids)

    broken = [WORDS.token_to_id(c) for c in "ëìê" * 50]  # beginnings of syllables, never finished
    pieces = shown_by(decode, WORDS.encode(SENTENCE * 20).ids + broken)
    assert longest < 40
    assert len("".join(pieces)) > len(SENTENCE * 20) + 100


@given(
    st.lists(st.text("ab#", max_size=4), max_size=12),
    st.lists(st.text("ab#", min_size=1, max_size=4), min_size=1, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_no_part_of_a_stop_text_is_ever_shown(pieces, stops):
    looked, shown, passed, met = Stops(stops), "", "", False
    for piece in pieces:
        new, met = looked.add(piece)
        shown += new
        passed += piece
        for stop in stops if not met else []:
            longest = max(n for n in range(len(stop)) if passed.endswith(stop[:n]))
            assert len(looked.held) >= longest and shown + looked.held == passed
        if met:
            break
    text = "".join(pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert not met and shown + looked.rest() == text
    else:
        first = min(ends)
        starts = [first - len(s) for s in stops if text[:first].endswith(s)]
        assert met and shown == text[: min(starts)]
        assert not any(stop in shown for stop in stops)


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


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


def saved(model, folder: Path, words: bool = True) -> Path:
    folder.mkdir(parents=True)
    save(model, folder, {})
    if words:
        WORDS.save(str(folder / "tokenizer.json"))
    return folder


def answered(served, text: str, limit: int = 8) -> str:
    ids = served.prompts.text(text)
    return told(served.engine.submit(Request(ids, limit, stop=served.prompts.stop)))[0]


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_a_grown_folder_writes_with_its_decoder_and_reads_with_its_encoder(compute, tmp_path):
    saved(small(), tmp_path / "decoder", False)
    encoder = Transformer(encoder_shape(V, 64, 2)).initialise(1)
    saved(encoder, tmp_path / "encoder", False)
    (tmp_path / "tokenizer").mkdir()
    WORDS.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    served = load_engine(tmp_path, 2, compute)
    try:
        assert served.kind == "decoder" and not served.prompts.chats
        wanted = WORDS.decode(list(written(small(), list(ids_of(SENTENCE)), limit=8)))
        if compute == "fp32":
            assert answered(served, SENTENCE) == wanted.rstrip("\ufffd")
        assert answered(served, SENTENCE)
        rows = served.engine.embed([ids_of(SENTENCE), (5, 6)])
        with torch.no_grad():
            states = encoder.eval().encode(torch.tensor([ids_of(SENTENCE)]))[0].mean(0)
        wanted = F.normalize(states, dim=0).numpy()
        assert np.allclose(rows[0], wanted, atol=1e-5 if compute == "fp32" else 0.02)
        assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows, axis=1), 1)
    finally:
        served.close()


@pytest.mark.parametrize("name", ["gpt_neox", "bert", "t5"])
def test_published_folders_do_what_they_can(name, tmp_path):
    if name == "t5":
        make(PAIRS[name]).save_pretrained(tmp_path)
        words = published("gpt_neox", tmp_path / "other") / "tokenizer.json"
        (tmp_path / "tokenizer.json").write_bytes(words.read_bytes())
    else:
        published(name, tmp_path)
    served = load_engine(tmp_path, 2)
    try:
        if name == "bert":
            assert served.kind == "encoder"
            with pytest.raises(OnsilError):
                served.engine.submit(Request((5,), 5))
        else:
            text = "연차는"
            ids = served.prompts.text(text)
            model = load(tmp_path)[0].eval()
            start = served.engine.runner.start if name == "t5" else 0
            stop = served.prompts.stop
            wanted = list(written(model, list(ids), stop, 8, start=start))
            for _ in range(2):
                tokens = told(served.engine.submit(Request(ids, 8, stop=stop)))[1]
                assert [token.id for token in tokens] == wanted
        if name != "t5":
            assert np.allclose(np.linalg.norm(served.engine.embed([(5, 6, 7)]), axis=1), 1)
            with pytest.raises(TooLong):
                served.engine.embed([()])
        else:
            with pytest.raises(OnsilError):
                served.engine.embed([(5,)])
    finally:
        served.close()


def test_a_decoders_vectors_are_the_mean_of_its_states_whatever_else_goes_on(engine_of):
    engine = engine_of()
    texts = [ids_of(SENTENCE) * 30, ids_of("연차")]
    alone = engine.embed(texts)
    streams = [engine.submit(Request(ids_of(SENTENCE), 100)) for _ in range(4)]
    assert (engine.embed(texts) == alone).all()
    assert (engine.embed(texts[1:]) == alone[1:]).all()
    for stream in streams:
        stream.cancel()
    with torch.no_grad():
        states = small().encode(torch.tensor([texts[0]]))[0].mean(0)
    assert np.allclose(alone[0], F.normalize(states, dim=0).numpy(), atol=1e-4)


def test_a_learnt_prompt_stands_before_every_text(tmp_path):
    model = small()
    prompt = new_prompt(model, 5, 1)
    folder = saved(model, tmp_path / "chat")
    (folder / "prompt").mkdir()
    save_prompt(prompt, model, folder / "prompt", "base", {})
    model.requires_grad_(True)
    save_template(ONSIL, folder)
    chat = load_chat(folder)
    served = load_engine(folder, 2)
    try:
        ids = served.prompts.chat([{"role": "user", "content": "연차는?"}])
        wanted = chat.answer([Message("user", "연차는?")], 12)
        for _ in range(2):
            request = Request(ids, 12, stop=served.prompts.stop)
            assert told(served.engine.submit(request))[0] == wanted.rstrip("\ufffd")
        assert served.engine.context == model.shape.context - 5
    finally:
        served.close()


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "engine.md").read_text(encoding="utf-8")
    code = page.split("```python")[1].split("```")[0]
    saved(small(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "engine.md", "exec"), {"__name__": "page"})
    assert "(1, 64)" in capsys.readouterr().out
