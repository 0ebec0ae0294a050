"""A planted preference: polite endings (존댓말) over plain ones (반말).

    python recipes/preference.py

Answers of a Korean chatbot corpus (songys/Chatbot_data, MIT) end politely; a rule writes each one
again with a plain ending (있어요 → 있어, 보세요 → 봐, 거예요 → 거야). Some prompts teach the base
to answer, in either style by lot, so that it starts undecided; others hold the preferences; the
rest is unseen. The two answers of a pair belong to two different prompts, so neither what they say
nor how long they are tells them apart.

Two proofs. A reward model puts unseen pairs in order, against one trained on shuffled orders and
against "the longer answer". DPO makes answers drawn for unseen prompts polite, with all weights
and with an adapter, against the start and against DPO on shuffled orders; what that costs on
ordinary text (film reviews, nsmc, CC0; some of them were lessons, others are unseen) is measured
beside it and kept with the row.
"""

import copy
import os
import random
import re
from collections.abc import Callable
from functools import cache, partial
from itertools import islice
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from proving import ROOT, learn, prove, rows_of

from onsil.models.adapters import adapter_parameters, add_lora
from onsil.models.checkpoint import load
from onsil.models.heads import new_head
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer, templates
from onsil.tokenizer.train import specials_of
from onsil.training.objectives import schedule, token_loss
from onsil.training.policy import answer_batch, answer_ids, asked_ids, sampled
from onsil.training.preference import (
    Ranking,
    implicit_rewards,
    pair_accuracy,
    ranking_logps,
    ranking_loss,
    reference_logps,
    reward_scores,
)
from onsil.training.pretraining import bits_per_byte
from onsil.training.samplers import Pair

# How a polite sentence ends, and what the plain one has there. The first that fits is taken.
PLAIN = (
    (r"거(?:예|에)요$", "거야"),
    (r"니(?:에|예)요$", "니야"),
    (r"이(?:에|예)요$", "이야"),
    (r"예요$", "야"),
    (r"하세요$", "해"),
    (r"보세요$", "봐"),
    (r"주세요$", "줘"),
    (r"마세요$", "마"),
    (r"오세요$", "와"),
    (r"가세요$", "가"),
    (r"내세요$", "내"),
    (r"지요$", "지"),
    (r"죠$", "지"),
    (r"합니다$", "해"),
    (r"됩니다$", "돼"),
    (r"봅니다$", "봐"),
    (r"랍니다$", "란다"),
    (r"입니다$", "이야"),
    (r"(?<=[네데까게해워와봐돼져려겨쳐켜줘아어여가나서러자])요$", ""),
)
POLITE = re.compile(r"(?:요|죠|니다|니까)$")
MYSELF = re.compile(r"(?:^|\s)(?:저|제)(?:는|도|를|가|랑|한테|에게|의)?(?:\s|$)")


def plain(answer: str) -> str | None:
    """The answer with plain endings; None where a sentence of it has none by these rules."""
    if MYSELF.search(answer):
        return None
    sentences = re.findall(r"[^.?!]+[.?!]*", answer)
    told = []
    for sentence in sentences:
        body = sentence.rstrip(".?! ")
        for ending, instead in PLAIN:
            new, hits = re.subn(ending, instead, body)
            if hits:
                told.append(new + sentence[len(body) :])
                break
        else:
            return None
    return "".join(told) or None


def is_polite(text: str) -> bool:
    """Whether a text ends politely."""
    return bool(POLITE.search(text.rstrip(" .?!~,\n")))


class Materials(NamedTuple):
    """Lessons to start from, preferences, unseen pairs, unseen prompts, ordinary text to learn on
    and to measure on (with its bytes)."""

    lessons: list[Pair]
    preferred: list[Ranking]
    unseen: list[Ranking]
    prompts: list[list[int]]
    texts: list[list[int]]
    ordinary: list[list[int]]
    size: int


class Sizes(NamedTuple):
    """What is run: lessons, preferences, unseen prompts, ordinary texts to learn and to measure on;
    tokens a step of lessons and of preferences, rates and β."""

    lessons: int = 2400
    preferred: int = 600
    unseen: int = 300
    texts: int = 600
    ordinary: int = 200
    tokens: int = 2048
    preferred_tokens: int = 1024
    start_epochs: int = 2
    start_rate: float = 1e-3
    judge_rate: float = 5e-4
    rate: float = 4e-5
    lora_rate: float = 3e-4
    beta: float = 0.2
    compute: str = "bf16"


