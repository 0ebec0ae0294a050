"""What each objective takes out of a text and leaves in it: rates, lengths, and the text again."""

import random
from collections import Counter
from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onsil.models.checkpoint import load
from onsil.models.shape import Shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.template import NO_TARGET
from onsil.training.objectives import prefix_batch, token_loss, written_batch, written_loss
from onsil.training.samplers import (
    TAGS,
    UL2,
    UL2R,
    Fim,
    Pair,
    R,
    S,
    X,
    corrupt_spans,
    denoise,
    fill_in_the_middle,
    masked_words,
    prefix_split,
    restored,
    sentence_pairs,
)

SENTINELS = list(range(1000, 1200))
TAG_IDS = {mode: 2000 + i for i, mode in enumerate(TAGS)}
TEXT = list(range(1, 401))


@given(st.lists(st.integers(1, 900), min_size=1, max_size=300), st.integers(0, 10**6))
def test_source_and_target_are_the_text_again(ids, seed):
    for rate, span in ((0.15, 3), (0.5, 3), (0.5, 8), (0.15, 64), (0.5, 64)):
        pair = corrupt_spans(ids, SENTINELS, random.Random(seed), rate, span)
        assert restored(pair, SENTINELS) == ids
        assert restored(Pair(*prefix_split([0, *ids], random.Random(seed))), []) + pair.target != []


@pytest.mark.parametrize("rate, span", [(0.15, 3), (0.15, 8), (0.5, 3), (0.5, 8), (0.15, 64)])
def test_spans_have_the_rate_and_length_they_are_named_for(rate, span):
    draw, taken, lengths = random.Random(0), [], []
    for _ in range(300):
        pair = corrupt_spans(TEXT, SENTINELS, draw, rate, span)
        spans = sum(token in SENTINELS for token in pair.source)
        taken.append(len(pair.target) - spans - 1)
        lengths.append(taken[-1] / spans)
        assert pair.source[0] == TEXT[0] and pair.target[-1] == SENTINELS[spans]
    assert abs(mean(taken) / len(TEXT) - rate) < 0.01
    assert abs(mean(lengths) - span) < 0.07 * span


def test_span_lengths_differ_and_every_place_is_taken_alike():
    draw, hits = random.Random(1), Counter()
    for _ in range(3000):
        kept = set(corrupt_spans(TEXT[:40], SENTINELS, draw).source)
        hits.update(token for token in TEXT[1:40] if token not in kept)
    inside = [hits[token] for token in TEXT[8:32]]  # the first stays; the ends feel it
    assert min(inside) > 0.8 * mean(inside) and max(inside) < 1.25 * mean(inside)


def test_too_few_sentinels_are_named():
    with pytest.raises(ValueError, match="need 21 sentinels; there are 5"):
        corrupt_spans(TEXT, SENTINELS[:5], random.Random(0))


@pytest.mark.parametrize("mixture, wanted", [(UL2, (2, 1, 4)), (UL2R, (0.25, 0.5, 0.25))])
def test_mixtures_draw_their_denoisers_as_published(mixture, wanted):
    draw, modes = random.Random(2), Counter()
    for _ in range(4000):
        chosen, pair = denoise(TEXT, mixture, TAG_IDS, SENTINELS, draw)
        modes[chosen.mode] += 1
        assert pair.source[0] == TAG_IDS[chosen.mode]
        if chosen.mode == "S":
            assert [*pair.source[1:], *pair.target] == TEXT
        else:
            assert restored(Pair(pair.source[1:], pair.target), SENTINELS) == TEXT
    share = sum(wanted)
    for mode, part in zip("RSX", wanted, strict=True):
        assert abs(modes[mode] / 4000 - part / share) < 0.025
    assert len(R) + len(S) + len(X) == 7


