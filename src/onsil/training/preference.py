"""From what people prefer to what a model writes: a reward model, and DPO.

Somebody has put answers to a prompt in order, the best first. Bradley and Terry (1952) say what
that order tells: of two answers the first wins with probability σ(r₁ − r₂). So the loss over a
ranking of K answers is the mean over its C(K, 2) pairs of

    −log σ(r_better − r_worse)

and rankings count alike, however long they are (Ouyang et al. 2022, §3.4: the pairs of one prompt
are one element of a batch, each answer is read once).

r can be a head on a decoder, judging at the last token: the reward model. Or it can be what the
policy itself says, against the model it started from (Rafailov et al. 2023, eq. 5–7):

    r(x, y) = β · (log π(y|x) − log π_ref(y|x))

With this r the same loss is DPO. π_ref never changes, so its log-probabilities are computed once
and the model itself need not stay in memory. With an adapter the same holds: it starts as no
change, so the reference is the base.

An answer's probability is the product over its tokens, its end included; the prompt does not count.
Left out: PPO, label smoothing and length normalisation (docs/preference.md), a shift of the reward
to mean zero (only differences are used here).
"""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, stage
from onsil.models.checkpoint import load, save
from onsil.models.heads import Head, apart, new_head, save_head
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.turns import Template, mark_ids
from onsil.training.finetuning import note_point
from onsil.training.loop import digest_of, report_progress, train
from onsil.training.objectives import schedule
from onsil.training.plan import load_plan, rate_of
from onsil.training.policy import answer_ids, answer_logps, asked_ids, divergence, template_in
from onsil.training.pretraining import kept_curve
from onsil.training.samplers import Ids, Pair
from onsil.training.supervised import keep_asking

REWARD, PREFERENCES, SPLITS = "reward", "preferences.jsonl", ("train", "heldout")
# Against the plan's rate for text: a judge learns as a reader does, a policy takes small steps
# from where it is (docs/preference.md has the sweep).
JUDGE_RATE, POLICY_RATE = 1 / 4, 1 / 40


class Ranking(NamedTuple):
    """A prompt and its answers, the best first; each answer is closed by its end token. `name` is
    where it stands."""

    prompt: Ids
    answers: list[Ids]
    name: str = ""

    @property
    def size(self) -> int:
        """Tokens that are read to score it."""
        return sum(len(self.prompt) + len(answer) for answer in self.answers)


# ── rewards and their loss ──────────────────────────────────────────────────────────────────────


def ranking_logps(model: Transformer, rankings: Sequence[Ranking]) -> list[Tensor]:
    """For each ranking the log-probability of every answer, K numbers in nats."""
    pairs = [Pair(r.prompt, answer) for r in rankings for answer in r.answers]
    sums_N = torch.stack([logp_T.sum() for logp_T in answer_logps(model, pairs)])
    return list(sums_N.split([len(r.answers) for r in rankings]))


@torch.no_grad()
def reference_logps(
    model: Transformer, rankings: Sequence[Ranking], batch_tokens: int = 4096
) -> list[Tensor]:
    """`ranking_logps` of every ranking, in batches and without gradients: what DPO keeps of the
    model it starts from."""
    found: list[Tensor] = [torch.empty(0)] * len(rankings)
    for chosen in schedule([r.size for r in rankings], batch_tokens, 1, 0) if rankings else []:
        logps = ranking_logps(model, [rankings[i] for i in chosen])
        for i, logp_K in zip(chosen, logps, strict=True):
            found[i] = logp_K
    return found


def ranking_loss(rewards: Sequence[Tensor]) -> tuple[Tensor, int]:
    """(Σ over rankings of the mean −log σ(r_better − r_worse) of their pairs, number of rankings),
    as the loop takes it. Each tensor holds the rewards of one ranking, the best answer's first."""
    total = torch.zeros(())
    for reward_K in rewards:
        i, j = torch.triu_indices(len(reward_K), len(reward_K), 1)
        total = total - F.logsigmoid(reward_K[i] - reward_K[j]).mean()
    return total, len(rewards)


def implicit_rewards(logps: Sequence[Tensor], reference: Sequence[Tensor], beta: float):
    """DPO's reward: β times what an answer has gained over the reference, for each ranking."""
    return [beta * (now - before) for now, before in zip(logps, reference, strict=True)]


def reward_scores(stack: Transformer, head: Head, rankings: Sequence[Ranking]) -> list[Tensor]:
    """What a reward model says of each ranking's answers, K numbers: the head's output at the last
    token of prompt and answer."""
    texts = [[*r.prompt, *answer] for r in rankings for answer in r.answers]
    lengths = [len(ids) for ids in texts]
    x_1TD = stack.encode(torch.tensor([[i for ids in texts for i in ids]]), lengths=lengths)
    scores_N = head(*apart(x_1TD, lengths))[:, 0]
    return list(scores_N.split([len(r.answers) for r in rankings]))


