"""Lessons to readers: an encoder that points at the answer or at nothing, a decoder that says it.

The head is BERT's question-answering head (Devlin et al. 2019, §4.2–4.3): one start and one end
score per token; the <|cls|> token stands for "this passage does not answer". Only lessons of the
training split are seen.
"""

import json
from pathlib import Path

import torch

from onsil.errors import say
from onsil.lineage import Artifact, Run, stage
from onsil.lineage.spelling import write_atomically
from onsil.models.checkpoint import load, save
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.template import render_pair, render_turn
from onsil.training.loop import Step, digest_of, report_progress, train
from onsil.training.objectives import (
    span_batch,
    span_loss,
    steps_by_length,
    token_loss,
    turn_batch,
)
from onsil.training.plan import FEEDBACK, load_plan, rate_of
from onsil.training.pretraining import CURVE_POINTS, kept_curve

HEAD = "qa_outputs"


def new_head(width: int, seed: int) -> torch.nn.Linear:
    head = torch.nn.Linear(width, 2)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(head.weight, 0.0, 0.02, generator=generator)
    torch.nn.init.zeros_(head.bias)
    return head


def load_reader(folder: Path, compute: str = "fp32") -> tuple[Transformer, torch.nn.Linear]:
    """The encoder and its span head, from a folder that `finetune` made."""
    model, extra = load(folder, compute)
    head = new_head(model.shape.width, 0)
    head.load_state_dict({leaf: extra[f"{HEAD}.{leaf}"] for leaf in ("weight", "bias")})
    return model.eval(), head.eval()


Taught = tuple[str, str, tuple[int, int] | None]


def lessons_in(lessons: Path, many: int) -> tuple[list[Taught], list[str]]:
    """(question, passage, answer) of `many` lessons of the training split, and their documents."""
    with lessons.open(encoding="utf-8") as f:
        rows = [row for row in map(json.loads, f) if row["split"] == "train"]
    chosen = some_of(rows, many)
    taught = [
        (row["question"], row["passage"], tuple(row["answer"]) if row["answer"] else None)
        for row in chosen
    ]
    return taught, [row["document"] for row in chosen]


def some_of(rows: list[dict], many: int) -> list[dict]:
    """`many` of the lessons, evenly spread; those that a person gave are never left out."""
    given = [row for row in rows if row["kind"] == FEEDBACK]
    rules = [row for row in rows if row["kind"] != FEEDBACK]
    many = min(len(rules), max(0, many - len(given)))
    return [rules[i * len(rules) // many] for i in range(many)] + given


@stage(version=6)
def instruct(
    *,
    decoder: Artifact,
    tokenizer: Artifact,
    lessons: Artifact,
    plan: Artifact,
    out: Path,
    run: Run,
) -> dict:
    """A generating reader: the decoder tuned to answer the lessons, and curve.json."""
    settings, words = load_plan(plan), load_tokenizer(tokenizer.path)
    torch.set_num_threads(settings.threads)
    model, _ = load(decoder.path, settings.compute)
    taught, owners = lessons_in(lessons / "lessons.jsonl", settings.generator_lessons)
    turns = [render_turn(words, *asked, True, model.shape.context) for asked in taught]
    sizes = [len(t.ids) for t in turns]
    steps = steps_by_length(sizes, 2 * settings.batch_tokens, 1, settings.seed)

    def loss_of(k: int):
        return token_loss(model, turn_batch([turns[i] for i in steps[k]]))

    curve = kept_curve(run.scratch)
    rate = rate_of(settings, model.shape.width) / 2
    loop = train(
        dict(model.named_parameters()),
        loss_of,
        len(steps),
        rate,
        run.scratch,
        names_of=lambda k: [owners[i] for i in steps[k]],
        data=digest_of(lessons.digest, tokenizer.digest, plan.digest),
    )
    for step in report_progress(
        loop, len(steps), run.say, say("Tuning the generator", "생성 미세조정"), sum(sizes)
    ):
        note_point(curve, step, len(steps), run.scratch)
    save(model, out, run.ancestry)
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    return {"lessons": len(turns), "steps": len(steps), "tokens": sum(sizes)}


def note_point(curve: list, step: Step, steps: int, scratch: Path) -> None:
    """Keep about `CURVE_POINTS` losses, each once, also after a crash."""
    due = step.number % max(1, steps // CURVE_POINTS) == 0 or step.number == steps
    if due and not any(point[0] == step.number for point in curve):
        curve.append([step.number, round(step.loss, 4)])
        write_atomically(scratch / "curve.json", json.dumps(curve))


@stage(version=7)
def finetune(
    *,
    encoder: Artifact,
    tokenizer: Artifact,
    lessons: Artifact,
    plan: Artifact,
    out: Path,
    run: Run,
) -> dict:
    """A reader: the encoder tuned on the lessons, with `qa_outputs` beside it, and curve.json."""
    settings, words = load_plan(plan), load_tokenizer(tokenizer.path)
    torch.set_num_threads(settings.threads)
    model, extra = load(encoder.path, settings.compute)
    head = new_head(model.shape.width, settings.seed)
    if f"{HEAD}.weight" in extra:  # a base that has read lessons already
        head.load_state_dict({leaf: extra[f"{HEAD}.{leaf}"] for leaf in ("weight", "bias")})
    taught, owners = lessons_in(lessons / "lessons.jsonl", settings.reader_lessons)
    tasks = [render_pair(words, *asked, True, model.shape.context) for asked in taught]
    sizes = [len(t.ids) for t in tasks]
    batch_tokens, epochs = 2 * settings.batch_tokens, settings.reader_epochs
    steps = steps_by_length(sizes, batch_tokens, epochs, settings.seed)
    parameters = dict(model.named_parameters()) | {
        f"{HEAD}.{name}": p for name, p in head.named_parameters()
    }
    trained = {n: p for n, p in parameters.items() if not n.startswith(("head.", "transform"))}

    def loss_of(k: int):
        return span_loss(model, head, span_batch([tasks[i] for i in steps[k]]))

    curve = kept_curve(run.scratch)
    loop = train(
        trained,
        loss_of,
        len(steps),
        rate_of(settings, model.shape.width) / 2,
        run.scratch,
        names_of=lambda k: [owners[i] for i in steps[k]],
        data=digest_of(lessons.digest, tokenizer.digest, plan.digest),
    )
    total = sum(sizes) * settings.reader_epochs
    for step in report_progress(
        loop, len(steps), run.say, say("Tuning the reader", "읽기 미세조정"), total
    ):
        note_point(curve, step, len(steps), run.scratch)
    kept = {f"{HEAD}.{name}": p.detach() for name, p in head.named_parameters()}
    save(model, out, run.ancestry, kept)
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    answered = sum(t.target != (0, 0) for t in tasks)
    return {"lessons": len(tasks), "with_answer": answered, "steps": len(steps), "tokens": total}
