"""Text to word vectors: skip-gram, CBOW and GloVe, with or without n-grams, on one thread.

Skip-gram and CBOW are one thing seen twice: a bag of words predicts a target (skip-gram: one word
predicts a neighbour; CBOW: the neighbours predict the word between them), against noise words drawn
∝ count^0.75 (Mikolov et al. 2013). A word in a bag is the mean of its rows: one row for Word2Vec,
its own and its n-grams' for FastText. GloVe fits log co-occurrence (Pennington et al. 2014).

The reference programs step once for every pair, with a falling rate. Here thousands of pairs make
one step, so that it is a few matrix products; the sum of so many gradients of one frequent row
would overshoot, so every number has its own AdaGrad rate (Duchi et al. 2011), GloVe's rule for all.
To touch fewer rows, `SHARED` neighbours in the text share their noise words, `NOISE_TIMES` as many
with so much less weight: the same expected gradient (Ji et al. 2016).

Left out: hierarchical softmax, phrases, going on from saved vectors. Equal text and settings give
equal bytes: one thread, NumPy's PCG64, no order taken from a hash table.

Shapes: B examples, C words in a bag, D width, G groups of P = SHARED examples, K noise words a
group, R rows touched (repeats kept), U different words, V words, N rows of a table.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import embedding_bag, logsigmoid, pad

from onsil.corpus import document_text, load_corpus
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, stage
from onsil.models.subwords import buckets_of, lines_of_words, stems
from onsil.models.word_vectors import Settings, WordVectors

NOISE_POWER = 0.75
SHARED, NOISE_TIMES = 16, 4
BATCH = 4096
CHUNK = 1 << 16
GLOVE_CUT, GLOVE_POWER = 100.0, 0.75
ABSENT = -1


@stage(version=1)
def train_word_vectors(*, corpus: Artifact, settings: Settings, out: Path, run: Run) -> dict:
    """A folder for `load_word_vectors`, from all documents of a corpus: nothing is held
    out, since nothing here is scored by what it predicts."""
    texts = [document_text(document) for document in load_corpus(corpus).documents]
    lines = [line for text in texts for line in lines_of_words(text)]
    vectors, curve = learn(lines, settings, run.say)
    vectors.save(out, run.ancestry)
    return {"tokens": sum(map(len, lines)), "words": len(vectors.words), "loss": curve}


def learn(
    lines: Sequence[Sequence[str]], settings: Settings, say: Callable[[str], None] = lambda _: None
) -> tuple[WordVectors, list[float]]:
    """Vectors of the stems of `lines`, and the mean loss of an example in every epoch. Raises
    OnsilError when no word is frequent enough to have a row."""
    stem = stems(word for line in lines for word in line)
    lines = [[stem[word] for word in line] for line in lines]
    words, counts = vocabulary(lines, settings.fewest)
    if not words:
        raise _nothing_to_learn(lines, settings.fewest)
    rng = np.random.default_rng(settings.seed)
    text = Text.of(lines, words)
    epochs = glove_epochs if settings.objective == "glove" else bag_epochs
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order only
    try:
        curve, made_ND = [], torch.empty(0)
        for loss, table_ND in epochs(text, words, counts, settings, rng):
            made_ND = table_ND
            curve.append(round(loss, 4))
            say(f"{settings.objective} {len(curve)}/{settings.epochs} · loss {loss:.4f}")
    finally:
        torch.set_num_threads(threads)
    words_VD, ngrams_BD = np.split(made_ND.numpy(), [len(words)])
    return WordVectors(settings, words, counts, words_VD, ngrams_BD), curve


# -- text ---------------------------------------------------------------------------------------


def vocabulary(lines: Sequence[Sequence[str]], fewest: int) -> tuple[list[str], np.ndarray]:
    """Words that occur at least `fewest` times, most frequent first, and their counts (V,)."""
    counted = Counter(word for line in lines for word in line)
    kept = sorted((-n, word) for word, n in counted.items() if n >= fewest)
    return [word for _, word in kept], np.array([-n for n, _ in kept], dtype=np.int64)


@dataclass(frozen=True)
class Text:
    """Known words as numbers, one line after another; line i is ids[starts[i] : starts[i + 1]]."""

    ids: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, lines: Sequence[Sequence[str]], words: Sequence[str]) -> "Text":
        place = {word: i for i, word in enumerate(words)}
        known = [[place[word] for word in line if word in place] for line in lines]
        starts = np.cumsum([0, *map(len, known)])
        ids = np.fromiter((i for line in known for i in line), np.int64, count=int(starts[-1]))
        return cls(ids, starts)

    def chunks(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids, number of the line) of about `CHUNK` words of whole lines, lines in random
        order."""
        lengths = np.diff(self.starts)
        order = rng.permutation(len(lengths))
        ends = np.cumsum(lengths[order])
        for lines in np.split(order, np.searchsorted(ends, np.arange(CHUNK, ends[-1], CHUNK))):
            n = lengths[lines]
            first = np.repeat(self.starts[lines] - (np.cumsum(n) - n), n)
            yield self.ids[first + np.arange(n.sum())], np.repeat(np.arange(len(lines)), n)


