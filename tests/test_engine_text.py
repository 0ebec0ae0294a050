"""From scores to a token, from tokens to text."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from engines import SENTENCE, WORDS, V, engines, ids_of, small, told
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from onsil.inference import Sampling
from onsil.inference.engine import Request
from onsil.inference.sampling import Sampler, log_chances, picked
from onsil.inference.streaming import Characters, Stops


@pytest.fixture
def engine_of():
    yield from engines()


# ── sampling ────────────────────────────────────────────────────────────────────────────────────


def drawn(how: Sampling, scores: torch.Tensor, times: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(how.seed)
    found = [picked(scores, how, generator) for _ in range(times)]
    return np.bincount(found, minlength=len(scores)) / times


def test_draws_follow_the_chances_that_are_left(monkeypatch):
    """Drawn with every four-hundredth of a share once, instead of at random."""
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
        grid = (torch.tensor([(n + 0.5) / 400], dtype=torch.float64) for n in range(400))
        monkeypatch.setattr(torch, "rand", lambda *size, grid=grid, **how: next(grid))
        assert np.allclose(drawn(how, scores, 400), wanted, atol=0.004), how


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
