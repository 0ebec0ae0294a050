"""Learning from one's own answers: GRPO, with a reward that a program can check.

A round: the policy answers P prompts G times each, every answer gets a reward r, and what counts is
how it did against the other answers to its prompt (Shao et al. 2024, §4.1; DeepSeek-R1 2025):

    A = (r − mean r) / std r                                    over the G answers
    −min(ρA, clip(ρ, 1 − ε, 1 + ε) A) + β·k3                    a token, ρ = π / π_when_drawn

No second network says what an answer was worth. The reward is a plain function: whether the sum is
right, whether the text ends politely; or a reward model (preference.py).

The answers are drawn inside the step, from the weights of that step and a generator seeded by
(seed, round), so a killed run continues to the same bits. A round whose answers serve several
steps is kept in `scratch` until the loop's checkpoint has passed it.

Where all answers to a prompt get the same reward there is nothing to learn from it; they are left
out of the pass, and count in the mean. Rounds without any signal change next to nothing (AdamW's
momentum and decay), and after `SILENT` of them in a row the run ends and says so: either the task
is solved, or the policy never once does it right and needs lessons first.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, stage
from onsil.lineage.spelling import write_atomically
from onsil.models.checkpoint import load, save
from onsil.models.heads import Head, load_head
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.turns import Template, mark_ids
from onsil.training.loop import digest_of, stopped, train
from onsil.training.plan import load_plan, rate_of
from onsil.training.policy import (
    NoScores,
    answer_logps,
    divergence,
    k3,
    sampled,
    template_in,
)
from onsil.training.preference import (
    POLICY_RATE,
    Ranking,
    mean,
    reward_scores,
    told_rankings,
)
from onsil.training.pretraining import kept_curve
from onsil.training.samplers import Ids, Pair
from onsil.training.supervised import keep_asking

SILENT = 20  # rounds in a row without a difference in reward
SMALL = 1e-6

# (numbers of the prompts, an answer to each) → a reward for each
RewardOf = Callable[[list[int], list[Ids]], list[float]]


@dataclass(frozen=True)
class GRPO:
    """The numbers of a run: rounds, prompts a round, answers a prompt, steps on each round's
    answers, tokens an answer may have, the peak rate, ε and β (0: no reference is needed)."""

    rounds: int
    prompts: int = 8
    group: int = 8
    updates: int = 2
    limit: int = 64
    rate: float = 5e-5
    clip: float = 0.2
    beta: float = 0.0
    seed: int = 0

    def seed_of(self, number: int) -> int:
        """What a round is drawn with."""
        return random.Random(f"{self.seed}-{number}").getrandbits(63)

    def chosen(self, number: int, prompts: int) -> list[int]:
        """Which of so many prompts a round asks: every pass over them in a new order."""
        found = []
        for place in range(number * self.prompts, (number + 1) * self.prompts):
            epoch, at = divmod(place, prompts)
            order = list(range(prompts))
            random.Random(f"{self.seed}-{epoch}-order").shuffle(order)
            found.append(order[at])
        return found


class Round(NamedTuple):
    """What was seen in a round: the last of its steps, the mean reward, the share of prompts whose
    answers differed in reward, and the mean tokens of an answer."""

    step: int
    reward: float
    signal: float
    tokens: float


class Drawn(NamedTuple):
    """The answers of a round that say something, their advantages and the log-probabilities they
    were drawn with; `total` counts the others too."""

    pairs: list[Pair]
    advantages: list[float]
    before: list[Tensor]
    total: int
    seen: Round


def advantages(rewards_PG: Tensor) -> Tensor:
    """(r − mean) / std within each group, P×G; exactly 0 where a group agrees."""
    ahead = rewards_PG - rewards_PG.mean(1, keepdim=True)
    same = rewards_PG.amax(1, keepdim=True) == rewards_PG.amin(1, keepdim=True)
    spread = rewards_PG.std(1, keepdim=True)
    return (ahead / (spread + SMALL)).masked_fill(same, 0.0)


def policy_loss(
    logps: Sequence[Tensor],
    before: Sequence[Tensor],
    advantage: Sequence[float],
    clip: float,
    reference: Sequence[Tensor] | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Σ over answers of the mean over their tokens of −min(ρA, clip(ρ)A) + β·k3."""
    total = torch.zeros(())
    for n, (now_T, then_T, a) in enumerate(zip(logps, before, advantage, strict=True)):
        ratio_T = (now_T - then_T).exp()
        loss_T = -torch.minimum(ratio_T * a, ratio_T.clamp(1 - clip, 1 + clip) * a)
        if reference is not None:
            loss_T = loss_T + beta * k3(now_T, reference[n])
        total = total + loss_T.mean()
    return total


# ── rounds ──────────────────────────────────────────────────────────────────────────────────────


