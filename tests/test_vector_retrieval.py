"""Finding by vectors: the search, the two ways to join it with BM25, what a text's vector is."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from onsil.models.shape import encoder_shape
from onsil.models.transformer import Transformer
from onsil.models.word_vectors import WordVectors, fasttext, word2vec
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.passages import Passage
from onsil.retrieval.vectors import (
    VectorSearch,
    encoder_embedder,
    expanded,
    reciprocal_ranks,
    word_embedder,
)
from onsil.training.word_vectors import learn


def passage(title: str, text: str, superseded: bool = False) -> Passage:
    return Passage(f"{title}.md", title, title, text, superseded)


RULES = [
    passage("여비", "출장 여비를 준다."),
    passage("보수", "봉급을 매월 준다."),
    passage("회의", "위원회가 회의를 연다."),
    passage("옛여비", "출장 여비를 준다.", True),
]
WORDS = ["출장", "여비", "봉급", "보수", "녹봉", "위원회", "회의", "준다", "옛여비"]
AXES = [0, 0, 1, 1, 1, 2, 2, 3, 0]  # what each word is about
TURN = np.linspace(0, 0.2, len(WORDS))


@pytest.fixture
def vectors() -> WordVectors:
    rows = np.eye(4, dtype=np.float32)[AXES] + TURN[:, None].astype(np.float32)
    settings = replace(word2vec(), width=4)
    return WordVectors(settings, WORDS, np.ones(len(WORDS)), rows, rows[:0])


@pytest.fixture
def search(vectors) -> VectorSearch:
    return VectorSearch(RULES, word_embedder(vectors, RULES))


def test_a_word_that_no_passage_has_finds_what_is_about_it(search):
    assert not BM25(RULES).search("녹봉")
    assert search.search("녹봉을 언제 주나요", 1)[0][1] == 1


def test_scores_fall_from_one_and_an_old_rule_keeps_half(search):
    found = search.search("출장 여비", 10)
    scores = [score for score, _ in found]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0 and scores[0] <= 1.0001
    place = {i: score for score, i in found}
    now, old = RULES[0], RULES[3]
    rest = VectorSearch([now, replace(old, superseded=False)], search.embed)
    whole = {i: score for score, i in rest.search("출장 여비", 2)}
    assert place[0] == pytest.approx(whole[0]) and place[3] == pytest.approx(whole[1] / 2)


def test_limit_and_without(search):
    assert len(search.search("여비", 2)) == 2
    assert 0 not in [i for _, i in search.search("여비", 9, "여비.md")]


def test_a_question_without_a_known_word_finds_nothing(search):
    assert search.search("", 5) == [] and search.search("zebra", 5) == []


def test_a_text_is_the_mean_of_its_words_by_idf(vectors):
    embed = word_embedder(vectors, RULES)
    rows = {word: vectors.vector(word) for word in WORDS}

    def idf(n: int) -> float:
        return math.log(1 + (len(RULES) - n + 0.5) / (n + 0.5))

    wanted = idf(2) * rows["여비"] + idf(1) * rows["봉급"] + idf(3) * rows["준다"]  # type: ignore
    np.testing.assert_allclose(embed(["여비를 봉급은 준다"])[0], wanted, rtol=1e-5)


def test_ngrams_find_with_a_misspelled_question():
    lines = [["출장", "여비", "신청"], ["위원회", "회의", "개최"], ["봉급", "보수", "지급"]] * 20
    made, _ = learn(lines, replace(fasttext(), width=16, buckets=2000, epochs=20, subsample=1.0))
    found = VectorSearch(RULES, word_embedder(made, RULES)).search("위원훼", 1)
    assert found[0][1] == 2


def ranked(*positions: int):
    def finder(question: str, limit: int, without: str | None) -> list[tuple[float, int]]:
        return [(1.0 / n, i) for n, i in enumerate(positions, 1)][:limit]

    return finder


def test_reciprocal_ranks_are_summed():
    found = reciprocal_ranks(ranked(7, 3, 5), ranked(3, 9))("?", 3)
    assert [i for _, i in found] == [3, 7, 9]
    assert [score for score, _ in found] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_fusion_passes_on_the_document_to_leave_out(search):
    both = reciprocal_ranks(BM25(RULES).search, search.search)
    assert 0 in [i for _, i in both("출장 여비", 4)]
    assert 0 not in [i for _, i in both("출장 여비", 4, "여비.md")]


def test_expansion_asks_for_the_nearest_words_too(vectors):
    index = BM25(RULES)
    find = expanded(index, vectors, near=2, share=0.5)
    nearest = " ".join(word for _, word in vectors.nearest("녹봉", 2))
    assert find("녹봉", 3) == [(0.5 * score, i) for score, i in index.search(nearest, 3)]
    assert find("녹봉", 3)[0][1] == 1
    assert expanded(index, vectors, near=1, share=0.0)("여비", 1) == index.search("여비", 1)


def test_an_encoders_vector_is_the_mean_of_its_states_and_long_texts_are_cut():
    model = Transformer(encoder_shape(50, 16, 1, 8)).initialise(0).eval()

    class Letters:
        def encode(self, text: str):
            return type("Encoding", (), {"ids": [ord(c) % 50 for c in text]})

    embed = encoder_embedder(model, Letters())
    with torch.no_grad():
        wanted = model.encode(torch.tensor([[ord(c) % 50 for c in "abcdefgh"]]))[0].mean(0)
    found = embed(["abcdefgh", "abcdefgh and more"])
    np.testing.assert_allclose(found[0], wanted.numpy(), rtol=1e-5)
    assert np.array_equal(found[0], found[1])
