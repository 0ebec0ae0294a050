"""Distillation across tokenizers: two tokenizations of one text aligned byte by byte, and the loss
of their spans against a slow direct computation."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distillation import SENTENCES, decoder

from onsil.tokenizer.train import load_tokenizer, train
from onsil.training.alignment import (
    BYTE_OF,
    coins,
    common_ends,
    log_likelihoods,
    span_likelihoods,
    span_loss,
    span_pieces,
    token_ends,
)
from onsil.training.objectives import causal_batch


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Byte-level tokenizers that cut differently: bytes alone, few merges, more merges."""
    found = []
    for size, texts in ((261, SENTENCES), (330, SENTENCES[2:]), (700, SENTENCES[:2])):
        folder = tmp_path_factory.mktemp("words")
        train(texts * 3, size).save(str(folder / "tokenizer.json"))
        found.append(load_tokenizer(folder))
    return found


def whole_words(texts: list[str]):
    """A tokenizer that drops spaces and tells characters: words, and [UNK]."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = sorted({w for text in texts for w in text.split()})
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[UNK]", *known])}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


TEXTS = st.text(st.sampled_from("가각갂월일 abc\n漢🌱é1,"), max_size=30)


@given(TEXTS)
@settings(max_examples=60, deadline=None)
def test_spans_rebuild_the_text_in_both_tokenizations(words, text):
    for first, second in ((words[0], words[2]), (words[2], words[1]), (words[2], words[2])):
        (a, ends_a), (b, ends_b) = token_ends(first, text), token_ends(second, text)
        assert ends_a[-1:] == ends_b[-1:] == ([len(text.encode())] if text else [])
        i = j = 0
        for m, n in common_ends(ends_a, ends_b):
            assert ends_a[m - 1] == ends_b[n - 1] and m > i and n > j
            said, told = (spelled(t, ids) for t, ids in ((first, a[i:m]), (second, b[j:n])))
            assert said == told
            i, j = m, n
        assert (i, j) == (len(a), len(b))


def spelled(tokenizer, ids: list[int]) -> bytes:
    return bytes(BYTE_OF[c] for i in ids for c in tokenizer.id_to_token(i))


def test_spans_are_the_finest_both_can_speak_of(words):
    """Against a search over all cuts: no shared boundary is passed over."""
    text = "다음 해에 진단서를 10일 이월할 수 있다."
    a, b = (ends for _, ends in (token_ends(t, text) for t in words[1:]))
    cuts = [at for at in range(1, len(text.encode()) + 1) if at in a and at in b]
    assert [(a[m - 1], b[n - 1]) for m, n in common_ends(a, b)] == [(at, at) for at in cuts]
    assert len(cuts) < min(len(a), len(b))  # they do differ


def test_a_syllable_cut_between_its_bytes_is_met_at_its_end(words):
    """월 is three bytes: three tokens of the byte tokenizer, each ending inside it."""
    ids, ends = token_ends(words[0], "월")
    assert (len(ids), ends) == (3, [1, 2, 3])
    other = whole_words(["월"])
    assert token_ends(other, "월") == ([1], [3])
    assert common_ends(ends, [3]) == [(3, 1)]


def test_offsets_in_characters_meet_offsets_in_bytes(words):
    text = "쓰지 않은 연차는  10일 "
    other = whole_words([text])
    ids, ends = token_ends(other, text)
    assert len(ids) == 4 and ends == [6, 13, 23, len(text.encode())]
    (a, ends_a) = token_ends(words[0], text)
    assert common_ends(ends_a, ends) == [(6, 1), (13, 2), (23, 3), (len(a), 4)]


@pytest.mark.parametrize("contexts", [(32, 64), (64, 9), (40, 40)])
def test_pieces_fit_and_every_span_after_the_first_is_judged_once(words, contexts):
    for text in SENTENCES:
        pieces = span_pieces(text, words[0], words[2], contexts)
        (a, ends_a), (b, ends_b) = token_ends(words[0], text), token_ends(words[2], text)
        at = [(0, 0), *common_ends(ends_a, ends_b)]
        whole = [(tuple(a[i:m]), tuple(b[j:n])) for (i, j), (m, n) in pairwise(at)]
        judged = []
        for piece in pieces:
            assert len(piece.student) <= contexts[0] and len(piece.teacher) <= contexts[1]
            assert piece.ends[-1] == (len(piece.student), len(piece.teacher))
            for (i, j), (m, n) in pairwise(piece.ends):
                judged.append((tuple(piece.student[i:m]), tuple(piece.teacher[j:n])))
        assert judged == whole[1:]


def test_a_span_longer_than_a_context_is_left_out_and_the_rest_stays(words):
    text = "가나 " + "다" * 30 + " 라마 바사 아자"
    other = whole_words([text])
    pieces = span_pieces(text, words[0], other, (21, 20))
    assert len(pieces) == 1
    assert len(pieces[0].ends) == 3 and len(pieces[0].student) <= 21


def test_the_likelihood_of_a_span_is_that_of_its_tokens(words):
    student = decoder(1, words=261)
    pieces = [p for text in SENTENCES for p in span_pieces(text, words[0], words[2], (60, 20))]
    assert len(pieces) > 4 and all(p.ends[0][0] > 1 for p in pieces[1:2])
    batch = causal_batch([p.student for p in pieces])
    ends = [[i for i, _ in p.ends] for p in pieces]
    told = span_likelihoods(log_likelihoods(student, batch), ends).tolist()
    wanted = []
    for piece in pieces:
        logs = student(torch.tensor([piece.student]))[0].log_softmax(-1)
        for (i, _), (m, _) in pairwise(piece.ends):
            wanted.append(sum(logs[t - 1, piece.student[t]] for t in range(i, m)).item())
    assert told == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0.0), (4.0, 0.25)])
def test_the_span_loss_is_the_direct_one(words, temperature, hard):
    student, teacher = decoder(1, words=700), decoder(2, words=261)
    student.embedding.weight.data.mul_(10)
    pieces = span_pieces(SENTENCES[0], words[2], words[0], (20, 60))
    total, targets = span_loss(student, teacher, pieces, temperature, hard)
    wanted = 0.0
    for piece in pieces:
        s, t = (
            m(torch.tensor([ids]))[0].double().log_softmax(-1).detach()
            for m, ids in ((student, piece.student), (teacher, piece.teacher))
        )
        wanted -= hard * sum(
            float(s[n - 1, piece.student[n]]) for n in range(1, len(piece.student))
        )
        for (i, j), (m, n) in pairwise(piece.ends):
            q = math.exp(sum(float(s[a - 1, piece.student[a]]) for a in range(i, m)) / temperature)
            p = math.exp(sum(float(t[a - 1, piece.teacher[a]]) for a in range(j, n)) / temperature)
            coin = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            wanted += (1 - hard) * temperature * coin
    assert targets == sum(len(p.student) - 1 for p in pieces)
    assert total.item() == pytest.approx(wanted, rel=1e-4)


def test_equal_spans_cost_nothing_and_the_coin_has_its_limit(words):
    model = decoder(1, words=700)
    pieces = span_pieces(SENTENCES[0], words[2], words[2], (64, 64))
    assert span_loss(model, model, pieces)[0].item() == 0.0
    x, y = torch.tensor([-2.0, -0.1, 0.0]), torch.tensor([-1.0, -5.0, 0.0])
    a, b = -y[:2], -x[:2]
    limit = float((a * (a / b).log() + b - a).sum())
    assert float(coins(x, y, 1e3)) == pytest.approx(limit, rel=1e-2)
    assert math.isfinite(float(coins(x, y)))


def test_coins_pass_the_gradient_check():
    x = torch.tensor([-2.0, -0.3, -6.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([-1.0, -3.0, -0.1], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: coins(v, y, 2.0), x)