class Rounds:
    """Draws a round when its first step comes, and finds it again after a crash between steps."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Ids],
        rewards_of: RewardOf,
        how: GRPO,
        end: int,
        scratch: Path,
    ):
        self.model, self.prompts, self.rewards_of = model, prompts, rewards_of
        self.how, self.end, self.scratch = how, end, scratch
        self.now: Drawn | None = None

    def at(self, step: int) -> Drawn:
        """The answers that a step learns from."""
        number, within = divmod(step, self.how.updates)
        file = self.scratch / f"round{number}.json"
        if within == 0:
            self.now = self.drawn(number)
            told = self.now._replace(before=[logp_T.tolist() for logp_T in self.now.before])
            write_atomically(file, json.dumps(told))
            self.forget()
        elif self.now is None:
            pairs, weights, before, total, seen = json.loads(file.read_text())
            pairs, before = [Pair(*p) for p in pairs], [torch.tensor(row) for row in before]
            self.now = Drawn(pairs, weights, before, total, Round(*seen))
        return self.now

    @torch.no_grad()
    def drawn(self, number: int) -> Drawn:
        """A round under the weights of now. Answers whose group agrees are left out, unless β wants
        them or no others are left."""
        how = self.how
        asked = [p for p in how.chosen(number, len(self.prompts)) for _ in range(how.group)]
        draw = torch.Generator().manual_seed(how.seed_of(number))
        answers = sampled(self.model, [self.prompts[p] for p in asked], self.end, how.limit, draw)
        rewards_PG = torch.tensor(self.rewards_of(asked, answers)).reshape(-1, how.group)
        weights = advantages(rewards_PG).flatten().tolist()
        told = [i for i, weight in enumerate(weights) if weight or how.beta] or [0]
        pairs = [Pair(list(self.prompts[asked[i]]), answers[i]) for i in told]
        seen = Round(
            (number + 1) * how.updates,
            round(float(rewards_PG.mean()), 4),
            round(float((rewards_PG.amax(1) != rewards_PG.amin(1)).float().mean()), 4),
            round(sum(map(len, answers)) / len(answers), 2),
        )
        before = answer_logps(self.model, pairs)
        return Drawn(pairs, [weights[i] for i in told], before, len(answers), seen)

    def forget(self) -> None:
        """Delete rounds that the loop's last checkpoint has passed."""
        latest = self.scratch / "latest.json"
        step = json.loads(latest.read_text())["step"] if latest.exists() else 0
        for old in self.scratch.glob("round*.json"):
            if int(old.stem.removeprefix("round")) < step // self.how.updates:
                old.unlink()


