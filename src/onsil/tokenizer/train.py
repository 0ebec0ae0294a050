"""Byte-level BPE: any text in, the same text out.

Bytes as the alphabet make it lossless on every syllable, hanja and emoji; Llama-3's
pre-tokenisation (words with their leading space, digits in threes) is one that llama.cpp and
transformers already name, so the tokenizer can leave the house. Vocabulary follows the corpus:
a merge learned from a handful of occurrences is a row nobody trains.
"""

from pathlib import Path
from typing import NamedTuple

from onsil.corpus import document_text, load_corpus
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, stage

SPECIALS = ("<|pad|>", "<|end|>", "<|cls|>", "<|sep|>", "<|mask|>")
PAD, END, CLS, SEP, MASK = range(len(SPECIALS))


class Specials(NamedTuple):
    """Ids of the special tokens: the first five where the tokenizer grew here, the last where it
    came with a base."""

    pad: int = PAD
    end: int = END
    cls: int = CLS
    sep: int = SEP
    mask: int = MASK


def specials_of(tokenizer) -> Specials:
    """Where a tokenizer has them. Raises OnsilError when it lacks one."""
    found = {token: tokenizer.token_to_id(token) for token in SPECIALS}
    if missing := ", ".join(token for token, i in found.items() if i is None):
        raise OnsilError(
            en=(
                f"The tokenizer has no {missing}.",
                "Texts could not be ended, joined or hidden, so nothing can be learnt with it.",
                "Let a grow bring it in (--base), which gives it rows of its own for them.",
            ),
            ko=(
                f"토크나이저에 {missing}이(가) 없습니다.",
                "글을 끝내거나 잇거나 가릴 수 없어서 학습에 쓸 수 없습니다.",
                "grow의 --base로 들여오면 이 표시들의 자리를 새로 만듭니다.",
            ),
        )
    return Specials(*found.values())


# Llama 3 (meta-llama/llama-models, tokenizer.py, `pat_str`): the published pattern.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def vocabulary_for(corpus_bytes: int) -> int:
    """A merge for about every 60 bytes of text, from 1,000 up to the 8,000 that models under ten
    million parameters want."""
    return max(1_000, min(8_000, corpus_bytes // 60 // 100 * 100))


def train(texts: list[str], vocabulary: int):
    """A `tokenizers.Tokenizer` with `SPECIALS` as its first ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(folder: Path):
    """The tokenizer of a folder with tokenizer.json; text that spells a special token is text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


@stage(version=1)
def train_tokenizer(*, corpus: Artifact, vocabulary: int = 0, out: Path, run: Run) -> dict:
    """tokenizer.json from the training split of a corpus; `vocabulary=0` follows its size."""
    texts = [document_text(d) for d in load_corpus(corpus).train]
    size = sum(len(text.encode()) for text in texts)
    if not size:
        raise OnsilError(
            en=(
                "The corpus has no text to train on.",
                "A tokenizer and a model are made from text alone.",
                "Look at the skipped files, or give a folder with more documents.",
            ),
            ko=(
                "말뭉치에 학습할 글이 없습니다.",
                "토크나이저와 모델은 글에서만 만들어집니다.",
                "건너뛴 파일 목록을 보거나 문서가 더 있는 폴더를 주세요.",
            ),
        )
    tokenizer = train(texts, vocabulary or vocabulary_for(size))
    tokenizer.save(str(out / "tokenizer.json"))
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch(texts))
    return {"vocabulary": tokenizer.get_vocab_size(), "bytes": size, "tokens": tokens}