# (mode, mean span µ, rate r), each with n spans: Tay et al. 2022, "UL2: Unifying Language Learning
# Paradigms" (arXiv 2205.05131), the table "Configuration of UL2's mixture-of-denoisers".
PUBLISHED = {
    ("R", 3, 0.15), ("R", 8, 0.15),
    ("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15), ("X", 64, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("mixture", [UL2, UL2R])
def test_spans_of_a_mixture_are_as_long_and_as_many_as_published(mixture):
    """Of 1,280 tokens 192 or 640 are taken, in spans of 3, 8 and 64."""
    ids, marks, draw, found = list(range(1, 1281)), range(3000, 3400), random.Random(9), set()
    for _ in range(300):
        chosen, pair = denoise(ids, mixture, TAG_IDS, marks, draw)
        if chosen.mode != "S":
            spans = sum(token in marks for token in pair.source)
            taken = len(pair.target) - spans - 1
            found.add((chosen.mode, round(taken / spans), taken / len(ids)))
    assert found == PUBLISHED


def test_the_s_denoiser_leaves_a_quarter_to_write():
    draw = random.Random(3)
    written = [len(prefix_split(TEXT, draw, 0.25).target) / len(TEXT) for _ in range(2000)]
    assert abs(mean(written) - 0.25) < 0.01 and max(written) <= 0.5
    uniform = [len(prefix_split(TEXT, draw).target) / len(TEXT) for _ in range(2000)]
    assert abs(mean(uniform) - 0.5) < 0.02


def test_the_middle_comes_last_and_nothing_is_lost():
    marks, draw, swapped = Fim(901, 902, 903, 904), random.Random(4), 0
    for _ in range(500):
        ids = fill_in_the_middle(TEXT, marks, draw)
        assert ids[0] == 901 and ids[-1] == 904 and sorted(ids) == sorted([*TEXT, *marks])
        suffix, middle = ids.index(902), ids.index(903)
        if suffix == 1:
            swapped += 1
            rest = ids[middle + 1 : -1]
            assert [*rest, *ids[2:middle]] == TEXT
        else:
            text = [*ids[1:suffix], *ids[middle + 1 : -1], *ids[suffix + 1 : middle]]
            assert text == TEXT
    assert 200 < swapped < 300


def documents(many: int, seed: int = 5) -> list[list[list[int]]]:
    draw = random.Random(seed)
    return [
        [[1000 * d + 10 * s + t for t in range(draw.randint(3, 9))] for s in range(12)]
        for d in range(many)
    ]


def test_half_of_the_second_sentences_are_another_documents():
    pairs, texts = [], documents(60)
    for seed in range(20):
        pairs += sentence_pairs(texts, 40, random.Random(seed))
    several = [p for p in pairs if len({t // 10 for t in p.first}) > 1]
    assert abs(mean(p.random for p in several) - 0.5) < 0.05
    for pair in pairs:
        assert 0 < len(pair.first) + len(pair.second) <= 40
        same = pair.first[0] // 1000 == pair.second[0] // 1000
        assert same is not pair.random
        if not pair.random:
            assert min(pair.second) > max(pair.first)


def test_a_chunk_of_one_segment_always_gets_another_documents():
    single = [[[1000 * d + t for t in range(30)]] for d in range(40)]
    pairs = sentence_pairs(single, 40, random.Random(6))
    assert len(pairs) == 40 and all(pair.random for pair in pairs)


def test_segments_not_used_are_put_back():
    texts = documents(30)
    pairs = sentence_pairs(texts, 60, random.Random(7), short=0.0)
    seen = Counter(t for pair in pairs for t in pair.first)
    whole = {t for text in texts for segment in text for t in segment}
    own = set(seen) | {t for pair in pairs if not pair.random for t in pair.second}
    assert len(own) > 0.85 * len(whole)


def texts_of_words(many: int, long: int) -> list[list[list[int]]]:
    """Documents whose segments are one token: d·10⁵ + its place."""
    return [[[100_000 * d + s] for s in range(long)] for d in range(many)]


def test_one_pair_in_ten_is_shorter_than_there_is_room_for():
    """`short_seq_prob` of BERT's create_pretraining_data.py: of any length from 2 up."""
    texts, sizes = texts_of_words(3, 20_000), {}
    for short in (None, 0.0, 1.0):
        given = {} if short is None else {"short": short}
        pairs = sentence_pairs(texts, 20, random.Random(10), **given)
        sizes[short] = [len(p.first) + len(p.second) for p in pairs if not p.random]
    assert abs(mean(size < 20 for size in sizes[None]) - 0.1 * 18 / 19) < 0.02
    assert sum(size < 20 for size in sizes[0.0]) <= len(texts)  # what is left at the end
    assert set(sizes[1.0]) == set(range(2, 21)) and abs(mean(sizes[1.0]) - 11) < 0.5


def test_another_documents_sentence_is_from_any_place_of_it():
    pairs = sentence_pairs(texts_of_words(40, 200), 20, random.Random(11))
    tenths = Counter(p.second[0] % 100_000 // 20 for p in pairs if p.random)
    assert set(tenths) == set(range(10))
    assert max(tenths.values()) < 1.6 * mean(tenths.values())
    documents = {(p.first[0] // 100_000, p.second[0] // 100_000) for p in pairs if p.random}
    assert len({other for _, other in documents}) == 40 and all(a != b for a, b in documents)


def test_whole_words_are_hidden_together():
    words = [None, 0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5, 6, 6, None] * 1
    for seed in range(200):
        chosen = set(masked_words(words, random.Random(seed), 0.3))
        for word in range(7):
            places = {i for i, w in enumerate(words) if w == word}
            assert not places & chosen or places <= chosen
        assert 0 not in chosen and 15 not in chosen
    long = [i // 3 for i in range(600)]
    rates = [len(masked_words(long, random.Random(s))) / 600 for s in range(50)]
    assert abs(mean(rates) - 0.15) < 0.01


SHAPE = Shape(97, 32, 2, heads=2, context=64)


@torch.no_grad()
def test_a_prefix_sees_itself_whole_and_the_rest_only_what_came():
    model = Transformer(SHAPE).initialise(1).eval()
    ids = torch.randint(0, 97, (1, 30), generator=torch.Generator().manual_seed(8))
    hidden = model.encode(ids, lengths=[18, 12], prefixes=[7, 0])[0]
    for changed, first_moved in ((6, 0), (7, 7), (17, 17)):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 97
        moved = (model.encode(other, lengths=[18, 12], prefixes=[7, 0])[0] != hidden).any(-1)
        assert moved.nonzero()[0].item() == first_moved and not moved[18:].any()


@torch.no_grad()
def test_a_prefix_batch_scores_the_target_alone():
    model = Transformer(SHAPE).initialise(2).eval()
    pairs = [Pair([5, 6, 7], [8, 9]), Pair([3], [4, 5, 6])]
    batch = prefix_batch(pairs)
    assert (batch.targets != NO_TARGET).sum() == 5
    total, count = token_loss(model, batch)
    alone = sum(float(token_loss(model, prefix_batch([pair]))[0]) for pair in pairs)
    assert count == 5 and abs(float(total) - alone) < 1e-4


def test_teacher_forcing_is_the_published_loss(tmp_path):
    """The mean over targets equals the loss of the published T5, gradients too."""
    from family_cases import PAIRS, make

    oracle = make(PAIRS["t5"])
    oracle.save_pretrained(tmp_path)
    model = load(tmp_path)[0]
    pairs = [Pair([5, 6, 7, 8], [9, 10, 1]), Pair([4, 3], [11, 12, 13, 14, 1])]
    batch = written_batch(pairs, start=0)
    assert batch.inputs.tolist() == [[0, 9, 10, 0, 0], [0, 11, 12, 13, 14]]
    total, count = written_loss(model, batch)
    (total / count).backward()
    wanted = oracle(
        input_ids=batch.sources,
        attention_mask=batch.keep_sources.long(),
        decoder_input_ids=batch.inputs,
        labels=batch.targets,
    ).loss
    wanted.backward()
    assert abs(float((total / count).detach()) - float(wanted.detach())) < 1e-5
    ours, theirs = model.decoder.embedding.weight.grad, oracle.shared.weight.grad
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_nothing_to_read_or_to_write_is_no_pair():
    with pytest.raises(ValueError, match="pair 1: 0 tokens to read, 1 to write"):
        prefix_batch([Pair([7], [8]), prefix_split([5], random.Random(0))])
    with pytest.raises(ValueError, match="pair 0: 1 tokens to read, 0 to write"):
        written_batch([Pair([7], [])], 0)


def test_an_empty_document_is_never_the_other_one():
    texts = [[[1, 2], [3]], [], [[4], [5, 6]]]
    for seed in range(20):
        pairs = sentence_pairs(texts, 6, random.Random(seed))
        assert pairs and all(pair.first and pair.second for pair in pairs)
    assert sentence_pairs([[[1, 2]], []], 6, random.Random(0)) == []
