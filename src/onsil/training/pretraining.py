"""Corpus to language model: a causal decoder, or a masked encoder, on the one loop.

The curve is in bits per byte of held-out documents, so that it can stand beside an n-gram model and
survive a change of tokenizer. The held-out documents are scored, never trained on.
"""

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from onsil.corpus import document_text, load_corpus
from onsil.documents.types import Document
from onsil.lineage import Artifact, Run, stage
from onsil.lineage.spelling import write_atomically
from onsil.models.both_ways import both_ways
from onsil.models.checkpoint import load, save
from onsil.models.compiling import compiled, compiler
from onsil.models.ngram import NGram
from onsil.models.shape import hybrid_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import specials_of
from onsil.training.loop import digest_of, pretraining, report_progress, train
from onsil.training.objectives import (
    causal_batch,
    masked_batch,
    pieces_of,
    schedule,
    token_loss,
)
from onsil.training.optim import RECIPES, Recipe
from onsil.training.plan import Plan, load_plan, rate_of
from onsil.training.speed import compiling

CURVE_POINTS, CURVE_BYTES = 8, 200_000


@torch.no_grad()
def bits_per_byte(
    model: Transformer, pieces: list[list[int]], size: int, documents: int
) -> float | None:
    """Σ −log2 P(token) over `documents` texts, cut into pieces, ÷ their bytes; None without any.

    Nothing stands before a document's first token, so no piece has it as a target: it is charged as
    an even guess over the vocabulary, else a tokenizer of longer tokens would be given more text.
    """
    if not size:
        return None
    nats = sum(float(token_loss(model, causal_batch([piece]))[0]) for piece in pieces)
    first = documents * math.log2(model.shape.vocabulary)
    return round((nats / math.log(2) + first) / size, 4)