def keep_probability(counts: np.ndarray, subsample: float) -> np.ndarray:
    """1 minus the chance 1 − √(t/f) that an occurrence of each word is skipped."""
    return np.minimum(1.0, np.sqrt(subsample * counts.sum() / counts))


def noise_ladder(counts: np.ndarray) -> np.ndarray:
    """Cumulative chances ∝ count^0.75, ending at 1."""
    steps = np.cumsum(counts.astype(np.float64) ** NOISE_POWER)
    return steps / steps[-1]


def draw_noise(ladder: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return np.searchsorted(ladder, rng.random(shape), side="right")


def neighbours(
    ids: np.ndarray, line: np.ndarray, window: int, rng: np.random.Generator
) -> np.ndarray:
    """For every word (rows) the words within a window of the same line that is drawn anew for each,
    uniform on 1 … `window`; ABSENT where there is none (n, 2 · window)."""
    reach = rng.integers(1, window + 1, len(ids))
    offsets = np.array([o for o in range(-window, window + 1) if o])
    at = np.arange(len(ids))[:, None] + offsets
    there = (at >= 0) & (at < len(ids)) & (np.abs(offsets) <= reach[:, None])
    at = np.where(there, at, 0)
    there &= line[at] == line[:, None]
    return np.where(there, ids[at], ABSENT)


def examples(
    text: Text, counts: np.ndarray, settings: Settings, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(bag_BC, target_B) for one epoch, in batches; a bag may hold ABSENT."""
    keep = keep_probability(counts, settings.subsample)
    for ids, line in text.chunks(rng):
        kept = rng.random(len(ids)) < keep[ids]
        ids, line = ids[kept], line[kept]
        around = neighbours(ids, line, settings.window, rng)
        if settings.objective == "cbow":
            some = (around != ABSENT).any(1)
            bag, target = around[some], ids[some]
        else:
            centre, which = np.nonzero(around != ABSENT)
            bag, target = ids[centre, None], around[centre, which]
        for i in range(0, len(target), BATCH):
            yield bag[i : i + BATCH], target[i : i + BATCH]


# -- rows and steps -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Which rows make a word: its own, then those of its n-grams' buckets behind all words.
    Word i has rows flat[starts[i] : starts[i + 1]]."""

    flat: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, words: Sequence[str], settings: Settings) -> "Rows":
        made = [np.array([i]) for i in range(len(words))]
        if settings.buckets:
            span = settings.shortest, settings.longest, settings.buckets
            made = [
                np.concatenate([own, len(words) + buckets_of(word, *span)])
                for own, word in zip(made, words, strict=True)
            ]
        return cls(np.concatenate(made), np.cumsum([0, *map(len, made)]))

    def of_words(self, chosen_U: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows of the chosen words one after another (R,), and how many each has (U,)."""
        n = self.starts[chosen_U + 1] - self.starts[chosen_U]
        first = np.repeat(self.starts[chosen_U] - (np.cumsum(n) - n), n)
        return torch.from_numpy(self.flat[first + np.arange(n.sum())]), torch.from_numpy(n)


class AdaGrad:
    """A table whose every number has its own rate: learning_rate / √(sum of squared gradients)."""

    def __init__(self, table_ND: torch.Tensor, learning_rate: float):
        self.table_ND, self.learning_rate = table_ND, learning_rate
        self.squares_ND = torch.full_like(table_ND, 1e-8)
        self.place_N = torch.empty(len(table_ND), dtype=torch.long)

    def step(self, rows_R: torch.Tensor, gradient_RD: torch.Tensor) -> None:
        """Gradients of the same row are added up first; other rows stay as they are."""
        touched = torch.zeros(len(self.table_ND), dtype=torch.bool)
        touched[rows_R] = True
        rows = touched.nonzero()[:, 0]
        self.place_N[rows] = torch.arange(len(rows))
        summed = torch.zeros(len(rows), gradient_RD.size(1))
        summed.index_add_(0, self.place_N[rows_R], gradient_RD)
        squares = self.squares_ND[rows] + summed.square()
        self.squares_ND[rows] = squares
        self.table_ND[rows] -= self.learning_rate * summed / squares.sqrt()


def negative_sampling(
    hidden_GPD: torch.Tensor,
    true_GPD: torch.Tensor,
    noise_GKD: torch.Tensor,
    real_GP: torch.Tensor,
    weight_GPK: torch.Tensor,
) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    """−Σ log σ(h·u) − Σ w log σ(−h·n) and its gradients by hidden, true and noise vectors. `real`
    is 0 for padding; `weight` is 0 where a noise word is the target itself."""
    score_GP = (hidden_GPD * true_GPD).sum(-1)
    noise_GPK = hidden_GPD @ noise_GKD.mT
    loss = -(real_GP * logsigmoid(score_GP)).sum() - (weight_GPK * logsigmoid(-noise_GPK)).sum()
    pull_GP1 = (real_GP * (score_GP.sigmoid() - 1))[..., None]
    push_GPK = weight_GPK * noise_GPK.sigmoid()
    by_hidden = pull_GP1 * true_GPD + push_GPK @ noise_GKD
    return float(loss), by_hidden, pull_GP1 * hidden_GPD, push_GPK.mT @ hidden_GPD


def bag_step(
    bag_BC: np.ndarray,
    target_B: np.ndarray,
    noise_GK: np.ndarray,
    rows: Rows,
    inside: AdaGrad,
    outside: AdaGrad,
) -> float:
    """One step of skip-gram or CBOW over a batch; its loss summed over the examples."""
    loss, (rows_R, by_row), (out_rows, by_out) = bag_gradients(
        bag_BC, target_B, noise_GK, rows, inside.table_ND, outside.table_ND
    )
    inside.step(rows_R, by_row)
    outside.step(out_rows, by_out)
    return loss


Sparse = tuple[torch.Tensor, torch.Tensor]  # rows (R,) and their gradients (R, D)


def bag_gradients(
    bag_BC: np.ndarray,
    target_B: np.ndarray,
    noise_GK: np.ndarray,
    rows: Rows,
    inside_ND: torch.Tensor,
    outside_VD: torch.Tensor,
) -> tuple[float, Sparse, Sparse]:
    """The loss of a batch and its gradients by the rows of both tables.

    A bag is the mean of its words, a word the mean of its rows.
    """
    chosen, inverse = np.unique(bag_BC, return_inverse=True)
    absent = int(chosen[0] == ABSENT)
    rows_R, length_U = rows.of_words(chosen[absent:])
    word_UD = embedding_bag(rows_R, inside_ND, length_U.cumsum(0) - length_U, mode="mean")
    at_BC = torch.from_numpy(inverse.reshape(bag_BC.shape)) - absent
    share_BC = (at_BC >= 0).float()
    share_BC /= share_BC.sum(1, keepdim=True)
    at_BC = at_BC.clamp(min=0)
    hidden_BD = (word_UD[at_BC] * share_BC[..., None]).sum(1)

    groups, size = len(noise_GK), len(target_B)
    fill = groups * SHARED - size
    hidden_GPD = pad(hidden_BD, (0, 0, 0, fill)).unflatten(0, (groups, SHARED))
    target, noise = torch.from_numpy(target_B), torch.from_numpy(noise_GK)
    target_GP = pad(target, (0, fill), value=ABSENT).unflatten(0, (groups, SHARED))
    real_GP = (target_GP != ABSENT).float()
    weight_GPK = (target_GP[..., None] != noise[:, None]).float() * real_GP[..., None]
    loss, by_hidden, by_true, by_noise = negative_sampling(
        hidden_GPD,
        outside_VD[target_GP.clamp(min=0)],
        outside_VD[noise],
        real_GP,
        weight_GPK / NOISE_TIMES,
    )

    by_hidden = by_hidden.flatten(0, 1)[:size]
    by_word = torch.zeros_like(word_UD).index_add_(
        0, at_BC.flatten(), (by_hidden[:, None] * share_BC[..., None]).flatten(0, 1)
    )
    by_row = (by_word / length_U[:, None]).repeat_interleave(length_U, 0)
    out_rows = torch.cat([target, noise.flatten()])
    by_out = torch.cat([by_true.flatten(0, 1)[:size], by_noise.flatten(0, 1)])
    return loss, (rows_R, by_row), (out_rows, by_out)


Epochs = Iterator[tuple[float, torch.Tensor]]  # mean loss, the table so far


def bag_epochs(
    text: Text,
    words: Sequence[str],
    counts: np.ndarray,
    settings: Settings,
    rng: np.random.Generator,
) -> Epochs:
    """Skip-gram or CBOW: input rows start in ±0.5 / D, output rows at zero."""
    rows, width = Rows.of(words, settings), settings.width
    start = (rng.random((len(words) + settings.buckets, width), np.float32) - 0.5) / width
    inside = AdaGrad(torch.from_numpy(start), settings.learning_rate)
    outside = AdaGrad(torch.zeros(len(words), width), settings.learning_rate)
    ladder = noise_ladder(counts)
    for _ in range(settings.epochs):
        loss, seen = 0.0, 0
        for bag_BC, target_B in examples(text, counts, settings, rng):
            groups = -(-len(target_B) // SHARED)
            noise_GK = draw_noise(ladder, (groups, settings.negatives * NOISE_TIMES), rng)
            loss += bag_step(bag_BC, target_B, noise_GK, rows, inside, outside)
            seen += len(target_B)
        yield loss / max(1, seen), inside.table_ND


# -- GloVe --------------------------------------------------------------------------------------


def cooccurrences(text: Text, window: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, column, count) of every pair of words within `window` of each other in a line, both
    ways round; a pair at distance d counts 1/d."""
    line = np.repeat(np.arange(len(text.starts) - 1), np.diff(text.starts))
    keys, sums = np.empty(0, np.int64), np.empty(0)
    for distance in range(1, window + 1):
        a, b = text.ids[:-distance], text.ids[distance:]
        near = line[:-distance] == line[distance:]
        both = np.concatenate([a[near] * size + b[near], b[near] * size + a[near]])
        weights = np.concatenate([sums, np.full(len(both), 1.0 / distance)])
        keys, inverse = np.unique(np.concatenate([keys, both]), return_inverse=True)
        sums = np.bincount(inverse, weights, len(keys))
    return keys // size, keys % size, sums


def glove_gradients(
    word_BE: torch.Tensor, context_BE: torch.Tensor, count_B: torch.Tensor
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Σ f(X) (w·w̃ + b + b̃ − log X)² and its gradients; f = min(1, (X/100)^0.75). The last
    column of a row (E = D + 1) is its bias."""
    far_B = (word_BE[:, :-1] * context_BE[:, :-1]).sum(1) + word_BE[:, -1] + context_BE[:, -1]
    far_B = far_B - count_B.log()
    trust_B = (count_B / GLOVE_CUT).clamp(max=1.0) ** GLOVE_POWER
    pull_B1 = (2 * trust_B * far_B)[:, None]
    ones = torch.ones_like(pull_B1)
    by_word = pull_B1 * torch.cat([context_BE[:, :-1], ones], 1)
    by_context = pull_B1 * torch.cat([word_BE[:, :-1], ones], 1)
    return float((trust_B * far_B.square()).sum()), by_word, by_context


def glove_epochs(
    text: Text,
    words: Sequence[str],
    counts: np.ndarray,
    settings: Settings,
    rng: np.random.Generator,
) -> Epochs:
    """GloVe: the vector of a word is w + w̃, without biases."""
    size, width = len(words), settings.width
    row, column, count = cooccurrences(text, settings.window, size)
    tables = [
        AdaGrad(
            torch.from_numpy((rng.random((size, width + 1), np.float32) - 0.5) / width),
            settings.learning_rate,
        )
        for _ in range(2)
    ]
    for _ in range(settings.epochs):
        loss, order = 0.0, rng.permutation(len(count))
        for i in range(0, len(order), BATCH):
            chosen = order[i : i + BATCH]
            a, b = torch.from_numpy(row[chosen]), torch.from_numpy(column[chosen])
            x = torch.from_numpy(count[chosen]).float()
            lost, by_word, by_context = glove_gradients(
                tables[0].table_ND[a], tables[1].table_ND[b], x
            )
            tables[0].step(a, by_word)
            tables[1].step(b, by_context)
            loss += lost
        yield loss / max(1, len(order)), (tables[0].table_ND + tables[1].table_ND)[:, :-1]


def _nothing_to_learn(lines: Sequence[Sequence[str]], fewest: int) -> OnsilError:
    total = sum(map(len, lines))
    return OnsilError(
        en=(
            f"No word of these {total:,} occurs {fewest} times.",
            "A vector is learned from the places a word stands in; there are too few.",
            "Give more text, or a smaller `fewest` in the settings.",
        ),
        ko=(
            f"단어 {total:,}개 가운데 {fewest}번 나오는 것이 없습니다.",
            "벡터는 단어가 놓인 자리에서 배우는데 그 자리가 너무 적습니다.",
            "글을 더 넣거나 설정의 `fewest`를 낮추어 주세요.",
        ),
    )