def pair_accuracy(rewards: Sequence[Tensor]) -> list[float]:
    """For each ranking the share of its pairs that are in order; a tie is half."""
    shares = []
    for reward_K in rewards:
        pairs = list(combinations(reward_K.tolist(), 2))
        shares.append(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    return shares


# ── preferences on disk ─────────────────────────────────────────────────────────────────────────


@stage(version=1)
def adopt_preferences(*, file: FileRef, out: Path, run: Run) -> dict:
    """preferences.jsonl out of a file with a preference a line: {"prompt", "chosen", "rejected",
    "split"}, the split train or heldout. Raises OnsilError with the number of a line that is none,
    and without a line to train on."""
    counts = dict.fromkeys(SPLITS, 0)
    lines = (run.source / file.path).read_text(encoding="utf-8").split("\n")
    with (out / PREFERENCES).open("w", encoding="utf-8") as f:
        for number, line in enumerate(lines, 1):
            if line.strip():
                row = _row(line, number)
                counts[row["split"]] += 1
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
    if not counts["train"]:
        raise _no_preference(f"{file.path} has no line to train on: {counts}")
    return counts


def _row(line: str, number: int) -> dict[str, str]:
    try:
        told = json.loads(line)
        row = {key: told[key] for key in ("prompt", "chosen", "rejected", "split")}
        if not all(isinstance(value, str) for value in row.values()):
            raise ValueError("all four must be text")
        if row["split"] not in SPLITS:
            raise ValueError(f"split {row['split']!r} is neither train nor heldout")
        if row["chosen"] == row["rejected"]:
            raise ValueError(f"both answers are {row['chosen']!r}")
        return row
    except (ValueError, KeyError, TypeError) as e:
        raise _no_preference(f"line {number}: {type(e).__name__}: {e}") from e


def rankings_of(
    tokenizer, template: Template, rows: Sequence[dict[str, str]], context: int
) -> list[Ranking]:
    """Every row as ids, in the template; one that is longer than the context is left out, never
    cut: an answer cut short would teach the model to stop there."""
    rankings = [
        Ranking(
            asked_ids(tokenizer, template, row["prompt"]),
            [answer_ids(tokenizer, template, row[key]) for key in ("chosen", "rejected")],
            row["name"],
        )
        for row in rows
    ]
    return [r for r in rankings if len(r.prompt) + max(map(len, r.answers)) <= context]


def _no_preference(why: str) -> OnsilError:
    return OnsilError(
        en=(
            f"These are no preferences: {why}.",
            "A preference is a prompt with two different answers, the better one chosen.",
            'Write {"prompt": …, "chosen": …, "rejected": …, "split": "train"}, one a line.',
        ),
        ko=(
            f"선호 자료로 쓸 수 없습니다: {why}.",
            "선호 자료는 질문 하나와 서로 다른 두 답이며, 나은 쪽이 chosen입니다.",
            '한 줄에 하나씩 {"prompt": …, "chosen": …, "rejected": …, "split": "train"}으로 적어 '
            "주세요.",
        ),
    )


# ── stages ──────────────────────────────────────────────────────────────────────────────────────


def told_rankings(
    tokenizer, template: Template, lessons: Artifact, context: int
) -> tuple[dict[str, list[Ranking]], dict]:
    """Rankings by split, and what the notes say of them. Raises OnsilError when no training row
    fits the context."""
    with (lessons / PREFERENCES).open(encoding="utf-8") as f:
        rows = [json.loads(line) | {"name": f"{PREFERENCES}:{n}"} for n, line in enumerate(f, 1)]
    told = {
        split: rankings_of(
            tokenizer, template, [row for row in rows if row["split"] == split], context
        )
        for split in SPLITS
    }
    if not told["train"]:
        raise _no_preference(f"no training row fits the {context} tokens of the model")
    left = len(rows) - sum(map(len, told.values()))
    return told, {"pairs": len(told["train"]), "heldout_pairs": len(told["heldout"]), "left": left}


def mean(values: Sequence[float]) -> float | None:
    """Rounded for the notes; None of nothing."""
    return round(sum(values) / len(values), 4) if values else None


@stage(version=3)
def train_reward(
    *,
    decoder: Artifact,
    tokenizer: Artifact,
    lessons: Artifact,
    plan: Artifact,
    out: Path,
    run: Run,
) -> dict:
    """A reward model (`load_head` reads it) that judges answers in the decoder's template, what it
    takes to ask it, curve.json, and notes.json with the share of held-out pairs it puts in order.
    One pass over the preferences: a second one overfits (Ouyang et al.)."""
    settings, words = load_plan(plan), load_tokenizer(tokenizer.path)
    torch.set_num_threads(settings.threads)
    template = template_in(decoder.path)
    stack, head = new_head(load(decoder.path, settings.compute)[0], "sequence", (REWARD,))
    told, notes = told_rankings(words, template, lessons, stack.shape.context)
    sizes = [r.size for r in told["train"]]
    steps = schedule(sizes, settings.batch_tokens, 1, settings.seed)

    def loss_of(k: int):
        return ranking_loss(reward_scores(stack, head, [told["train"][i] for i in steps[k]]))

    parameters = dict(stack.named_parameters())
    parameters |= {f"head.{name}": p for name, p in head.named_parameters()}
    curve, rate = kept_curve(run.scratch), rate_of(settings, stack.shape.width) * JUDGE_RATE
    loop = train(
        parameters,
        loss_of,
        len(steps),
        rate,
        run.scratch,
        names_of=lambda k: [told["train"][i].name for i in steps[k]],
        data=digest_of(lessons.digest, tokenizer.digest, plan.digest),
    )
    for step in report_progress(loop, len(steps), run.say, "보상 모델 학습", sum(sizes)):
        note_point(curve, step, len(steps), run.scratch)
    with torch.no_grad():
        scores = [reward_scores(stack, head, [r])[0] for r in told["heldout"]]
    notes |= {"steps": len(steps), "heldout_accuracy": mean(pair_accuracy(scores))}
    save_head(stack, head, out, run.ancestry)
    keep_asking(template, tokenizer, out)
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    (out / "notes.json").write_text(json.dumps(notes, sort_keys=True) + "\n")
    return notes


@stage(version=3)
def align(
    *,
    decoder: Artifact,
    tokenizer: Artifact,
    lessons: Artifact,
    plan: Artifact,
    beta: float = 0.1,
    out: Path,
    run: Run,
) -> dict:
    """The decoder tuned by DPO in its own template, what it takes to ask it (`load_chat`),
    curve.json, and notes.json.

    notes: share of held-out pairs whose better answer was likelier before (`reference_accuracy`)
    and is rewarded more now (`heldout_accuracy`); what the two answers' log-probabilities gained,
    in nats; the divergence of what is written now from what the reference would (`kl`, nats an
    answer, on held-out prompts).
    """
    settings, words = load_plan(plan), load_tokenizer(tokenizer.path)
    torch.set_num_threads(settings.threads)
    template = template_in(decoder.path)
    model, extra = load(decoder.path, settings.compute)
    told, notes = told_rankings(words, template, lessons, model.shape.context)
    sizes = [r.size for r in told["train"]]
    steps = schedule(sizes, settings.batch_tokens, 1, settings.seed)
    before = {split: reference_logps(model, rankings) for split, rankings in told.items()}

    def loss_of(k: int):
        logps = ranking_logps(model, [told["train"][i] for i in steps[k]])
        kept = [before["train"][i] for i in steps[k]]
        return ranking_loss(implicit_rewards(logps, kept, beta))

    curve, rate = kept_curve(run.scratch), rate_of(settings, model.shape.width) * POLICY_RATE
    parameters = dict(model.named_parameters())
    loop = train(
        parameters,
        loss_of,
        len(steps),
        rate,
        run.scratch,
        names_of=lambda k: [told["train"][i].name for i in steps[k]],
        data=digest_of(lessons.digest, tokenizer.digest, plan.digest),
    )
    for step in report_progress(loop, len(steps), run.say, "선호 정렬(DPO)", sum(sizes)):
        note_point(curve, step, len(steps), run.scratch)
    now = reference_logps(model, told["heldout"])
    gained = implicit_rewards(now, before["heldout"], 1.0)
    prompts, end = [r.prompt for r in told["heldout"]], mark_ids(words, template)[template.stop]
    notes |= {
        "steps": len(steps),
        "reference_accuracy": mean(pair_accuracy(before["heldout"])),
        "heldout_accuracy": mean(pair_accuracy(gained)),
        "chosen_gain": mean([float(gain_K[0]) for gain_K in gained]),
        "rejected_gain": mean([float(gain_K[1]) for gain_K in gained]),
        "kl": divergence(model, load(decoder.path, settings.compute)[0], prompts, end),
    }
    save(model, out, run.ancestry, extra)
    keep_asking(template, tokenizer, out)
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    (out / "notes.json").write_text(json.dumps(notes, sort_keys=True) + "\n")
    return notes
