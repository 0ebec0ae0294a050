"""Specialising a small model in chain of thought (Fu et al. 2023): tuned on a teacher's worked
solutions it solves problems it could not, and pays for it elsewhere.

The small model is a decoder over letters that has read film reviews, once for all seeds. The
problems are planted (월+3+5+2+6: which weekday is that?), and the teacher is the program that made
them. As in the paper the tuning mixes four formats,

    question → answer              question → steps, answer
    examples, question → answer    examples, question → steps, answer

and the share of worked solutions is what the arms differ in: all four formats, the two without
steps (the same problems, as many texts, as many passes), or no tuning at all. Judged on new
problems asked without examples: with steps where steps were learnt, else for the answer. What it
costs is noted with the row: nats per letter of reviews nobody read, before and after.

    python recipes/fu.py
"""

import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from proving import learn, prove, rows_of

from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.training.objectives import causal_batch, pieces_of, prefix_batch, schedule, token_loss
from onsil.training.samplers import Pair

ANSWER, STEPS = "답:", "풀이:"
DAYS = "월화수목금토일"
END, UNKNOWN, CONTEXT = 0, 1, 128


@dataclass(frozen=True)
class Sizes:
    """`problems` are learnt from, each in two texts; `shots`: worked examples in context."""

    problems: int = 1_000
    items: int = 400
    passes: int = 16
    shots: int = 1
    rate: float = 1e-3
    batch: int = 32
    reviews: int = 3_000
    width: int = 96
    depth: int = 2
    compute: str = "fp32"


class Problem(NamedTuple):
    question: str
    steps: str
    answer: str


def problem(first: int, later: Sequence[int]) -> Problem:
    """A weekday, and days that pass; the steps are the weekdays on the way."""
    names = [DAYS[total % 7] for total in accumulate((first, *later))]
    return Problem("+".join((names[0], *map(str, later))), ",".join(names), names[-1])


def problems(number: int, seed: str, taken: frozenset[Problem] = frozenset()) -> list[Problem]:
    """Problems of four numbers without repeats, none of them taken."""
    draw, found = random.Random(seed), {}
    while len(found) < number:
        made = problem(draw.randrange(7), [draw.randrange(1, 7) for _ in range(4)])
        if made not in taken:
            found[made] = None
    return list(found)


def zero_shot(asked: Problem, steps: bool) -> tuple[str, str]:
    """(prompt, what is to be written)."""
    if steps:
        return f"{asked.question} {STEPS}", f"{asked.steps} {ANSWER}{asked.answer}"
    return f"{asked.question} {ANSWER}", asked.answer


def in_context(shown: list[Problem], asked: Problem, steps: bool) -> tuple[str, str]:
    """Examples of the same format before the prompt."""
    examples = ["".join(zero_shot(example, steps)) for example in shown]
    prompt, said = zero_shot(asked, steps)
    return "\n".join([*examples, prompt]), said


Texts = list[tuple[str, str]]


def formats_of(known: list[Problem], shots: int, worked: bool, seed: int) -> list[Texts]:
    """Two texts a problem, half of them with examples, by format: with steps and without when
    `worked`, else without twice."""
    draw = random.Random(f"{seed}-texts")
    found: dict[tuple[bool, bool], Texts] = {}
    for asked in known:
        for steps in (False, worked):
            shown = draw.sample(known, shots) if draw.random() < 0.5 else []
            told = in_context(shown, asked, steps)
            found.setdefault((bool(shown), steps), []).append(told)
    return list(found.values())


class Letters:
    """The letters of a text and those of the problems, as ids; END closes, others are UNKNOWN."""

    def __init__(self, texts: list[str], most: int = 800):
        counts = Counter("".join(texts))
        own = sorted(set("0123456789+, \n" + DAYS + ANSWER + STEPS))
        known = [*own, *sorted(sorted(counts), key=lambda letter: -counts[letter])]
        self.id = {letter: 2 + n for n, letter in enumerate(list(dict.fromkeys(known))[:most])}

    def __len__(self) -> int:
        return 2 + len(self.id)

    def __call__(self, text: str) -> list[int]:
        return [self.id.get(letter, UNKNOWN) for letter in text]


def pair_of(words: Letters, prompt: str, said: str) -> Pair:
    return Pair(words(prompt), [*words(said), END])