@stage(version=12)
def pretrain(
    *,
    corpus: Artifact,
    tokenizer: Artifact,
    plan: Artifact,
    kind: str,
    base: Artifact | None = None,
    decoder: Artifact | None = None,
    out: Path,
    run: Run,
) -> dict:
    """A model folder and curve.json; `kind` is "decoder" or "encoder". With a base that has this
    kind the model goes on from there, in the base's shape; else an encoder begins as the `decoder`
    given, or the base's, looking both ways; else the model starts from noise."""
    settings, words = load_plan(plan), load_tokenizer(tokenizer.path)
    torch.set_num_threads(settings.threads)
    held = load_corpus(corpus)
    texts = {"train": held.train, "heldout": held.heldout}
    texts["sample"] = sample_of(held.heldout)
    sizes, ids = {}, {}
    for split, documents in texts.items():
        rendered = [document_text(d) for d in documents]
        sizes[split] = sum(len(t.encode()) for t in rendered)
        ids[split] = [e.ids for e in words.encode_batch(rendered)]
    start, vocabulary = start_of(base, kind, decoder), words.get_vocab_size()
    model, extra = beginning(start, kind, settings, vocabulary, settings.compute)
    context = min(settings.context, model.shape.context)
    special = specials_of(words)
    cut = {split: pieces_of(some, context, special.end) for split, some in ids.items()}
    pieces = cut["train"]
    epochs = settings.decoder_epochs if kind == "decoder" else settings.encoder_epochs
    steps = schedule([len(p) for p in pieces], settings.batch_tokens, epochs, settings.seed)

    def loss_of(k: int):
        chosen = [pieces[i] for i in steps[k]]
        if kind == "decoder":
            return token_loss(model, causal_batch(chosen))
        return token_loss(
            model, masked_batch(chosen, vocabulary, f"{settings.seed}-{k}", special.mask)
        )

    def bits_of(split: str) -> float | None:
        return bits_per_byte(model, cut[split], sizes[split], len(ids[split]))

    notes: dict = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": len(steps),
        "tokens": sum(map(len, pieces)) * epochs,
    }
    tokens_per_byte = sum(map(len, ids["train"])) / max(1, sizes["train"])
    if kind == "decoder":
        notes["untrained_bits_per_byte"] = bits_of("heldout")
        notes["ngram_bits_per_byte"] = ngram_bits(ids, sizes["heldout"], vocabulary, special.end)
    curve = kept_curve(run.scratch)
    recipe, rate = recipe_of(settings, kind, model.shape.width)
    parameters = dict(model.named_parameters())
    owners = owners_of(held.train, ids["train"], context)
    # An encoder's steps gain nothing (docs/log.md, "Compiled stretches").
    if stretches := settings.compiled and kind == "decoder":
        notes["compiler"] = compiler()
        run.say(compiling())
    with compiled(model, settings.batch_tokens) if stretches else nullcontext():
        loop = train(
            parameters,
            loss_of,
            len(steps),
            rate,
            run.scratch,
            recipe=recipe,
            names_of=lambda k: [owners[i] for i in steps[k]],
            data=digest_of(corpus.digest, tokenizer.digest, plan.digest),
        )
        for step in report_progress(loop, len(steps), run.say, pretraining(kind), notes["tokens"]):
            due = step.number % max(1, len(steps) // CURVE_POINTS) == 0 or step.number == len(steps)
            if due and not any(point[0] == step.number for point in curve):
                if kind == "decoder":
                    train_bits = step.loss / math.log(2) * tokens_per_byte
                    held_bits = bits_of("sample")
                    curve.append([step.number, round(train_bits, 4), held_bits])
                else:
                    curve.append([step.number, round(step.loss, 4)])
                write_atomically(run.scratch / "curve.json", json.dumps(curve))
    save(model, out, run.ancestry, extra)
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    if kind == "decoder":
        notes["heldout_bits_per_byte"] = bits_of("heldout")
    (out / "notes.json").write_text(json.dumps(notes, sort_keys=True) + "\n")
    return notes


def start_of(base: Artifact | None, kind: str, decoder: Artifact | None = None) -> Path | None:
    """The folder of the weights to go on from: the base's part of this kind; for an encoder also
    the `decoder`, or the base's; None for noise."""
    if base is not None and (base / kind).is_dir():
        return base / kind
    if decoder is not None and kind == "encoder":
        return decoder.path
    return start_of(base, "decoder") if kind == "encoder" else None


def beginning(
    start: Path | None, kind: str, settings: Plan, vocabulary: int, compute: str
) -> tuple[Transformer, dict[str, Tensor]]:
    """The weights before the first step, and a base's task head. From noise a model has the plan's
    size; an encoder is a decoder that looks both ways."""
    if start is not None:
        model, extra = load(start, compute)
    else:
        shape = hybrid_shape(vocabulary, settings.width, settings.depth, settings.context)
        model, extra = Transformer(shape, compute).initialise(settings.seed), {}
    return (both_ways(model) if kind == "encoder" else model), extra


def recipe_of(settings: Plan, kind: str, width: int) -> tuple[Recipe, float]:
    """How to step, and the peak rate, as the plan says, of a model so wide. Hidden words are learnt
    by the decoder's recipe at a third of its rate (docs/log.md)."""
    rate = settings.decoder_rate or rate_of(settings, width)
    return RECIPES[settings.decoder_recipe], rate if kind == "decoder" else rate / 3


def owners_of(documents: Sequence[Document], ids: Sequence[list[int]], context: int) -> list[str]:
    """Which document each piece is of, as `pieces_of` cuts their tokens."""
    return [
        document.path
        for document, tokens in zip(documents, ids, strict=True)
        for _ in pieces_of([tokens], context)
    ]


def sample_of(documents: Sequence[Document], size: int = CURVE_BYTES) -> tuple[Document, ...]:
    """Documents evenly spread over the held-out ones, about `size` bytes of them: the curve is
    measured on these, the last figure on all."""
    total = sum(len(document_text(d).encode()) for d in documents)
    every = max(1, round(total / size))
    return tuple(documents[::every])


def kept_curve(scratch: Path) -> list[list]:
    """Points up to the last checkpoint; later ones are measured again when their step comes."""
    if not (scratch / "latest.json").exists() or not (scratch / "curve.json").exists():
        return []
    done = json.loads((scratch / "latest.json").read_text())["step"]
    return [point for point in json.loads((scratch / "curve.json").read_text()) if point[0] <= done]


def ngram_bits(
    ids: dict[str, list[list[int]]], size: int, vocabulary: int, end: int
) -> float | None:
    """Held-out bits per byte of a Kneser-Ney trigram on the same tokens."""
    if not size:
        return None
    baseline = NGram([[*d, end] for d in ids["train"]], 3, vocabulary)
    return round(sum(baseline.bits([*d, end]) for d in ids["heldout"]) / size, 4)
