"""An English decoder is taught Korean law, with new tokens and without.

    python recipes/vocabulary_expansion.py [words | replay | english | english-replay]

The base is grown here from English novels and, as the published English bases know some Korean,
Korean documentation (600 kB for the first proof, 60 for the second): a byte-level BPE of 4,096
tokens, learnt on English alone, that spells a Korean syllable in three, and a small decoder. Then
it goes on with Korean statutes. Arms of the first proof differ in the tokenizer and in how the rows
of the new tokens begin: as the mean of what spelled them (the library's way), as a random draw, as
the mean of all rows with noise, or no new tokens at all; and, unjudged, without the first steps in
which only new rows learn. All see the same number of tokens, which costs the one without new tokens
hardly less than the others; that it reads a quarter of the text for it is the point. Score: −bits
per byte of held-out pieces of statutes, each scored from its beginning.

The second proof is about forgetting: −bits per byte of held-out English, with a quarter of each
batch English again and without; the same tokens in all.

The last two are of a base that has read English alone: what new tokens are worth there, beside none
and beside the base as it was, and what is forgotten.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import torch
from proving import MADE_UP, learn, prove, rows_of, throughout

from onsil.models.new_rows import tables_of, with_new_rows
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.expansion import Expansion, expand, fertility
from onsil.tokenizer.train import END, train
from onsil.training.continuing import Continuation, continued, mixture
from onsil.training.objectives import causal_batch, pieces_of, schedule, token_loss


class Sizes(NamedTuple):
    """What is run: bytes of English to grow on and of Korean among it, sizes of the decoder, new
    tokens, tokens a continuation reads, held-out pieces and their bytes, rates."""

    english: int = 700_000
    known: int = 60_000
    vocabulary: int = 4096
    width: int = 64
    depth: int = 2
    context: int = 256
    new: int = 1024
    korean: int = 1_000_000
    tokens: int = 100_000
    held: int = 250
    piece: int = 600
    batch_tokens: int = 2048
    base_rate: float = 3e-3
    rate: float = 2e-3
    new_rows: float = 0.1
    compute: str = "bf16"


KNOWS_MORE = Sizes(known=600_000)  # with 60,000 how rows begin made no difference (docs/log.md)
ENGLISH = Sizes(known=0)


def texts_of(name: str, size: int, skip: int = 0, every: int = 1) -> Iterator[str]:
    """Texts of a file from a document on, one in so many, up to about `size` bytes."""
    for row in islice(rows_of(name), skip, None, every):
        yield row["text"][:size]
        size -= len(row["text"].encode())
        if size <= 0:
            return


def passages(texts: Iterator[str], size: int, many: int) -> list[str]:
    """Runs of whole lines of about `size` bytes, evenly spread over the texts."""
    found = []
    for text in texts:
        part = ""
        for line in text.split("\n"):
            part += line + "\n"
            if len(part.encode()) >= size:
                found.append(part[:size])
                part = ""
    assert len(found) >= many, f"{len(found)} passages of {size} bytes, not {many}"
    return [found[i * len(found) // many] for i in range(many)]


@cache
def materials(sizes: Sizes) -> dict[str, list[str]]:
    """English to grow on and to replay, Korean to go on with, and passages of neither."""
    novels = list(texts_of("text-en/novels-en", sizes.english + sizes.piece * sizes.held * 8))
    whole = "".join(novels)
    cut = len(whole) - sizes.piece * sizes.held * 4
    english = [whole[i : i + 20_000] for i in range(0, cut, 20_000)]
    law = texts_of("text-ko/law-ko", 40 * sizes.piece * sizes.held, skip=1, every=2)
    return {
        "english": english,
        "known": list(texts_of("text-ko/tech-ko", sizes.known)) if sizes.known else [],
        "korean": list(texts_of("text-ko/law-ko", sizes.korean, every=2)),
        "held english": passages(iter([whole[cut:]]), sizes.piece, sizes.held),
        "held korean": passages(law, sizes.piece, sizes.held),
    }


@cache
def grown(sizes: Sizes, seed: int) -> tuple[Any, Transformer]:
    """The English tokenizer and decoder."""
    texts = materials(sizes)["english"]
    words = train(texts, sizes.vocabulary)
    words.encode_special_tokens = True
    shape = decoder_shape(sizes.vocabulary, sizes.width, sizes.depth, sizes.context)
    model = Transformer(shape, sizes.compute).initialise(seed)
    texts = texts + materials(sizes)["known"]
    pieces = pieces_of([e.ids for e in words.encode_batch(texts)], sizes.context)
    steps = schedule([len(p) for p in pieces], sizes.batch_tokens, 1, seed)

    def loss_of(k: int):
        return token_loss(model, causal_batch([pieces[i] for i in steps[k]]))

    learn(dict(model.named_parameters()), loss_of, len(steps), sizes.base_rate)
    return words, model


@cache
def expansion(sizes: Sizes, seed: int) -> Expansion:
    return expand(grown(sizes, seed)[0], materials(sizes)["korean"], sizes.new)


def begun(model: Transformer, spelled: dict[int, list[int]], rows: str, seed: int) -> Transformer:
    """The model with its new rows begun in one of three ways."""
    wider = with_new_rows(model, spelled)
    draw, ids = torch.Generator().manual_seed(seed), list(spelled)
    with torch.no_grad():
        for table in tables_of(wider).values():
            noise = 0.02 * torch.randn(len(ids), table.size(1), generator=draw)
            if rows == "random":
                table[ids] = noise
            elif rows == "mean":
                table[ids] = table[: min(ids)].mean(0) + noise
    return wider


def taught(
    sizes: Sizes,
    seed: int,
    rows: str = "spelled",
    replayed: float = 0.25,
    new_rows: float | None = None,
) -> tuple[Any, Transformer]:
    """The base after `sizes.tokens` tokens of Korean law; `rows` "none" adds no tokens, `new_rows`
    is not that of the sizes."""
    words, model = grown(sizes, seed)
    held, spelled = materials(sizes), {}
    if rows != "none":
        words, spelled, _ = expansion(sizes, seed)
    model = begun(model, spelled, rows, seed)
    domain, general = (
        pieces_of([e.ids for e in words.encode_batch(part)], sizes.context)
        for part in (held["korean"], held["english"])
    )
    how = Continuation(
        rate=sizes.rate,
        batch_tokens=sizes.batch_tokens,
        replayed=replayed,
        new_rows=sizes.new_rows if new_rows is None else new_rows,
        seed=seed,
    )
    size = [len(p) for p in domain], [len(p) for p in general]
    steps = mixture(*size, how)
    many = sizes.tokens // sizes.batch_tokens
    while len(steps) < many:
        how = replace(how, epochs=how.epochs + 1)
        steps = mixture(*size, how)
    steps = steps[:many]

    def loss_of(k: int):
        new, old = steps[k]
        return token_loss(model, causal_batch([domain[i] for i in new] + [general[i] for i in old]))

    throughout(
        lambda scratch: continued(model, loss_of, len(steps), spelled, how, scratch, **MADE_UP)
    )
    return words, model


@torch.no_grad()
def scored(words, model: Transformer, texts: list[str]) -> list[float]:
    """−bits per byte of each text."""
    found = []
    for text in texts:
        ids = [END, *words.encode(text).ids]
        nats = sum(
            float(token_loss(model, causal_batch([ids[i : i + model.shape.context]]))[0])
            for i in range(0, len(ids) - 1, model.shape.context - 1)
        )
        found.append(-nats / math.log(2) / len(text.encode()))
    return found


def korean(sizes: Sizes, seed: int, **how) -> list[float]:
    return scored(*taught(sizes, seed, **how), materials(sizes)["held korean"])


def english(sizes: Sizes, seed: int, replayed: float) -> list[float]:
    return scored(*taught(sizes, seed, replayed=replayed), materials(sizes)["held english"])


def settings(sizes: Sizes) -> dict:
    """Sizes, what the base costs before, and the fertility of both tokenizers."""
    held = materials(sizes)
    before = {
        name: round(-sum(scores) / len(scores), 4)
        for name in ("held korean", "held english")
        if (scores := scored(*grown(sizes, 0), held[name]))
    }
    tokens = {
        name: fertility(words, held["held korean"])["hangul"]
        for name, words in (("base", grown(sizes, 0)[0]), ("grown", expansion(sizes, 0).tokenizer))
    }
    return sizes._asdict() | {"base bits per byte": before, "tokens a hangul": tokens}


def prove_words(sizes: Sizes = KNOWS_MORE, seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    for seed in seeds:
        expansion(sizes, seed)  # not the arms' time
    return prove(
        "vocabulary expansion",
        "new tokens begun as the mean of what spelled them learn Korean best for the same tokens",
        {
            "subword mean": lambda seed: korean(sizes, seed),
            "random rows": lambda seed: korean(sizes, seed, rows="random"),
            "mean + noise": lambda seed: korean(sizes, seed, rows="mean"),
            "no new tokens": lambda seed: korean(sizes, seed, rows="none"),
            "subword mean, all at once": lambda seed: korean(sizes, seed, new_rows=0.0),
        },
        [("subword mean", other) for other in ("random rows", "mean + noise", "no new tokens")],
        seeds,
        settings(sizes),
    )


def prove_english(sizes: Sizes = ENGLISH, seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    for seed in seeds:
        expansion(sizes, seed)
    return prove(
        "expansion of an English base",
        "a decoder that has read English alone learns Korean better with new tokens than without",
        {
            "new tokens": lambda seed: korean(sizes, seed),
            "no new tokens": lambda seed: korean(sizes, seed, rows="none"),
            "before": lambda seed: scored(*grown(sizes, seed), materials(sizes)["held korean"]),
            "new tokens, random rows": lambda seed: korean(sizes, seed, rows="random"),
        },
        [("new tokens", other) for other in ("no new tokens", "before")],
        seeds,
        settings(sizes),
    )


def prove_replay(
    sizes: Sizes = Sizes(), seeds: tuple[int, ...] = (0, 1, 2), name: str = "replay"
) -> dict:
    for seed in seeds:
        expansion(sizes, seed)
    return prove(
        name,
        "a quarter of general text in each batch forgets less English than none",
        {
            "base": lambda seed: scored(*grown(sizes, seed), materials(sizes)["held english"]),
            "replay": lambda seed: english(sizes, seed, 0.25),
            "no replay": lambda seed: english(sizes, seed, 0.0),
        },
        [("replay", "no replay")],
        seeds,
        settings(sizes),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    proofs = {
        "words": prove_words,
        "replay": prove_replay,
        "english": prove_english,
        "english-replay": lambda: prove_replay(ENGLISH, name="replay, English base"),
    }
    for name, run in proofs.items():
        if sys.argv[1:] in ([], [name]):
            run()
