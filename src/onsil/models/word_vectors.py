"""Word vectors: a table of rows, looked up by word, compared by angle.

One class for four models. Word2Vec (skip-gram and CBOW; Mikolov et al. 2013) and GloVe (Pennington
et al. 2014) keep one row a word. FastText (Bojanowski et al. 2017) adds rows for hashed n-grams and
takes the mean, so that a word never seen, or misspelled, still has a vector: the mean of its
n-grams. How the rows are learned stands in `training/word_vectors.py`.

A folder holds config.json (the settings), vocabulary.tsv (word, count) and model.safetensors.
Only what is needed to look words up is kept: no output rows, no state of the optimiser, so
training cannot go on from a folder.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from onsil.errors import OnsilError
from onsil.lineage.history import METADATA_KEY
from onsil.lineage.spelling import canonical
from onsil.models.subwords import buckets_of, stem_among
from onsil.models.weights import stable_bytes

OBJECTIVES = ("skipgram", "cbow", "glove")
KIND = "onsil_word_vectors"


@dataclass(frozen=True)
class Settings:
    """How vectors are made.

    `window`: farthest neighbour, in words. `negatives`: noise words for each true one. `fewest`:
    a rarer word gets no row. `subsample`: the share of the text above which a word is thinned out,
    the t of 1 − √(t/f). `buckets`: rows for n-grams of `shortest` to `longest` symbols, 0 for none.
    GloVe has no use for `negatives` and `subsample`.
    """

    objective: str = "skipgram"
    width: int = 100
    window: int = 5
    negatives: int = 5
    epochs: int = 5
    learning_rate: float = 0.1
    fewest: int = 5
    subsample: float = 1e-3
    shortest: int = 3
    longest: int = 6
    buckets: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises OnsilError for an objective that is not one, and for GloVe with n-grams."""
        if self.objective not in OBJECTIVES:
            raise _no_objective(self.objective)
        if self.objective == "glove" and self.buckets:
            raise _glove_with_ngrams(self.buckets)


def word2vec() -> Settings:
    """Skip-gram with negative sampling."""
    return Settings()


def cbow() -> Settings:
    """Continuous bag of words with negative sampling."""
    return replace(word2vec(), objective="cbow")


def glove() -> Settings:
    """Weighted least squares on the logarithms of co-occurrence counts."""
    return replace(word2vec(), objective="glove", learning_rate=0.05, epochs=15)


def fasttext() -> Settings:
    """Skip-gram over words and their jamo n-grams."""
    return replace(word2vec(), buckets=50_000)


class WordVectors:
    """`words` most frequent first with their `counts`; `words_VD` their rows, `ngrams_BD` the rows
    of the buckets (B = 0 without n-grams)."""

    def __init__(
        self,
        settings: Settings,
        words: Sequence[str],
        counts: np.ndarray,
        words_VD: np.ndarray,
        ngrams_BD: np.ndarray,
    ):
        self.settings, self.words, self.counts = settings, tuple(words), counts
        self.words_VD, self.ngrams_BD = words_VD, ngrams_BD
        self.place = {word: i for i, word in enumerate(self.words)}

    def known(self, word: str) -> int | None:
        """The place of a word, with or without its particle; None for an unknown one."""
        stem = stem_among(self.place, word)
        return None if stem is None else self.place[stem]

    def vector(self, word: str) -> np.ndarray | None:
        """The vector of a word (D,); of an unknown one the mean of its n-grams, or None where the
        vectors have no n-grams."""
        at = self.known(word)
        if not len(self.ngrams_BD):
            return None if at is None else self.words_VD[at]
        settings = self.settings
        spelled = word if at is None else self.words[at]
        found = buckets_of(spelled, settings.shortest, settings.longest, len(self.ngrams_BD))
        rows = self.ngrams_BD[found]
        if at is not None:
            rows = np.concatenate([self.words_VD[at : at + 1], rows])
        return rows.mean(0) if len(rows) else None

    @cached_property
    def unit_VD(self) -> np.ndarray:
        """The vectors of all words, each of length 1."""
        if not self.words:
            return self.words_VD
        return unit(np.stack([v for w in self.words if (v := self.vector(w)) is not None]))

    def nearest(self, word: str, limit: int = 10) -> list[tuple[float, str]]:
        """(cosine, word) of the words most like `word`, without itself, nearest first. Raises
        OnsilError for a word that has no vector."""
        vector = self.vector(word)
        if vector is None:
            raise _unknown(word, len(self.words))
        cosines = self.unit_VD @ unit(vector[None])[0]
        if (at := self.known(word)) is not None:
            cosines[at] = -np.inf
        found = np.argsort(-cosines, kind="stable")[: min(limit, len(self.words))]
        return [(float(cosines[i]), self.words[i]) for i in found if np.isfinite(cosines[i])]

    def save(self, folder: Path, ancestry: dict[str, Any]) -> None:
        """Write the three files; equal vectors give equal bytes."""
        config = {"model_type": KIND, "settings": asdict(self.settings)}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        rows = zip(self.words, self.counts.tolist(), strict=True)
        text = "".join(f"{word}\t{count}\n" for word, count in rows)
        (folder / "vocabulary.tsv").write_text(text, encoding="utf-8")
        tensors = {
            "words": torch.from_numpy(np.ascontiguousarray(self.words_VD)),
            "ngrams": torch.from_numpy(np.ascontiguousarray(self.ngrams_BD)),
        }
        metadata = {"format": "pt", METADATA_KEY: canonical(ancestry)}
        (folder / "model.safetensors").write_bytes(stable_bytes(tensors, metadata))


