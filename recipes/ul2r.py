"""A decoder that only ever wrote on learns to fill gaps, and goes on writing as well as before.

    python recipes/ul2r.py

The base of onsil, a causal decoder, goes on with Korean statutes for a tenth of the tokens it was
grown on: once as it was (causal), once under UL2R's mixture of denoisers (half S, a quarter R, a
quarter X; Tay et al. 2022), with the same pieces, steps and rate. Score: how well it fills a gap of
a few tokens in held-out text, with little before it and more behind, in −bits per byte of what was
there. The denoiser reads a sentinel and the text behind the gap, then writes the span from a little
before the gap on, whose beginning is given. The causal decoder has two ways: to go on after the
text before the gap, or, so that the text behind it is not out of its sight either, to read that
first. A control gives the denoiser the text behind another gap. What was tried before it held, and
how the gaps were chosen on other statutes: docs/log.md, "UL2R, a tenth of the training".

Beside it, without any mark: bits per byte of held-out text left to right, before and after either
continuation (`left_to_right` in the settings); UL2R promises to cost next to nothing of it.
"""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from proving import MADE_UP, ROOT, prove, rows_of, throughout

from onsil.models.checkpoint import load
from onsil.models.new_rows import with_new_rows
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.training.continuing import (
    Continuation,
    Marks,
    continued,
    denoising_batch,
    know_marks,
    longest_piece,
    mixture,
)
from onsil.training.objectives import causal_batch, pieces_of, prefix_batch, token_loss
from onsil.training.samplers import Pair


class Sizes(NamedTuple):
    """What is run: tokens of a piece and of a continuation, its rates; held-out gaps, two of a
    statute, their length and what is left before and behind."""

    context: int = 384
    tokens: int = 940_000
    batch_tokens: int = 4096
    rate: float = 1e-3
    new_rows: float = 0.1
    held: int = 600
    gap: int = 8
    before: int = 8
    behind: int = 64
    compute: str = "bf16"


class Gap(NamedTuple):
    """Ids before, in and behind a gap."""

    before: list[int]
    inside: list[int]
    behind: list[int]


@cache
def materials(sizes: Sizes) -> tuple[Any, Marks, dict[int, list[int]], list[list[int]], list[Gap]]:
    """The tokenizer with UL2R's marks, the rows they need, texts to go on with, and held-out gaps;
    one statute in eight is held out of the continuations (the base may have read it)."""
    words = load_tokenizer(ROOT / "base")
    marks, added = know_marks(words)
    texts, held, draw = [], [], random.Random("gaps")
    room = sizes.before + sizes.gap + sizes.behind
    for number, row in enumerate(rows_of("text-ko/law-ko")):
        ids = words.encode(row["text"][:20_000]).ids
        if number % 8:
            texts.append(ids)
            continue
        half = len(ids) // 2
        for part in (ids[:half], ids[half:]) if half > room else ():
            at = draw.randrange(len(part) - room)
            a, b = at + sizes.before, at + sizes.before + sizes.gap
            held.append(Gap(part[at:a], part[a:b], part[b : at + room]))
        if len(held) >= sizes.held:
            break
    return words, marks, added, texts, held


@cache
def taught(sizes: Sizes, seed: int, objective: str) -> Transformer:
    """The base after a continuation; "none" is the base with rows for the marks."""
    _, marks, added, texts, _ = materials(sizes)
    model = with_new_rows(load(ROOT / "base" / "decoder", sizes.compute)[0], added)
    if objective == "none":
        return model
    how = Continuation(
        rate=sizes.rate, batch_tokens=sizes.batch_tokens, new_rows=sizes.new_rows, seed=seed
    )
    pieces = pieces_of(texts, longest_piece(sizes.context, "ul2r"))
    steps = mixture([len(p) for p in pieces], [], how)[: sizes.tokens // sizes.batch_tokens]

    def loss_of(k: int):
        chosen = [pieces[i] for i in steps[k][0]]
        causal = objective == "causal"
        return token_loss(
            model, causal_batch(chosen) if causal else denoising_batch(chosen, marks, f"{seed}-{k}")
        )

    rows = added if objective == "ul2r" else {}
    throughout(lambda scratch: continued(model, loss_of, len(steps), rows, how, scratch, **MADE_UP))
    return model


def bits(sizes: Sizes, model: Transformer, pairs: list[Pair]) -> list[float]:
    """−bits per byte of each target, read in order after its source."""
    words, found = materials(sizes)[0], []
    with torch.no_grad():
        for pair in pairs:
            batch = replace(prefix_batch([pair]), prefixes=None)
            size = sum(len(words.id_to_token(i)) for i in pair.target)
            found.append(-float(token_loss(model, batch)[0]) / math.log(2) / size)
    return found


def filled(sizes: Sizes, seed: int, way: str) -> list[float]:
    """−bits per byte of what was in each gap, filled in one of four ways."""
    _, marks, _, _, gaps = materials(sizes)
    (tag, mark), pairs = (marks.tags["X"], marks.sentinels[0]), []
    for gap, other in zip(gaps, gaps[1:] + gaps[:1], strict=True):
        source = {
            "after": gap.before,
            "rest first": gap.behind + gap.before,
            "denoised": [tag, mark, *gap.behind, mark, *gap.before],
            "exchanged": [tag, mark, *other.behind, mark, *gap.before],
        }[way]
        pairs.append(Pair(source, gap.inside))
    objective = "ul2r" if way in ("denoised", "exchanged") else "causal"
    return bits(sizes, taught(sizes, seed, objective), pairs)


def left_to_right(sizes: Sizes, seed: int, objective: str) -> float:
    """Bits per byte of the held-out texts without a gap and without a mark."""
    whole = [gap.before + gap.inside + gap.behind for gap in materials(sizes)[4]]
    scores = bits(sizes, taught(sizes, seed, objective), [Pair(x[:1], x[1:]) for x in whole])
    return round(-sum(scores) / len(scores), 4)


def main(sizes: Sizes = Sizes(), seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    told = {
        "none": [left_to_right(sizes, seed, "none") for seed in seeds],
        "causal": [],
        "ul2r": [],
    }

    def arm(way: str, objective: str) -> Callable[[int], list[float]]:
        def run(seed: int) -> list[float]:
            told[objective].append(left_to_right(sizes, seed, objective))
            return filled(sizes, seed, way)

        return run

    return prove(
        "UL2R",
        "after a tenth of its training a causal decoder fills gaps better than it could go on",
        {
            "ul2r": arm("denoised", "ul2r"),
            "causal": arm("after", "causal"),
            "causal, rest first": lambda seed: filled(sizes, seed, "rest first"),
            "ul2r, rest exchanged": lambda seed: filled(sizes, seed, "exchanged"),
        },
        [("ul2r", way) for way in ("causal", "causal, rest first", "ul2r, rest exchanged")],
        seeds,
        sizes._asdict() | {"left_to_right": told},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
