"""Finding by meaning: passages and questions as vectors, compared by angle, alone or beside BM25.

A text's vector is the mean of its words' vectors weighted by idf (what stands everywhere says
nothing), or the mean of an encoder's hidden states. Nothing is trained for searching here; a
vector that was trained to predict words is asked whether it also finds. Two ways to join searches:
reciprocal rank fusion, which looks at ranks only (Cormack et al. 2009, k = 60), and expansion,
where BM25 is asked a second time for the words nearest to the question's. What each is worth on
the example is measured in docs/word_vectors.md; answering does not use them.

Shapes: B texts, T tokens, D width, P passages.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch

from onsil.models.subwords import lines_of_words
from onsil.models.transformer import Transformer
from onsil.models.word_vectors import WordVectors, unit
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.passages import Passage, reading_text

RANK_CONSTANT = 60
FUSED_DEPTH = 100
Found = list[tuple[float, int]]  # (score, position of the passage), best first
Finder = Callable[..., Found]  # (question, limit=, without=)
Embed = Callable[[Sequence[str]], np.ndarray]  # texts → (B, D)


class VectorSearch:
    """An index of passage vectors; `search` as `BM25.search`, by cosine. Passages of superseded
    rules keep half of theirs."""

    def __init__(self, passages: list[Passage], embed: Embed):
        self.passages, self.embed = passages, embed
        self.unit_PD = unit(embed([reading_text(p) for p in passages]))
        self.factor = np.array([0.5 if p.superseded else 1.0 for p in passages])

    def search(self, question: str, limit: int = 5, without: str | None = None) -> Found:
        """Best passages for a question, only those that are like it at all (cosine above 0)."""
        scores = (self.unit_PD @ unit(self.embed([question]))[0]) * self.factor
        order = (int(i) for i in np.argsort(-scores, kind="stable") if scores[i] > 0)
        kept = [i for i in order if self.passages[i].document != without]
        return [(float(scores[i]), i) for i in kept[:limit]]


def word_embedder(vectors: WordVectors, passages: Sequence[Passage]) -> Embed:
    """Texts as means of their words' vectors, weighted by the idf of each word in `passages`; a
    text without a word that has a vector is a row of zeros."""
    texts = [_stems(vectors, reading_text(p)) for p in passages]
    frequency = Counter(stem for text in texts for stem in set(text))

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), vectors.settings.width), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for stem in _stems(vectors, text):
                if (vector := vectors.vector(stem)) is not None:
                    n = frequency[stem]
                    row += math.log(1 + (len(passages) - n + 0.5) / (n + 0.5)) * vector
        return rows

    return embed


def _stems(vectors: WordVectors, text: str) -> list[str]:
    """The words of a text, those that are known as the vectors' vocabulary spells them."""
    words = [word for line in lines_of_words(text) for word in line]
    places = [vectors.known(word) for word in words]
    return [w if i is None else vectors.words[i] for w, i in zip(words, places, strict=True)]


def encoder_embedder(model: Transformer, tokenizer) -> Embed:
    """Texts as means of an encoder's last hidden states, cut at its context."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = []
        with torch.no_grad():
            for text in texts:
                ids = tokenizer.encode(text).ids[: model.shape.context]
                rows.append(model.encode(torch.tensor([ids]))[0].float().mean(0).numpy())
        return np.stack(rows)

    return embed


def reciprocal_ranks(*finders: Finder) -> Finder:
    """One search from several: a passage scores Σ 1 / (60 + its rank) over their first hundred."""

    def search(question: str, limit: int = 5, without: str | None = None) -> Found:
        scores: dict[int, float] = {}
        for finder in finders:
            for rank, (_, i) in enumerate(finder(question, FUSED_DEPTH, without), 1):
                scores[i] = scores.get(i, 0.0) + 1 / (RANK_CONSTANT + rank)
        best = sorted(scores, key=lambda i: (-scores[i], i))[:limit]
        return [(scores[i], i) for i in best]

    return search


def expanded(index: BM25, vectors: WordVectors, near: int, share: float) -> Finder:
    """BM25 asked for the question, and for the `near` words nearest to each of its words with
    `share` of the score."""

    def search(question: str, limit: int = 5, without: str | None = None) -> Found:
        words = [w for line in lines_of_words(question) for w in line if index.words(w)]
        known = [w for w in words if vectors.vector(w) is not None]
        more = " ".join(other for w in known for _, other in vectors.nearest(w, near))
        everything = len(index.passages)
        scores = {i: score for score, i in index.search(question, everything, without)}
        for score, i in index.search(more, everything, without):
            scores[i] = scores.get(i, 0.0) + share * score
        best = sorted(scores, key=lambda i: (-scores[i], i))[:limit]
        return [(scores[i], i) for i in best]

    return search
