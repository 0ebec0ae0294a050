"""A model as a policy: how likely it finds an answer, and answers drawn from it.

A policy π(y|x) is a decoder that has read a prompt x; its actions are the tokens of the answer y,
the end token among them. Preference learning (preference.py) and reinforcement (online.py) need two
things of it: log π of answers that are there, and answers that are not there yet. Both are written
in the template of the decoder's folder, so that a chat model is tuned on what it will be asked.

How far one policy has gone from another is KL(π ‖ π_ref), estimated on answers drawn from π by

    k3 = ρ − log ρ − 1,  ρ = π_ref / π        a token

(Schulman 2020, "Approximating KL divergence"): unbiased, never negative, and of less variance than
−log ρ alone. Left out: temperatures other than 1, top-p. What is drawn must be what is scored.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from onsil.errors import OnsilError
from onsil.models.transformer import Transformer
from onsil.tokenizer.template import NO_TARGET
from onsil.tokenizer.templates import PLAIN
from onsil.tokenizer.turns import FILE, Message, Template, load_template, prompt_ids, render
from onsil.training.objectives import LOSS_CHUNK, Batch, prefix_batch
from onsil.training.prompted import refuse_prompted
from onsil.training.samplers import Ids, Pair

JUDGED_PROMPTS, JUDGED_TOKENS = 64, 64  # what a divergence is estimated on


def template_in(folder: Path) -> Template:
    """How the model of a folder is asked: by its template, or, where it has none, by `PLAIN`.
    Raises OnsilError when rows are learnt before the model."""
    refuse_prompted(folder)
    return load_template(folder) if (folder / FILE).is_file() else PLAIN


def asked_ids(tokenizer, template: Template, prompt: str) -> Ids:
    """What stands before the answer to a prompt."""
    return list(prompt_ids(tokenizer, template, [Message("user", prompt)]))


def answer_ids(tokenizer, template: Template, answer: str) -> Ids:
    """An answer as the assistant says it, its stop included."""
    turns = [Message("user", ""), Message("assistant", answer)]
    chat = render(tokenizer, replace(template, supervised=("assistant",)), turns)
    return [token for token, said in zip(chat.ids, chat.said, strict=True) if said]


def answer_batch(pairs: Sequence[Pair]) -> Batch:
    """Prompts and answers end to end, each token seeing what stands before it in its own pair; the
    answers' tokens are the targets. `token_loss` on it is supervised fine-tuning."""
    return replace(prefix_batch(list(pairs)), prefixes=None)


def answer_logps(model: Transformer, pairs: Sequence[Pair]) -> list[Tensor]:
    """For each (prompt, answer) the log-probability of every token of the answer, in nats.

    Only rows that predict an answer meet the vocabulary, a chunk at a time, recomputed on the way
    back.
    """
    batch = answer_batch(pairs)
    assert batch.targets is not None
    told_T = batch.targets[0] != NO_TARGET
    hidden_ND = model.encode(batch.ids, lengths=batch.lengths)[0][told_T]
    wanted_N = batch.targets[0][told_T]

    def logps(x: Tensor, y: Tensor) -> Tensor:
        return -F.cross_entropy(model.logits(x), y, reduction="none")

    chunks = zip(hidden_ND.split(LOSS_CHUNK), wanted_N.split(LOSS_CHUNK), strict=True)
    parts = [checkpoint(partial(logps), x, y, use_reentrant=False) for x, y in chunks]
    return list(torch.cat(parts).split([len(pair.target) for pair in pairs]))


class NoScores(OnsilError):
    """Weights that have grown beyond what numbers hold: what they say of the next token is none."""

    def __init__(self):
        super().__init__(
            en=(
                "The model's scores are not finite: no answer can be drawn from them.",
                "Its weights have grown beyond what numbers hold, and nothing it says counts.",
                "Lower the learning rate in the plan, or give another decoder if it came so.",
            ),
            ko=(
                "모델의 점수가 유한하지 않아 답을 뽑을 수 없습니다.",
                "가중치가 수로 적을 수 없을 만큼 커져서 모델이 하는 말에 뜻이 없습니다.",
                "계획의 학습률을 낮추거나, 처음부터 그랬다면 다른 디코더를 써 주세요.",
            ),
        )


@torch.no_grad()
def sampled(
    model: Transformer, prompts: Sequence[Ids], end: int, limit: int, draw: torch.Generator | None
) -> list[Ids]:
    """An answer to each prompt, up to and with `end`, or `limit` tokens without it; drawn from the
    model's own distribution, or, without `draw`, the likeliest token each time.

    All prompts are written on at once, padded on the left; what is drawn is a function of the
    weights, the prompts and the generator. Raises NoScores where the model has none to draw by.
    """
    longest = max(map(len, prompts))
    feed_BT = torch.tensor([[end] * (longest - len(p)) + list(p) for p in prompts])
    keep_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]).bool()
    cache, columns = model.new_cache(), []
    done_B = torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(min(limit, model.shape.context - longest)):
        hidden_BD = model.encode(feed_BT, keep_BT=keep_BT, cache=cache)[:, -1]
        scores_BV = model.logits(hidden_BD)
        if not scores_BV.isfinite().all():
            raise NoScores()
        if draw is None:
            next_B = scores_BV.argmax(-1)
        else:
            next_B = torch.multinomial(scores_BV.softmax(-1), 1, generator=draw)[:, 0]
        columns.append(next_B)
        done_B |= next_B == end
        if done_B.all():
            break
        feed_BT, keep_BT = next_B[:, None], torch.ones(len(prompts), 1, dtype=torch.bool)
    rows = torch.stack(columns, 1).tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def k3(logp_T: Tensor, reference_T: Tensor) -> Tensor:
    """KL(π ‖ π_ref) at each token of an answer drawn from π, estimated without bias, in nats."""
    ahead_T = reference_T - logp_T
    return torch.expm1(ahead_T) - ahead_T


@torch.no_grad()
def divergence(
    model: Transformer, reference: Transformer, prompts: Sequence[Ids], end: int
) -> float | None:
    """KL(model ‖ reference) in nats an answer, on one answer to each of the first prompts; None
    without any."""
    prompts = prompts[:JUDGED_PROMPTS]
    if not prompts:
        return None
    draw = torch.Generator().manual_seed(0)
    answers = sampled(model, prompts, end, JUDGED_TOKENS, draw)
    pairs = [Pair(list(p), a) for p, a in zip(prompts, answers, strict=True)]
    both = zip(answer_logps(model, pairs), answer_logps(reference, pairs), strict=True)
    return round(sum(float(k3(now, before).sum()) for now, before in both) / len(pairs), 4)