@cache
def materials(sizes: Sizes) -> Materials:
    """The same for every seed: what is drawn anew is the start, the order and the answers."""
    words, draw = load_tokenizer(ROOT / "base"), random.Random("preference")
    asked = partial(asked_ids, words, templates.PLAIN)
    answered = partial(answer_ids, words, templates.PLAIN)
    by_prompt = {row["q"]: row["a"] for row in rows_of("instruct/chatbot-ko")}
    both = [(q, a, plain(a)) for q, a in by_prompt.items() if is_polite(a)]
    both = [(q, a, b) for q, a, b in both if b is not None and not is_polite(b)]
    draw.shuffle(both)
    cut = (sizes.lessons, sizes.lessons + sizes.preferred)
    first, second = both[: cut[0]], both[cut[0] : cut[1]]
    third = both[cut[1] : cut[1] + sizes.unseen]
    assert len(third) == sizes.unseen, f"{len(both)} answers can be said both ways"

    def rankings(rows) -> list[Ranking]:
        others = rows[1:] + rows[:1]  # what the other answer of a pair answers
        found = []
        for (q, a, b), (_, c, d) in zip(rows, others, strict=True):
            pair = (a, d) if draw.random() < 0.5 else (c, b)
            found.append(Ranking(asked(q), [answered(x) for x in pair]))
        return found

    lessons = [Pair(asked(q), answered(draw.choice((a, b)))) for q, a, b in first]
    files = islice(rows_of("text-ko/reviews-ko"), 400)
    reviews = [line for row in files for line in row["text"].split("\n")]
    reviews = [line for line in reviews if 20 < len(line) < 200]
    draw.shuffle(reviews)
    special = [specials_of(words).cls]  # stands before ordinary text as before a prompt
    held = reviews[: sizes.ordinary]
    texts = [special + answered(line) for line in reviews[sizes.ordinary :][: sizes.texts]]
    return Materials(
        lessons,
        rankings(second),
        rankings(third),
        [asked(q) for q, _, _ in third],
        texts,
        [special + answered(line) for line in held],
        sum(len(line.encode()) for line in held),
    )


@cache
def started(sizes: Sizes, seed: int) -> Transformer:
    """The base after lessons in both styles and ordinary text, side by side."""
    held = materials(sizes)
    model, _ = load(ROOT / "base" / "decoder", sizes.compute)
    mixed = [*held.lessons, *(Pair(ids[:1], ids[1:]) for ids in held.texts)]
    lengths = [len(p.source) + len(p.target) for p in mixed]
    steps = schedule(lengths, sizes.tokens, sizes.start_epochs, seed)

    def loss_of(k: int):
        return token_loss(model, answer_batch([mixed[i] for i in steps[k]]))

    learn(dict(model.named_parameters()), loss_of, len(steps), sizes.start_rate)
    return model


def shuffled(rankings: list[Ranking], seed: int) -> list[Ranking]:
    """The control: each order decided by a coin."""
    draw = random.Random(f"coin-{seed}")
    return [r if draw.random() < 0.5 else Ranking(r.prompt, r.answers[::-1]) for r in rankings]


def judged(sizes: Sizes, seed: int, rankings: list[Ranking]) -> list[float]:
    """Whether a reward model trained on some rankings, from the base, puts each unseen pair in
    order."""
    base, _ = load(ROOT / "base" / "decoder", sizes.compute)
    stack, head = new_head(base, "sequence", ("reward",), seed=seed)
    steps = schedule([r.size for r in rankings], sizes.preferred_tokens, 1, seed)
    parameters = dict(stack.named_parameters())
    parameters |= {f"head.{name}": p for name, p in head.named_parameters()}

    def loss_of(k: int):
        return ranking_loss(reward_scores(stack, head, [rankings[i] for i in steps[k]]))

    learn(parameters, loss_of, len(steps), sizes.judge_rate)
    with torch.no_grad():
        return pair_accuracy(reward_scores(stack, head, materials(sizes).unseen))


