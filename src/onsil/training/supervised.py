"""Chats to a model that answers: supervised fine-tuning of a decoder on what the assistant said.

The renderer (`tokenizer.turns`) makes ids and targets; documents lie end to end and never see each
other; the loss of a step is the sum over targets divided by their number, so a long answer counts
by its tokens. What trains: all weights, an adapter (LoRA) that is folded in at the end, beside the
base as it is or in four bits (QLoRA), or a prompt of a few rows before a frozen model. The folder
that comes out has its template beside its weights, and `load_chat` reads both, so that nobody asks
in another way than was trained.

Refused: data where next to nothing, or next to everything, is a target, chats in which nobody
answers counted; both are a mask gone wrong
far more often than a wish. Counted: every token that was not trained on. Asked at the end: does it
stop by itself?
"""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from onsil.documents.types import FileRef
from onsil.errors import OnsilError, say
from onsil.inference.generation import Sampling, written
from onsil.lineage import Artifact, Run, stage
from onsil.models import adapters
from onsil.models.checkpoint import load, save
from onsil.models.prompted import PROMPT, Prompted
from onsil.models.quantization import quantize, restore
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.turns import (
    Chat,
    Message,
    Template,
    fitted,
    load_template,
    mark_ids,
    prompt_ids,
    save_template,
)
from onsil.training.finetuning import note_point
from onsil.training.loop import digest_of, report_progress, train
from onsil.training.objectives import Batch, schedule, token_loss
from onsil.training.pretraining import kept_curve
from onsil.training.prompted import refuse_prompted

CHATS, ADAPTER = "chats.jsonl", "adapter"
LEAST, MOST = 0.01, 0.99  # share of targets
HELD_OUT = 20  # one chat in so many, where the file does not say
ADAPTERS = ("lora", "qlora")
PROBES, STOPS_SELDOM = 24, 0.9


@dataclass(frozen=True)
class Tuning:
    """How to tune. `rank`: r of the adapter (α is 2r, on every linear layer; "qlora": beside a base
    in four bits), or the rows of the prompt; all weights have none. `batch_tokens` a step, `rate`
    at its peak."""

    epochs: int = 2
    rate: float = 5e-4
    batch_tokens: int = 4096
    method: Literal["full", "lora", "qlora", "prompt"] = "full"
    rank: int = 8
    seed: int = 0
    compute: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1


# ── chats as a file ─────────────────────────────────────────────────────────────────────────────


@stage(version=1)
def adopt_chats(*, file: FileRef, out: Path, run: Run) -> dict:
    """chats.jsonl out of a file with a chat a line: {"messages": [{"role", "content"}, …]}, and
    "split", train or heldout; where it is not said, one chat in twenty is held out, by its words.
    Raises OnsilError with the number of a line that is none."""
    counts = {"train": 0, "heldout": 0}
    lines = (run.source / file.path).read_text(encoding="utf-8").split("\n")
    with (out / CHATS).open("w", encoding="utf-8") as f:
        for number, line in enumerate(lines, 1):
            if line.strip():
                row = _row(line, number)
                counts[row["split"]] += 1
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
    return counts


def _row(line: str, number: int) -> dict:
    try:
        row = json.loads(line)
        turns = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        if not turns or not all(isinstance(v, str) for turn in turns for v in turn.values()):
            raise ValueError("messages must be turns with the texts role and content")
        told = json.dumps(turns, ensure_ascii=False, sort_keys=True)
        drawn = "train" if random.Random(told).randrange(HELD_OUT) else "heldout"
        split = row.get("split", drawn)
        if split not in ("train", "heldout"):
            raise ValueError(f"split {split!r} is neither train nor heldout")
        return {"messages": turns, "split": split}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise OnsilError(
            en=(
                f"Line {number} is not a chat: {type(e).__name__}: {e}.",
                f"It says {line.strip()[:60]!r}; a chat that is skipped in silence is missed late.",
                'Write {"messages": [{"role": "user", "content": "…"}, …]}, one chat a line.',
            ),
            ko=(
                f"{number}번째 줄은 대화가 아닙니다: {type(e).__name__}: {e}.",
                f"내용은 {line.strip()[:60]!r}입니다. 말없이 건너뛰면 뒤늦게 알게 됩니다.",
                '한 줄에 대화 하나씩 {"messages": [{"role": "user", "content": "…"}, …]}로 적어 '
                "주세요.",
            ),
        ) from e


