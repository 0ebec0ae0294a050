"""A reward that a program checks: Korean numerals read out as digits, learned by trying (GRPO).

    python recipes/verifiable_reward.py

삼천이백오 is 3205: a rule can say whether an answer is right, and nobody has to write the right one
down. A small decoder first sees a few numerals with their digits, enough to be right now and then;
after that it only tries, and is told right or wrong. Judged by the likeliest answer to numerals it
has never met, against: the start; the same number of further steps on the few lessons; and the same
trying with rewards dealt out by lot.
"""

import copy
import random
from functools import cache
from typing import NamedTuple

from proving import learn, prove, throughout

from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.training.objectives import schedule, token_loss
from onsil.training.online import GRPO, reinforced
from onsil.training.policy import answer_batch, sampled
from onsil.training.samplers import Ids, Pair

DIGITS, UNITS = "일이삼사오육칠팔구", ("", "십", "백", "천")
PAD, END, BEGIN, ASK = range(4)
LETTERS = {letter: 4 + i for i, letter in enumerate([*DIGITS, *UNITS[1:], *"0123456789"])}
LONGEST = 6  # tokens of an answer: four digits and the end, and one to be wrong with


class Sizes(NamedTuple):
    """What is run. `lessons` numerals with digits, `tried` without, `unseen` to judge by."""

    lessons: int = 100
    tried: int = 3000
    unseen: int = 400
    width: int = 64
    depth: int = 2
    start_steps: int = 60
    start_rate: float = 2e-3
    rounds: int = 200
    prompts: int = 16
    group: int = 8
    updates: int = 2
    rate: float = 2e-4


def spoken(number: int) -> str:
    """A number below 10,000 as it is read: 3205 → 삼천이백오. A one before a unit is silent."""
    said = ""
    for unit, digit in zip(reversed(UNITS), f"{number:04}", strict=True):
        if digit != "0":
            said += ("" if digit == "1" and unit else DIGITS[int(digit) - 1]) + unit
    return said


def prompt(number: int) -> Ids:
    return [BEGIN, *(LETTERS[letter] for letter in spoken(number)), ASK]


def answer(number: int) -> Ids:
    return [*(LETTERS[letter] for letter in str(number)), END]


@cache
def numbers(sizes: Sizes) -> tuple[list[int], list[int], list[int]]:
    """Lessons, what is tried, what is judged by; the same for every seed."""
    drawn = random.Random("numerals").sample(
        range(1, 10_000), sizes.lessons + sizes.tried + sizes.unseen
    )
    cut = sizes.lessons + sizes.tried
    return drawn[: sizes.lessons], drawn[sizes.lessons : cut], drawn[cut:]


def taught(sizes: Sizes, seed: int, model: Transformer, steps: int, rate: float) -> Transformer:
    """The model after so many steps on the lessons."""
    pairs = [Pair(prompt(n), answer(n)) for n in numbers(sizes)[0]]
    lengths = [len(p.source) + len(p.target) for p in pairs]
    order = schedule(lengths, 1024, steps, seed)[:steps]

    def loss_of(k: int):
        return token_loss(model, answer_batch([pairs[i] for i in order[k]]))

    learn(dict(model.named_parameters()), loss_of, steps, rate)
    return model


@cache
def started(sizes: Sizes, seed: int) -> Transformer:
    """A decoder that has seen the few lessons."""
    shape = decoder_shape(4 + len(LETTERS), sizes.width, sizes.depth, context=32)
    model = Transformer(shape).initialise(seed)
    return taught(sizes, seed, model, sizes.start_steps, sizes.start_rate)


def tried(sizes: Sizes, seed: int, by_lot: bool = False) -> Transformer:
    """The start after GRPO; `by_lot` deals the rewards of each round out anew, to any answer."""
    model, (_, asks, _) = copy.deepcopy(started(sizes, seed)), numbers(sizes)
    lot = random.Random(seed)

    def rewards_of(asked: list[int], answers: list[Ids]) -> list[float]:
        rewards = [float(a == answer(asks[p])) for p, a in zip(asked, answers, strict=True)]
        return lot.sample(rewards, len(rewards)) if by_lot else rewards

    how = GRPO(
        rounds=sizes.rounds,
        prompts=sizes.prompts,
        group=sizes.group,
        updates=sizes.updates,
        limit=LONGEST,
        rate=sizes.rate,
        seed=seed,
    )
    told = (model, dict(model.named_parameters()), [prompt(n) for n in asks], rewards_of, how, END)
    throughout(lambda scratch: reinforced(*told, scratch))
    return model


def right(sizes: Sizes, model: Transformer) -> list[float]:
    """Whether the likeliest answer to each unseen numeral is its number."""
    asks = numbers(sizes)[2]
    answers = sampled(model, [prompt(n) for n in asks], END, LONGEST, None)
    return [float(a == answer(n)) for n, a in zip(asks, answers, strict=True)]


def main(sizes: Sizes = Sizes(), seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    further = sizes.rounds * sizes.updates

    def longer(seed: int) -> list[float]:
        model = copy.deepcopy(started(sizes, seed))
        return right(sizes, taught(sizes, seed + 1000, model, further, sizes.rate))

    return prove(
        "grpo-numerals",
        "trying with a checked reward makes numerals right that few lessons left wrong",
        {
            "start": lambda seed: right(sizes, started(sizes, seed)),
            "more lessons": longer,
            "rewards by lot": lambda seed: right(sizes, tried(sizes, seed, by_lot=True)),
            "GRPO": lambda seed: right(sizes, tried(sizes, seed)),
        },
        [("GRPO", "start"), ("GRPO", "more lessons"), ("GRPO", "rewards by lot")],
        seeds,
        sizes._asdict() | {"judged by": "exact match, likeliest answer"},
    )


if __name__ == "__main__":
    main()