def load_word_vectors(folder: Path) -> WordVectors:
    """The vectors of a folder that `WordVectors.save` wrote. Raises OnsilError, with what is wrong,
    when a file is missing or damaged or the three do not belong together."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != KIND:
            raise ValueError(f"config.json: model_type is {config.get('model_type')!r}")
        known = {field.name for field in fields(Settings)}
        if wrong := sorted(known ^ set(config["settings"])):
            raise ValueError(f"config.json: unknown or missing settings {', '.join(wrong)}")
        settings = Settings(**config["settings"])
        lines = (folder / "vocabulary.tsv").read_text(encoding="utf-8").splitlines()
        words = [line.split("\t")[0] for line in lines]
        counts = np.array([int(line.split("\t")[1]) for line in lines], dtype=np.int64)
        tensors = load_file(folder / "model.safetensors")
        for name, rows in (("words", len(words)), ("ngrams", settings.buckets)):
            wanted = (rows, settings.width)
            if tensors[name].shape != wanted:
                raise ValueError(f"{name} is {tensors[name].shape}, not {wanted}")
    except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as e:
        raise _damaged(folder, e) from e
    return WordVectors(settings, words, counts, tensors["words"], tensors["ngrams"])


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Every row divided by its length; a row of zeros stays one."""
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)


def _no_objective(name: str) -> OnsilError:
    known = ", ".join(OBJECTIVES)
    return OnsilError(
        en=(
            f"There is no objective {name!r} for word vectors.",
            "The objective decides what the vectors mean.",
            f"Known here: {known}.",
        ),
        ko=(
            f"단어 벡터에는 {name!r}이라는 학습 목표가 없습니다.",
            "학습 목표에 따라 벡터의 뜻이 달라집니다.",
            f"쓸 수 있는 이름: {known}.",
        ),
    )


def _glove_with_ngrams(buckets: int) -> OnsilError:
    return OnsilError(
        en=(
            f"GloVe cannot have {buckets:,} buckets of n-grams.",
            "It counts whole words; rows for n-grams would never be trained.",
            "Set buckets to 0, or use the objective skipgram or cbow.",
        ),
        ko=(
            f"GloVe에는 n-gram 버킷 {buckets:,}개를 둘 수 없습니다.",
            "GloVe는 온전한 단어만 세므로 n-gram 행은 학습되지 않습니다.",
            "buckets를 0으로 두거나 skipgram, cbow를 써 주세요.",
        ),
    )


def _unknown(word: str, size: int) -> OnsilError:
    return OnsilError(
        en=(
            f"{word!r} is not among the {size:,} words of these vectors.",
            "Vectors without n-grams know only words they met often enough in training.",
            "Ask for another word, or train with n-grams: fasttext().",
        ),
        ko=(
            f"{word!r}은(는) 이 벡터가 아는 단어 {size:,}개에 없습니다.",
            "n-gram이 없는 벡터는 학습할 때 충분히 자주 본 단어만 압니다.",
            "다른 단어로 찾거나 n-gram을 쓰는 fasttext()로 학습해 주세요.",
        ),
    )


def _damaged(folder: Path, reason: Exception) -> OnsilError:
    what = f"{type(reason).__name__}: {reason}"
    return OnsilError(
        en=(
            f"{folder.name} cannot be read as word vectors ({what}).",
            "A wrong row would make words look alike that are not, without a warning.",
            "Train them again, or copy the folder again from where it came.",
        ),
        ko=(
            f"{folder.name} 폴더를 단어 벡터로 읽지 못했습니다({what}).",
            "행이 하나라도 어긋나면 엉뚱한 단어를 비슷하다고 하면서 경고도 없습니다.",
            "다시 학습하거나 원본 폴더를 다시 복사해 주세요.",
        ),
    )