def longer(sizes: Sizes) -> list[float]:
    """The same of a judge that prefers whatever has more tokens."""
    unseen = materials(sizes).unseen
    return pair_accuracy([torch.tensor([float(len(a)) for a in r.answers]) for r in unseen])


def preferring(
    sizes: Sizes, seed: int, rankings: list[Ranking], adapter: bool = False
) -> Transformer:
    """The start after DPO on some rankings."""
    model = copy.deepcopy(started(sizes, seed))
    before = reference_logps(model, rankings, sizes.tokens)
    parameters, rate = dict(model.named_parameters()), sizes.rate
    if adapter:
        targets = (
            "attention.q",
            "attention.k",
            "attention.v",
            "attention.o",
            "mlp.gate",
            "mlp.up",
            "mlp.down",
        )
        add_lora(model, rank=8, alpha=16, targets=targets, seed=seed)
        parameters, rate = adapter_parameters(model), sizes.lora_rate
    steps = schedule([r.size for r in rankings], sizes.preferred_tokens, 1, seed)

    def loss_of(k: int):
        logps = ranking_logps(model, [rankings[i] for i in steps[k]])
        return ranking_loss(implicit_rewards(logps, [before[i] for i in steps[k]], sizes.beta))

    learn(parameters, loss_of, len(steps), rate)
    return model


def politeness(sizes: Sizes, seed: int, model: Transformer) -> list[float]:
    """For each unseen prompt whether an answer drawn from the model ends politely."""
    words, draw = load_tokenizer(ROOT / "base"), torch.Generator().manual_seed(seed)
    prompts, end = materials(sizes).prompts, specials_of(words).end
    answers = [
        answer
        for i in range(0, len(prompts), 100)
        for answer in sampled(model, prompts[i : i + 100], end, 40, draw)
    ]
    return [float(is_polite(words.decode(answer))) for answer in answers]


def ordinary_bits(sizes: Sizes, model: Transformer) -> float | None:
    """Bits per byte of ordinary text nobody trained on."""
    held = materials(sizes)
    return bits_per_byte(model, held.ordinary, held.size, 0)  # a mark stands before each


def prove_reward(sizes: Sizes, seeds: tuple[int, ...]) -> dict:
    told = materials(sizes).preferred
    return prove(
        "reward-model",
        "a reward model puts unseen pairs in the order of a planted preference (존댓말)",
        {
            "the longer answer": lambda seed: longer(sizes),
            "shuffled orders": lambda seed: judged(sizes, seed, shuffled(told, seed)),
            "reward model": lambda seed: judged(sizes, seed, told),
        },
        [("reward model", "shuffled orders"), ("reward model", "the longer answer")],
        seeds,
        sizes._asdict(),
    )


def prove_dpo(sizes: Sizes, seeds: tuple[int, ...]) -> dict:
    told, bits = materials(sizes).preferred, {}

    def arm(name: str, model_of) -> tuple[str, Callable[[int], list[float]]]:
        def run(seed: int) -> list[float]:
            model = model_of(seed)
            bits.setdefault(name, []).append(ordinary_bits(sizes, model))
            return politeness(sizes, seed, model)

        return name, run

    arms = (
        arm("start", lambda seed: started(sizes, seed)),
        arm("shuffled orders", lambda seed: preferring(sizes, seed, shuffled(told, seed))),
        arm("DPO", lambda seed: preferring(sizes, seed, told)),
        arm("DPO with LoRA", lambda seed: preferring(sizes, seed, told, adapter=True)),
    )
    return prove(
        "dpo-polite",
        "DPO on a planted preference makes drawn answers polite (존댓말)",
        dict(arms),
        [("DPO", "start"), ("DPO", "shuffled orders"), ("DPO with LoRA", "start")],
        seeds,
        sizes._asdict() | {"bits per byte of ordinary text": bits},
    )


def main(sizes: Sizes = Sizes(), seeds: tuple[int, ...] = (0, 1, 2)) -> list[dict]:
    return [prove_reward(sizes, seeds), prove_dpo(sizes, seeds)]


if __name__ == "__main__":
    main()
