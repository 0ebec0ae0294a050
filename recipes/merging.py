"""Two skills tuned apart from one base, in one model without training: does the pair keep both?

    python recipes/merging.py

The base is the decoder that comes with onsil. One tuning learns where a Korean line was written
(statutes, manuals of software, film reviews), the other whether an English line is from a novel or
a textbook; each reads chats of its own skill only, under a system text that names it. The two are
merged by their average, by task arithmetic and along the arc (slerp). A skill is the share of
lines, never trained on, for which the right answer is the likeliest; 240 of each, balanced, the
same for every arm.

"Keeps both" means, of the way that was chosen: on either skill less than MARGIN, one line in ten,
below the model that was tuned on it alone, and above the base and the mean with a stranger. That is
a model of the same shape that learnt the second skill from noise. Further arms are the other ways,
and each specialist at the other's skill. Of every arm, what it says of an answer on average over
the lines to choose by is taken off (calibration, Zhao et al. 2021): in two runs without that, on
other lines, the claim did not hold. A merged model still tells the lines apart, but leans to one of
its answers, by a draw of the seed (docs/log.md). The way and how much of each model it takes are
chosen on other lines and other seeds (`python recipes/merging.py choose`).
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from lora import Pairs, base, split, taught
from proving import prove, rows_of

from onsil.models.merging import average, slerp, task_arithmetic
from onsil.models.transformer import Transformer
from onsil.tokenizer.templates import ONSIL
from onsil.tokenizer.turns import Message, render
from onsil.training.supervised import Tuning, chat_batch, learner

JUDGED, DEV = 240, 120  # lines of a skill to judge and to choose by
SETS = 4  # of so many lines: the first three were judged or chosen by in earlier runs
DEV_SEEDS, SEEDS = (100, 101), (20, 21, 22)
LINES = 2_500  # of each source
MARGIN = 0.1
WAYS = ("average", "task arithmetic", "slerp")
WAY = "task arithmetic"
AMOUNTS: dict[str, Any] = {"average": (0.5, 0.5), "task arithmetic": (0.7, 0.7), "slerp": 0.5}
TRIED: dict[str, tuple] = {
    "average": ((0.5, 0.5),),
    "task arithmetic": ((0.7, 0.7), (1.0, 1.0)),
    "slerp": (0.5,),
}
FULL = Tuning(epochs=2, rate=3e-4, batch_tokens=1024, method="full")
FROM_NOISE = replace(FULL, epochs=6, rate=2e-3)  # of who knows no words yet


@dataclass(frozen=True, eq=False)
class Skill:
    """What is asked (`system`), and the word for each file that a line may be from; lines of so
    many characters, so many of one text; learnt from so many chats."""

    name: str
    system: str
    answers: dict[str, str]
    fits: range
    per_text: int
    chats: int

    def chat(self, text: str, answer: str) -> list[Message]:
        said = Message("assistant", self.answers[answer])
        return [Message("system", self.system), Message("user", text), said]


SOURCES = Skill(
    "sources",
    "글의 출처",
    {"text-ko/law-ko": "법령", "text-ko/tech-ko": "기술", "text-ko/reviews-ko": "영화"},
    range(15, 81),
    per_text=6,
    chats=600,
)
BOOKS = Skill(
    "books",
    "책의 종류",
    {"text-en/novels-en": "소설", "text-en/textbooks-en": "교과서"},
    range(30, 71),
    per_text=200,
    chats=300,
)
SKILLS = (SOURCES, BOOKS)


def lines(skill: Skill) -> dict[str, list[str]]:
    """Lines of each source, in the file's order, each once."""
    found: dict[str, list[str]] = {}
    for name in skill.answers:
        some: dict[str, None] = {}
        for number, row in enumerate(rows_of(name)):
            told = [line.strip() for line in row["text"].split("\n")]
            fit = [line for line in told if len(line) in skill.fits]
            drawn = random.Random(f"{name} {number}").sample(fit, min(skill.per_text, len(fit)))
            some |= dict.fromkeys(drawn)
            if len(some) >= LINES:
                break
        found[name] = list(some)
    return found