def chats_in(folder: Artifact, split: str) -> Iterator[tuple[int, list[Message]]]:
    """The chats of a split, each with its number in the file, from 1."""
    with (folder / CHATS).open(encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            row = json.loads(line)
            if row["split"] == split:
                yield number, [Message(m["role"], m["content"]) for m in row["messages"]]


@dataclass(frozen=True)
class Lessons:
    """Chats ready to train on: parts of at most the model's context, and which chat each is of.
    `unread`: tokens that no part has; `silent`: chats in which nothing is learnt, and how many
    `silent_tokens` they have."""

    parts: list[Chat]
    of: list[int]
    cut: int
    unread: int
    silent: list[int]
    silent_tokens: int

    @property
    def targets(self) -> int:
        return sum(sum(part.said) for part in self.parts)

    @property
    def sizes(self) -> list[int]:
        """Tokens read of each part: all but its last."""
        return [len(part.ids) - 1 for part in self.parts]

    def counts(self) -> dict[str, int]:
        return {
            "chats": len(set(self.of)),
            "cut_chats": self.cut,
            "parts": len(self.parts),
            "tokens": sum(self.sizes),
            "targets": self.targets,
            "unread_tokens": self.unread,
            "chats_without_targets": len(self.silent),
            "tokens_without_targets": self.silent_tokens,
        }


def lessons_of(
    chats: Sequence[tuple[int, list[Message]]], tokenizer, template: Template, context: int
) -> Lessons:
    """Every chat rendered and cut to fit; a chat that cannot be rendered is named by its number."""
    parts, of, silent, cut, lost, mute = [], [], [], 0, 0, 0
    for number, messages in chats:
        try:
            made, unread = fitted(tokenizer, template, messages, context)
        except OnsilError as e:
            raise _of_chat(e, number) from e
        if not any(any(part.said) for part in made):
            silent.append(number)
            mute += unread + sum(len(part.ids) for part in made)
            continue
        made = [part for part in made if any(part.said)]
        parts += made
        of += [number] * len(made)
        cut, lost = cut + (len(made) > 1 or unread > 0), lost + unread
    return Lessons(parts, of, cut, lost, silent, mute)


def checked(lessons: Lessons) -> Lessons:
    """The lessons themselves. Raises OnsilError when under 1 % of the tokens of the chats are
    targets, those of silent chats and those nobody reads counted, or over 99 % of what is read."""
    read = sum(lessons.sizes)
    given = read + lessons.unread + lessons.silent_tokens
    few = lessons.targets < LEAST * max(1, given)
    if not few and lessons.targets <= MOST * read:
        return lessons
    tokens = given if few else read
    share = lessons.targets / max(1, tokens)
    odd = lessons.silent if few and lessons.silent else lessons.of
    named = ", ".join(map(str, odd[:10])) or "none"
    raise OnsilError(
        en=(
            f"{share:.2%} of the tokens are targets ({lessons.targets:,} of "
            f"{tokens:,}; chats {named} …).",
            "With next to no targets a model learns nothing and forgets."
            if few
            else "With next to nothing to answer it learns to talk, not to answer.",
            "Look at these chats: whose turns are supervised, and how long are the questions?",
        ),
        ko=(
            f"토큰의 {share:.2%}만 정답입니다({tokens:,}개 중 {lessons.targets:,}개, "
            f"대화 {named} …)."
            if few
            else f"토큰의 {share:.2%}가 정답입니다({tokens:,}개 중 "
            f"{lessons.targets:,}개, 대화 {named} …).",
            "정답이 거의 없으면 배우는 것 없이 잊기만 합니다."
            if few
            else "물음이 거의 없으면 답하는 법이 아니라 말하는 법만 배웁니다.",
            "이 대화들에서 누구의 차례를 배우는지, 물음이 얼마나 긴지 살펴봐 주세요.",
        ),
    )


def chat_batch(parts: Sequence[Chat]) -> Batch:
    """Predict what is said, after everything before it; the parts lie end to end."""
    ids = [token for part in parts for token in part.ids[:-1]]
    targets = [token for part in parts for token in part.targets]
    lengths = [len(part.ids) - 1 for part in parts]
    return Batch(torch.tensor([ids]), lengths, targets=torch.tensor([targets]))


# ── what trains ─────────────────────────────────────────────────────────────────────────────────


class Learner(NamedTuple):
    """Who reads a batch, and what of it learns."""

    reader: Transformer | Prompted
    parameters: dict[str, nn.Parameter]


def learner(model: Transformer, tuning: Tuning) -> Learner:
    """The model made ready for the method. Raises OnsilError where it fits no such model."""
    if tuning.method == "full":
        return Learner(model, dict(model.named_parameters()))
    if tuning.method in ADAPTERS:
        if tuning.method == "qlora":
            quantize(model, double=True)
        targets = {name.split(".", 2)[2] for s in adapters.sites(model) for name in s.ours}
        adapters.add_lora(model, tuning.rank, 2 * tuning.rank, sorted(targets), seed=tuning.seed)
        return Learner(model, adapters.adapter_parameters(model))
    prompt = adapters.new_prompt(model, tuning.rank, tuning.seed)
    return Learner(Prompted(model, prompt), dict(prompt.named_parameters()))


def keep(learnt: Learner, tuning: Tuning, out: Path, base: str, ancestry: dict) -> None:
    """An ordinary checkpoint, the adapter folded in; the adapter or the prompt also by itself, as
    PEFT reads it."""
    reader = learnt.reader
    model = reader.model if isinstance(reader, Prompted) else reader
    if tuning.method in ADAPTERS:
        (out / ADAPTER).mkdir()
        adapters.save_adapter(model, out / ADAPTER, base, ancestry)
        adapters.merge(model)
        adapters.remove_lora(model)
    elif isinstance(reader, Prompted):
        (out / PROMPT).mkdir()
        adapters.save_prompt(reader.prompt, model, out / PROMPT, base, ancestry)
    save(model, out, ancestry)


def keep_asking(template: Template, tokenizer: Artifact, out: Path) -> None:
    """What it takes to ask the model of a folder: template.json, tokenizer.json, and
    generation_config.json, which tells other tools what ends an answer."""
    marks = mark_ids(load_tokenizer(tokenizer.path), template)
    save_template(template, out)
    shutil.copyfile(tokenizer / "tokenizer.json", out / "tokenizer.json")
    ends = {"eos_token_id": marks[template.stop], "pad_token_id": marks[template.pad]}
    (out / "generation_config.json").write_text(json.dumps(ends, sort_keys=True) + "\n")


# ── the stage ───────────────────────────────────────────────────────────────────────────────────


@stage(version=2)
def finetune_chat(
    *,
    decoder: Artifact,
    tokenizer: Artifact,
    chats: Artifact,
    template: Template,
    tuning: Tuning,
    out: Path,
    run: Run,
) -> dict:
    """A model folder that answers in chats: weights, tokenizer.json, template.json, curve.json and
    notes.json. `decoder` may be a base that has one. Raises OnsilError when the chats cannot be
    learnt from, when the decoder has a learnt prompt before it, and when a step fails, with the
    lines of its chats."""
    torch.set_num_threads(tuning.threads)
    words = load_tokenizer(tokenizer.path)
    model, _ = load(decoder_in(decoder), tuning.compute)
    marks = mark_ids(words, template)
    learnt = learner(model, tuning)
    reader = cast(Transformer, learnt.reader)  # a prompted one is read in the same way
    told, held = (list(chats_in(chats, split)) for split in ("train", "heldout"))
    lessons = checked(lessons_of(told, words, template, reader.shape.context))
    heldout = lessons_of(held, words, template, reader.shape.context)
    steps = schedule(lessons.sizes, tuning.batch_tokens, tuning.epochs, tuning.seed)
    before = mean_loss(reader, heldout.parts)

    def loss_of(k: int) -> tuple[Tensor, int]:
        return token_loss(reader, chat_batch([lessons.parts[i] for i in steps[k]]))

    def names_of(k: int) -> list[str]:
        return [f"{CHATS}:{lessons.of[i]}" for i in steps[k]]

    curve = kept_curve(run.scratch)
    many, weights = len(steps), learnt.parameters
    data = digest_of(chats.digest, tokenizer.digest, template, tuning)
    loop = train(weights, loss_of, many, tuning.rate, run.scratch, names_of=names_of, data=data)
    tokens = sum(lessons.sizes) * tuning.epochs
    for step in report_progress(
        loop, many, run.say, say("Tuning on conversations", "대화 미세조정"), tokens
    ):
        note_point(curve, step, many, run.scratch)
    losses: dict[str, Any] = {"heldout_loss": [before, mean_loss(reader, heldout.parts)]}
    if tuning.method == "qlora":  # what is kept is the adapter in the base as it was: scored too
        restore(model, load(decoder_in(decoder), tuning.compute)[0])
        losses["merged_heldout_loss"] = mean_loss(reader, heldout.parts)
    limit = 2 * max(sum(part.said) for part in lessons.parts)
    asked = [
        prompt_ids(words, template, turns) for turns in first_questions(held or told, template)
    ]
    stops = share_that_stops(reader, asked, marks[template.stop], limit)
    notes: dict[str, Any] = (
        lessons.counts()
        | losses
        | {
            "steps": many,
            "trained_parameters": sum(p.numel() for p in weights.values()),
            "stops": stops,
            "stops_asked_of": "heldout" if held else "train",
            "warnings": list(warnings(lessons, stops, limit)),
        }
    )
    for warning in notes["warnings"]:
        run.say(warning)
    keep(learnt, tuning, out, f"onsil:{decoder.digest}", run.ancestry)
    keep_asking(template, tokenizer, out)
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    (out / "notes.json").write_text(json.dumps(notes, sort_keys=True, ensure_ascii=False) + "\n")
    return notes


def decoder_in(made: Artifact) -> Path:
    """The folder of a decoder, or of the decoder in a base, to go on from. Raises OnsilError when
    rows are learnt before it."""
    folder = made / "decoder" if (made / "decoder").is_dir() else made.path
    refuse_prompted(folder)
    return folder


@torch.no_grad()
def mean_loss(model: Transformer, parts: Sequence[Chat]) -> float | None:
    """Nats a target; None without any."""
    pairs = [token_loss(model, chat_batch([part])) for part in parts]
    targets = sum(count for _, count in pairs)
    return round(sum(float(total) for total, _ in pairs) / targets, 4) if targets else None


def first_questions(
    chats: Sequence[tuple[int, list[Message]]], template: Template
) -> list[list[Message]]:
    """Of some chats, evenly spread, what stands before the assistant's first turn."""
    found = []
    for _, turns in chats:
        spots = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        found += [turns[: spots[0]]] if spots else []
    many = min(PROBES, len(found))
    return [found[i * len(found) // many] for i in range(many)]


def share_that_stops(
    model: Transformer, prompts: Sequence[tuple[int, ...]], stop: int, limit: int
) -> float | None:
    """How often the likeliest continuation of a prompt ends by itself within `limit` tokens; None
    when no prompt leaves room for one."""
    ended = []
    for prompt in prompts:
        room = min(limit, model.shape.context - len(prompt))
        if room > 0:
            said = list(written(model, list(prompt), frozenset([stop]), room))
            ended.append(len(said) < room)
    return round(sum(ended) / len(ended), 4) if ended else None


def warnings(lessons: Lessons, stops: float | None, limit: int) -> Iterator[str]:
    """What a person should look at before using the model."""
    if stops is None or stops < STOPS_SELDOM:
        told = "?" if stops is None else f"{stops:.0%}"
        yield (
            f"답 {told}만 {limit}토큰 안에서 스스로 끝났습니다 · only {told} of the answers ended "
            f"by themselves within {limit} tokens"
        )
    if lessons.unread:
        yield (
            f"문맥에 들어가지 않아 읽지 않은 토큰 {lessons.unread:,}개 · "
            f"{lessons.unread:,} tokens of questions did not fit and were not read"
        )
    if lessons.silent:
        named = ", ".join(map(str, lessons.silent[:10]))
        yield (
            f"배울 차례가 없는 대화 {len(lessons.silent)}개({named}) · "
            f"{len(lessons.silent)} chats have nothing to learn: {named}"
        )


def _of_chat(error: OnsilError, number: int) -> OnsilError:
    """The same error, with the line it happened in."""
    (what, why, then), (ko_what, ko_why, ko_then) = error.en, error.ko
    return OnsilError(
        en=(f"{CHATS}:{number}: {what}", why, then),
        ko=(f"{CHATS}:{number}: {ko_what}", ko_why, ko_then),
    )


# ── using it ────────────────────────────────────────────────────────────────────────────────────


class ChatModel(NamedTuple):
    """A tuned model with the tokenizer and the template it was tuned with."""

    model: Transformer
    tokenizer: Any
    template: Template

    def answer(
        self, messages: Sequence[Message], limit: int = 200, how: Sampling = Sampling()
    ) -> str:
        """The assistant's next turn, at most `limit` tokens of it."""
        prompt = prompt_ids(self.tokenizer, self.template, messages)
        stop = mark_ids(self.tokenizer, self.template)[self.template.stop]
        ids = list(written(self.model, list(prompt), frozenset([stop]), limit, how))
        said = self.tokenizer.decode(ids, skip_special_tokens=False)
        return said.removeprefix(self.template.roles["assistant"].lead)


def load_chat(folder: Path, compute: str = "fp32") -> ChatModel:
    """What `finetune_chat` made. Raises OnsilError when a file of it is missing or damaged."""
    model, _ = load(folder, compute)
    model.eval()
    if (folder / PROMPT).is_dir():
        model = cast(Transformer, Prompted(model, adapters.load_prompt(model, folder / PROMPT)))
    return ChatModel(model, load_tokenizer(folder), load_template(folder))
