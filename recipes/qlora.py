"""QLoRA on the task of recipes/lora.py: an adapter learns beside a base of four bits a weight.

    python recipes/qlora.py

Every matrix of the blocks is packed (nf4, magnitudes in a byte too, 0.52 bytes a weight); the same
adapter and the same chats as LoRA's. Two things are claimed: it beats the packed base, and it loses
less than five points to LoRA on the whole base, a third of what LoRA's own seeds differ among
themselves. That difference, and the rate of each, are from other sentences and seeds (`python
recipes/qlora.py choose`): the best of three rates by the mean of three seeds. What was learnt
beside the rounded base is then merged into the base as it was: another model, with its own score.
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from lora import (
    DEV_SEED,
    EACH,
    TRAIN,
    TUNINGS,
    Pairs,
    base,
    chat,
    right,
    scores,
    sentences,
    split,
    taught,
    tuned,
)
from proving import prove

from onsil.models.adapters import merge
from onsil.models.quantization import Levels, bytes_per_weight, matrices, quantize, restore
from onsil.tokenizer.templates import ONSIL
from onsil.tokenizer.turns import render
from onsil.training.supervised import Tuning, learner

TUNING = TUNINGS["LoRA"]
RATES, RATES_TRIED = {"LoRA": 3e-3, "QLoRA": 3e-3}, (1e-3, 3e-3, 1e-2)
MARGIN = 0.05
SEEDS = tuple(range(10, 16))
FRESH = 250  # sentences of each kind to judge by, none of them in lora.py's judged or dev


def parts() -> tuple[Pairs, Pairs, Pairs]:
    """To train on, to choose by (those of lora.py), and to judge by (neither of its two)."""
    found = sentences()
    known, rest, _ = split(found, EACH + EACH // 2, FRESH)
    return known, split(found, EACH, EACH // 2)[1], rest


def packed(judged: Pairs, levels: Levels = "nf4") -> list[float]:
    """Which sentences the packed base gets right, nothing learnt."""
    model, words = base()
    quantize(model, levels, double=True)
    return right(scores(model, words, ONSIL, [text for text, _ in judged]), judged)


def beside_and_merged(
    tuning: Tuning, known: Pairs, judged: Pairs, levels: Levels = "nf4"
) -> tuple[list[float], list[float]]:
    """Right answers with the adapter beside the packed base, and merged into the base as it was."""
    model, words = base()
    quantize(model, levels, double=True)
    learnt = learner(model, tuning)
    some = random.Random(tuning.seed).sample(known, min(TRAIN, len(known)))
    taught(learnt, [render(words, ONSIL, chat(*pair)) for pair in some], tuning)
    texts = [text for text, _ in judged]
    beside = right(scores(model, words, ONSIL, texts), judged)
    restore(model, base()[0])
    merge(model)
    return beside, right(scores(model, words, ONSIL, texts), judged)


def choose(seeds: Sequence[int] = (DEV_SEED, DEV_SEED + 1, DEV_SEED + 2)) -> None:
    """Try the rates for both; and how far apart LoRA's seeds are at its best."""
    known, dev, _ = parts()

    def share(name: str, rate: float, seed: int) -> float:
        tuning = replace(TUNING, rate=rate, seed=seed)
        if name == "LoRA":
            told = tuned(tuning, known, dev)
        else:
            told = beside_and_merged(tuning, known, dev)[0]
        return sum(told) / len(told)

    for name in RATES:
        found = {rate: [share(name, rate, seed) for seed in seeds] for rate in RATES_TRIED}
        best = max(found, key=lambda rate: sum(found[rate]))
        spread = max(found[best]) - min(found[best])
        print(name, found, "best:", best, "spread:", round(spread, 4), flush=True)


def main(seeds: Sequence[int] = SEEDS) -> dict:
    torch.set_num_threads(1)
    known, _, judged = parts()

    @cache
    def whole(seed: int) -> list[float]:
        return tuned(replace(TUNING, rate=RATES["LoRA"], seed=seed), known, judged)

    @cache
    def both(seed: int, levels: Levels) -> tuple[list[float], list[float]]:
        tuning = replace(TUNING, rate=RATES["QLoRA"], seed=seed)
        return beside_and_merged(tuning, known, judged, levels)

    less = f"LoRA less {MARGIN}"
    arms: dict[str, Callable[[int], list[float]]] = {
        "packed base": lambda seed: packed(judged),
        "LoRA": whole,
        less: lambda seed: [score - MARGIN for score in whole(seed)],
        "QLoRA": lambda seed: both(seed, "nf4")[0],
        "QLoRA, merged": lambda seed: both(seed, "nf4")[1],
        "QLoRA int4": lambda seed: both(seed, "int4")[0],
    }
    model, _ = base()
    quantize(model, "nf4", double=True)
    return prove(
        "qlora",
        "beside four bits a weight an adapter learns what it learns beside thirty-two",
        arms,
        [("QLoRA", "packed base"), ("QLoRA", less)],
        seeds,
        {"data": "3i4K, 4 kinds", "chats": TRAIN, "rates": RATES, "rank": TUNING.rank}
        | {"bytes_per_weight": round(bytes_per_weight(matrices(model)), 4), "margin": MARGIN},
    )


if __name__ == "__main__":
    choose() if sys.argv[1:] == ["choose"] else main()