def reader(words: Letters, texts: list[str], sizes: Sizes) -> Transformer:
    """The small model before: it has read the texts once."""
    pieces = pieces_of([words(text) for text in texts], CONTEXT, END)
    steps = schedule([len(piece) for piece in pieces], 2_048, 1, 1_000)
    shape = decoder_shape(len(words), sizes.width, sizes.depth, CONTEXT)
    model = Transformer(shape, sizes.compute).initialise(1_000)

    def loss_of(k: int):
        return token_loss(model, causal_batch([pieces[i] for i in steps[k]]))

    learn(dict(model.named_parameters()), loss_of, len(steps), 2 * sizes.rate)
    return model


def tune(model: Transformer, words: Letters, formats: list[Texts], sizes: Sizes, seed: int) -> None:
    """Each step sees texts of every format, and every target counts the same: in steps of one
    format the two letters of a bare answer would move the model as much as a worked solution. Only
    what is to be written is a target, and the prompt is read in order, as the model has learned."""
    each, steps = sizes.batch // len(formats), []
    for turn in range(sizes.passes):
        draw = random.Random(f"{seed}-{turn}")
        orders = [draw.sample(texts, len(texts)) for texts in formats]
        for i in range(0, min(map(len, orders)), each):
            steps.append([order[i : i + each] for order in orders])

    def loss_of(k: int):
        for texts in steps[k]:
            batch = prefix_batch([pair_of(words, *text) for text in texts])
            yield token_loss(model, replace(batch, prefixes=None))

    learn(dict(model.named_parameters()), loss_of, len(steps), sizes.rate)


@torch.no_grad()
def right(model: Transformer, words: Letters, items: list[Problem], steps: bool) -> list[float]:
    """Whether greedy writing gives every token of the solution, the end included: each is the
    likeliest after the right ones before it."""
    scores = []
    for asked in items:
        pair = pair_of(words, *zero_shot(asked, steps))
        hidden = model.encode(torch.tensor([[*pair.source, *pair.target[:-1]]]))[0]
        told = model.logits(hidden[len(pair.source) - 1 :]).argmax(-1)
        scores.append(float(told.tolist() == pair.target))
    return scores


def reviews(name: str, many: int) -> list[str]:
    """Film reviews: Korean that has nothing to do with sums."""
    return [row["document"] for row in islice(rows_of(f"nsmc/{name}"), many)]


@torch.no_grad()
def general_loss(model: Transformer, words: Letters, texts: list[str]) -> float:
    """Nats per letter."""
    pieces = pieces_of([words(text) for text in texts], CONTEXT, END)
    total, targets = token_loss(model, causal_batch(pieces))
    return round(float(total) / targets, 4)


def arms_of(
    sizes: Sizes, texts: list[str], unread: list[str], costs: dict[str, list[float]]
) -> dict[str, Callable[[int], list[float]]]:
    """Arm → seed → scores; every run notes its loss on `unread` texts in `costs`."""
    words, test = Letters(texts), problems(sizes.items, "test")
    before = reader(words, texts, sizes)

    def run(name: str, worked: bool, tuning: bool) -> Callable[[int], list[float]]:
        def arm(seed: int) -> list[float]:
            model = copy.deepcopy(before)
            if tuning:
                known = problems(sizes.problems, f"{seed}", frozenset(test))
                formats = formats_of(known, sizes.shots, worked, seed)
                tune(model, words, formats, sizes, seed)
            costs.setdefault(name, []).append(general_loss(model, words, unread))
            return right(model, words, test, worked)

        return arm

    return {
        "specialised": run("specialised", True, True),
        "answers alone": run("answers alone", False, True),
        "before": run("before", False, False),
    }


def main(seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    torch.set_num_threads(1)
    sizes, costs = Sizes(), {}
    texts, unread = reviews("train", sizes.reviews), reviews("dev", 300)
    settings = asdict(sizes) | {"data": "planted weekdays; nsmc before, and for the cost"}
    settings["nats per letter of reviews, by seed"] = costs
    return prove(
        "fu",
        "tuned on worked solutions in four formats, a small decoder solves planted problems that "
        "it could not, and that answers alone do not teach it",
        arms_of(sizes, texts, unread, costs),
        [("specialised", "before"), ("specialised", "answers alone")],
        seeds,
        settings,
    )


if __name__ == "__main__":
    main()