@cache
def parts(skill: Skill) -> tuple[Pairs, Pairs, Pairs]:
    """To train on, to choose by, to judge by; the last two balanced. What earlier runs judged
    or chose by is not judged again."""
    many = len(skill.answers)
    each = JUDGED // many
    known, dev, held = split(lines(skill), SETS * each, DEV // many)
    ends = range(SETS * each, len(held) + 1, SETS * each)
    return known, dev, [pair for end in ends for pair in held[end - each : end]]


@torch.no_grad()
def scores(model: Transformer, words: Any, skill: Skill, pairs: Pairs) -> torch.Tensor:
    """Log probability of each answer, stop included: N × answers."""
    rows = []
    for start in range(0, len(pairs), 16):
        told = [
            render(words, ONSIL, skill.chat(text, answer))
            for text, _ in pairs[start : start + 16]
            for answer in skill.answers
        ]
        batch = chat_batch(told)
        targets = cast(torch.Tensor, batch.targets)[0]
        spots = (targets >= 0).nonzero()[:, 0]
        hidden = model.encode(batch.ids, lengths=batch.lengths)[0, spots]
        likely = model.logits(hidden).log_softmax(-1).gather(1, targets[spots, None])[:, 0]
        sums = [part.sum() for part in likely.split([sum(c.said) for c in told])]
        rows.append(torch.stack(sums).view(-1, len(skill.answers)))
    return torch.cat(rows)


def right(model: Transformer, skill: Skill, judged: Pairs) -> list[float]:
    """Which lines the model gets right, calibrated on the lines to choose by."""
    words = base()[1]
    usual = scores(model, words, skill, parts(skill)[1]).mean(0)
    told = scores(model, words, skill, judged) - usual
    wanted = torch.tensor([list(skill.answers).index(answer) for _, answer in judged])
    return (told.argmax(1) == wanted).float().tolist()


@cache
def specialist(skill: Skill, seed: int, stranger: bool = False) -> Transformer:
    """A model tuned on one skill alone, from the base, or a stranger to it from noise."""
    model, words = base()
    tuning = replace(FROM_NOISE if stranger else FULL, seed=seed)
    if stranger:
        model = Transformer(model.shape, "bf16").initialise(1_000 + seed)
    known = parts(skill)[0]
    some = random.Random(seed).sample(known, min(skill.chats, len(known)))
    chats = [render(words, ONSIL, skill.chat(*pair)) for pair in some]
    taught(learner(model, tuning), chats, tuning)
    return model.eval()


def merged(way: str, seed: int, amounts: Any) -> Transformer:
    """The two specialists of a seed in one model."""
    a, b = (specialist(skill, seed) for skill in SKILLS)
    if way == "average":
        return average([a, b], amounts)
    if way == "slerp":
        return slerp(a, b, amounts)
    return task_arithmetic(base()[0], [a, b], amounts)


def choose(seeds: Sequence[int] = DEV_SEEDS) -> None:
    """What each amount loses against the specialists, on the lines to choose by, in the mean of the
    seeds; what was best stands in WAY and AMOUNTS."""

    def share(model: Transformer, skill: Skill) -> float:
        told = right(model, skill, parts(skill)[1])
        return sum(told) / len(told)

    alone = {(skill, s): share(specialist(skill, s), skill) for skill in SKILLS for s in seeds}
    for way in WAYS:
        for amounts in TRIED[way]:
            lost = {skill.name: 0.0 for skill in SKILLS}
            for seed in seeds:
                made = merged(way, seed, amounts)
                for skill in SKILLS:
                    lost[skill.name] += (alone[skill, seed] - share(made, skill)) / len(seeds)
            print(way, amounts, "loses", {k: round(v, 3) for k, v in lost.items()}, flush=True)


def main(seeds: Sequence[int] = SEEDS) -> dict:
    torch.set_num_threads(1)
    models: dict[str, Callable[[int], Transformer]] = {
        "base": lambda seed: base()[0],
        **{f"{skill.name} alone": lambda seed, s=skill: specialist(s, seed) for skill in SKILLS},
        **{way: lambda seed, w=way: merged(w, seed, AMOUNTS[w]) for way in WAYS},
        "average with a stranger": lambda seed: average(
            [specialist(SOURCES, seed), specialist(BOOKS, seed, True)]
        ),
    }

    @cache
    def told(name: str, skill: Skill, seed: int) -> list[float]:
        return right(models[name](seed), skill, parts(skill)[2])

    arms: dict[str, Callable[[int], list[float]]] = {}
    pairs: list[tuple[str, str]] = []
    for skill in SKILLS:
        own, at = f"{skill.name} alone", f"at {skill.name}"
        for name in models:
            arms[f"{name}, {at}"] = lambda seed, n=name, s=skill: told(n, s, seed)
        less = f"{own}, {at}, less {MARGIN}"
        arms[less] = lambda seed, n=own, s=skill: [x - MARGIN for x in told(n, s, seed)]
        others = (less, f"base, {at}", f"average with a stranger, {at}")
        pairs += [(f"{WAY}, {at}", other) for other in others]
    arms["the stranger, at books"] = lambda seed: right(
        specialist(BOOKS, seed, True), BOOKS, parts(BOOKS)[2]
    )
    return prove(
        "merging",
        f"a merged pair keeps both skills, but for less than {MARGIN} of either",
        arms,
        pairs,
        seeds,
        {"data": "lines of text-ko, 3 sources, and of text-en, 2", "margin": MARGIN, "way": WAY}
        | {"amounts": AMOUNTS, "chats": {skill.name: skill.chats for skill in SKILLS}}
        | {"epochs": FULL.epochs, "rate": FULL.rate, "stranger_epochs": FROM_NOISE.epochs},
    )


if __name__ == "__main__":
    choose() if sys.argv[1:] == ["choose"] else main()