def reinforced(
    model: Transformer,
    parameters: Mapping[str, Tensor],
    prompts: Sequence[Ids],
    rewards_of: RewardOf,
    how: GRPO,
    end: int,
    scratch: Path,
    reference: Transformer | None = None,
) -> Iterator[Round]:
    """Train `parameters` of the model (all, or its adapter's); a `Round` after each round's steps,
    all of them in `scratch`/curve.json.

    A run that was killed continues in the same `scratch` to the same bits, after its last
    checkpoint. Ends early after `SILENT` rounds in a row without a difference in reward.
    `reference` is what β holds on to. Raises OnsilError as `train` does, and when the policy has no
    scores to draw by.
    """
    assert how.beta == 0.0 or reference is not None, "β holds on to a reference"
    rounds = Rounds(model, prompts, rewards_of, how, end, scratch)

    def loss_of(k: int) -> tuple[Tensor, int]:
        try:
            drawn, held = rounds.at(k), None
        except NoScores as e:
            en, ko = "the model's scores are not finite", "모델의 점수가 유한하지 않습니다"
            raise stopped(k, names_of(k), en, ko) from e
        if reference is not None:
            with torch.no_grad():
                held = answer_logps(reference, drawn.pairs)
        logps = answer_logps(model, drawn.pairs)
        loss = policy_loss(logps, drawn.before, drawn.advantages, how.clip, held, how.beta)
        return loss, drawn.total

    def names_of(k: int) -> list[str]:
        asked = how.chosen(k // how.updates, len(prompts))
        return [f"prompt {p + 1}" for p in asked]

    curve, data = kept_curve(scratch), digest_of(prompts, how)
    steps = how.rounds * how.updates
    for step in train(parameters, loss_of, steps, how.rate, scratch, names_of=names_of, data=data):
        if step.number % how.updates:
            continue
        assert rounds.now is not None
        seen = rounds.now.seen
        curve.append(list(seen))
        write_atomically(scratch / "curve.json", json.dumps(curve))
        yield seen
        if is_silent(curve):
            return


def is_silent(curve: Sequence[Sequence[float]]) -> bool:
    """Whether the last `SILENT` rounds had nothing to tell."""
    return len(curve) >= SILENT and not any(row[2] for row in curve[-SILENT:])


# ── rewards ─────────────────────────────────────────────────────────────────────────────────────


def exactly(tokenizer, rankings: Sequence[Ranking], end: int) -> RewardOf:
    """1 for the best answer of a prompt's ranking, finished and spelt as it is; 0 for any other,
    one with a special token in it too."""

    def spelt(answer: Ids) -> str:
        return tokenizer.decode(answer[:-1], skip_special_tokens=False).strip()

    right = [spelt(r.answers[0]) for r in rankings]

    def rewards_of(asked: list[int], answers: list[Ids]) -> list[float]:
        said = [spelt(a) if a[-1] == end else None for a in answers]
        return [float(text == right[p]) for p, text in zip(asked, said, strict=True)]

    return rewards_of


def judged_by(stack: Transformer, head: Head, rankings: Sequence[Ranking]) -> RewardOf:
    """What a reward model says of an answer to the prompt of a ranking."""

    @torch.no_grad()
    def rewards_of(asked: list[int], answers: list[Ids]) -> list[float]:
        said = [Ranking(rankings[p].prompt, [a]) for p, a in zip(asked, answers, strict=True)]
        return [float(score_1) for score_1 in reward_scores(stack, head, said)]

    return rewards_of


def check_judge(judges: Template, writes: Template) -> None:
    """Raises OnsilError when the judge learnt to read another template than is written."""
    if judges == writes:
        return
    raise OnsilError(
        en=(
            f"The judge reads {judges.name!r}, the decoder writes {writes.name!r}.",
            "A score of text in a template that the judge has never read means nothing.",
            "Train the judge (train_reward) from the decoder that is to be tuned.",
        ),
        ko=(
            f"판정 모델의 템플릿은 {judges.name!r}, 디코더의 템플릿은 {writes.name!r}입니다.",
            "판정 모델이 읽어 본 적 없는 템플릿에 매긴 점수는 뜻이 없습니다.",
            "조정할 디코더에서 판정 모델을 학습해 주세요(train_reward).",
        ),
    )


def likeliest_reward(
    model: Transformer, prompts: Sequence[Ids], rewards_of: RewardOf, end: int, limit: int
) -> float | None:
    """Mean reward of the likeliest answers; None without a prompt."""
    found: list[float] = []
    for first in range(0, len(prompts), 64):
        some = prompts[first : first + 64]
        asked = list(range(first, first + len(some)))
        found += rewards_of(asked, sampled(model, some, end, limit, None))
    return mean(found)


# ── the stage ───────────────────────────────────────────────────────────────────────────────────


@stage(version=4)
def reinforce(
    *,
    decoder: Artifact,
    tokenizer: Artifact,
    lessons: Artifact,
    plan: Artifact,
    reward: Artifact | None = None,
    rounds: int = 200,
    beta: float = 0.0,
    out: Path,
    run: Run,
) -> dict:
    """The decoder tuned by GRPO on the prompts of the preferences, in its own template, what it
    takes to ask it (`load_chat`), curve.json and notes.json.

    The reward is 1 for exactly the chosen answer and 0 for any other, or, with `reward`, what a
    reward model (`train_reward`) says. notes: mean reward of the likeliest answers to held-out
    prompts before and after, the divergence from the start (`kl`, nats an answer), and whether the
    run ended early because rewards no longer differed (`silent`). Raises OnsilError when the
    reward model was trained in another template.
    """
    settings, words = load_plan(plan), load_tokenizer(tokenizer.path)
    torch.set_num_threads(settings.threads)
    template = template_in(decoder.path)
    if reward is not None:
        check_judge(template_in(reward.path), template)
    model, extra = load(decoder.path, settings.compute)
    start, _ = load(decoder.path, settings.compute)
    told, notes = told_rankings(words, template, lessons, model.shape.context)
    prompts = {split: [r.prompt for r in rankings] for split, rankings in told.items()}
    end = mark_ids(words, template)[template.stop]
    if reward is None:
        rewards = {split: exactly(words, rankings, end) for split, rankings in told.items()}
    else:
        stack, head = load_head(reward.path, settings.compute)
        rewards = {split: judged_by(stack, head, rankings) for split, rankings in told.items()}
    how = GRPO(
        rounds=rounds,
        limit=2 * max(len(r.answers[0]) for r in told["train"]),  # room to be wrong in
        rate=rate_of(settings, model.shape.width) * POLICY_RATE,
        beta=beta,
        seed=settings.seed,
    )
    held = (prompts["heldout"], rewards["heldout"], end, how.limit)
    notes["reward_before"] = likeliest_reward(start, *held)
    loop = reinforced(
        model,
        dict(model.named_parameters()),
        prompts["train"],
        rewards["train"],
        how,
        end,
        run.scratch,
        start if beta else None,
    )
    for seen in loop:
        number = seen.step // how.updates
        if number % 20 == 0 or number == rounds:
            run.say(f"강화 학습(GRPO) {number}/{rounds} · 보상(reward) {seen.reward:.3f}")
    curve = json.loads((run.scratch / "curve.json").read_text())
    notes |= {
        "rounds": len(curve),
        "silent": is_silent(curve),
        "reward_after": likeliest_reward(model, *held),
        "kl": divergence(model, start, prompts["heldout"], end),
    }
    save(model, out, run.ancestry, extra)
    keep_asking(template, tokenizer, out)
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    (out / "notes.json").write_text(json.dumps(notes, sort_keys=True) + "\n")
    return notes
