"""Distilling step-by-step (Hsieh et al. 2023): a small model that also learns to say why answers
better than one that learns the answers alone, from the same labelled questions.

The questions are planted, so a program can be the teacher and its reasons are right:

    37원 6개 230원        222원 가능        (six at 37 won can be had for 230)

One encoder-decoder reads `predict: ` (one token) and the question and writes the answer, or reads
`explain: ` and the question and writes the reason; the loss is α · answers + (1 − α) · reasons,
each a mean over its own tokens. At the end both arms are asked with `predict: ` alone, so answering
costs the same. Both have the same questions; answers alone get twice the steps, so that both take
the same time, and each arm has the rate that was best for it on other questions. Budgets lie near
the price, half on each side; no price and number of the test were learnt from.

    python recipes/step_by_step.py
"""

import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from proving import learn, prove
from torch import Tensor

from onsil.models.encoder_decoder import EncoderDecoder, PairShape
from onsil.models.shape import Shape
from onsil.training.objectives import Written, written_batch, written_loss
from onsil.training.samplers import Pair

PAD, START, END = range(3)
PREDICT, EXPLAIN = "predict: ", "explain: "
SIGNS = (PREDICT, EXPLAIN, *"0123456789 원개가능부족")
ALONE_RATE = 5e-4  # best of 0.25e-3, 0.5e-3, 1e-3; at 2e-3 it learns nothing
ID = {sign: 3 + n for n, sign in enumerate(SIGNS)}


@dataclass(frozen=True)
class Sizes:
    """`near`: the most a budget lies off the price, as a share of it."""

    questions: int = 500
    items: int = 500
    steps: int = 500
    batch: int = 64
    width: int = 64
    depth: int = 2
    rate: float = 2e-3  # best of 0.5e-3, 1e-3, 2e-3
    alpha: float = 0.5
    near: float = 0.5
    compute: str = "fp32"


class Item(NamedTuple):
    question: str
    answer: str
    reason: str


def planted(number: int, near: float, draw: random.Random, pairs: list) -> list[Item]:
    """Questions about these (price, number) pairs, with the teacher's reasons."""
    found = []
    for _ in range(number):
        price, many = draw.choice(pairs)
        total, fits = price * many, draw.random() < 0.5
        off = max(1, round(total * near * draw.random()))
        budget = total + off if fits else max(1, total - off)
        answer = "가능" if fits else "부족"
        question = f"{price}원 {many}개 {budget}원"
        found.append(Item(question, answer, f"{total}원 {answer}"))
    return found


def split(sizes: Sizes, seed: int) -> tuple[list[Item], list[Item]]:
    """Questions to learn from and to be judged on; the test is the same for every seed."""
    pairs = [(price, many) for price in range(11, 100) for many in range(2, 10)]
    random.Random("pairs").shuffle(pairs)
    cut = len(pairs) * 4 // 5
    test = planted(sizes.items, sizes.near, random.Random("judged"), pairs[cut:])
    return planted(sizes.questions, sizes.near, random.Random(seed), pairs[:cut]), test


def coded(text: str) -> list[int]:
    return [ID[sign] for sign in text]


def batch_of(items: list[Item], task: str) -> Written:
    said = [item.answer if task == PREDICT else item.reason for item in items]
    pairs = [
        Pair([ID[task], *coded(item.question)], [*coded(text), END])
        for item, text in zip(items, said, strict=True)
    ]
    return written_batch(pairs, START, PAD)


def new_model(sizes: Sizes, seed: int) -> EncoderDecoder:
    shape = Shape(3 + len(SIGNS), sizes.width, sizes.depth, heads=4, context=64)
    pair = PairShape(replace(shape, causal=False), replace(shape, cross=True))
    return EncoderDecoder(pair, sizes.compute).initialise(seed)


def loss_of(model: EncoderDecoder, items: list[Item], alpha: float) -> tuple[Tensor, int]:
    """α · mean over the answers' tokens + (1 − α) · mean over the reasons'."""
    total = torch.zeros(())
    for share, task in ((alpha, PREDICT), (1 - alpha, EXPLAIN)):
        if share:
            loss, targets = written_loss(model, batch_of(items, task))
            total = total + share * loss / targets
    return total, 1


@torch.no_grad()
def right(model: EncoderDecoder, items: list[Item], task: str = PREDICT) -> list[float]:
    """Whether every token is the likeliest one: then, and only then, greedy writing gives it."""
    batch = batch_of(items, task)
    states = model.read(batch.sources, batch.keep_sources)
    hidden = model.decoder.encode(
        batch.inputs, source_BSD=states, source_keep_BS=batch.keep_sources
    )
    hit = (model.decoder.logits(hidden).argmax(-1) == batch.targets) | (batch.targets < 0)
    return hit.all(1).float().tolist()


def arm(sizes: Sizes, alpha: float) -> Callable[[int], list[float]]:
    def run(seed: int) -> list[float]:
        known, test = split(sizes, seed)
        model = new_model(sizes, seed)
        order = random.Random(f"{seed}-order")
        chosen = [order.sample(known, min(sizes.batch, len(known))) for _ in range(sizes.steps)]
        parameters = dict(model.named_parameters())
        learn(parameters, lambda k: loss_of(model, chosen[k], alpha), sizes.steps, sizes.rate)
        model.eval()
        explained = right(model, test, EXPLAIN)
        print(f"  reasons right: {sum(explained) / len(explained):.3f}", file=sys.stderr)
        return right(model, test)

    return run


def main(seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    torch.set_num_threads(1)
    sizes = Sizes()
    alone = replace(sizes, steps=2 * sizes.steps, rate=ALONE_RATE)
    return prove(
        "step_by_step",
        "answers and reasons together > answers alone, from the same labelled questions",
        {"step by step": arm(sizes, sizes.alpha), "answers alone": arm(alone, 1.0)},
        [("step by step", "answers alone")],
        seeds,
        asdict(sizes) | {"alone": asdict(alone), "data": "planted prices and budgets"},
    )


if __name__ == "__main__":
    main()
