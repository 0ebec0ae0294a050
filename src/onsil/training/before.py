"""What came before transformers, as stages: an n-gram and a recurrent model of a corpus.

Both are measured like a decoder, in bits per byte of the held-out documents under the same
tokenizer, so that the three stand side by side.
"""

from pathlib import Path

import torch

from onsil.corpus import document_text, load_corpus
from onsil.errors import say
from onsil.lineage import Artifact, Run, stage
from onsil.models.ngram import NGram
from onsil.models.recurrent import RecurrentLM, RecurrentShape
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import specials_of
from onsil.training.loop import digest_of, report_progress, train
from onsil.training.objectives import pieces_of, schedule
from onsil.training.plan import load_plan, rate_of
from onsil.training.pretraining import owners_of

PIECE = 64  # tokens a recurrent model is unrolled over


def read_splits(corpus: Artifact, tokenizer: Artifact) -> tuple[dict, int, int]:
    """(ids of every document by split, each closed by its end; held-out bytes; vocabulary)."""
    words, held = load_tokenizer(tokenizer.path), load_corpus(corpus)
    end, ids = specials_of(words).end, {}
    for split, documents in (("train", held.train), ("heldout", held.heldout)):
        encoded = words.encode_batch([document_text(d) for d in documents])
        ids[split] = [[*e.ids, end] for e in encoded]
    size = sum(len(document_text(d).encode()) for d in held.heldout)
    return ids, size, words.get_vocab_size()


def measured(model: NGram | RecurrentLM, ids: dict, size: int) -> dict:
    """The note both leave: bits per byte of the held-out text; None without any."""
    bits = sum(model.bits(document) for document in ids["heldout"])
    return {"heldout_bits_per_byte": round(bits / size, 4) if size else None}


@stage(version=1)
def train_ngram(
    *, corpus: Artifact, tokenizer: Artifact, order: int = 3, out: Path, run: Run
) -> dict:
    """ngram.safetensors: interpolated modified Kneser-Ney of an order."""
    ids, size, vocabulary = read_splits(corpus, tokenizer)
    model = NGram(ids["train"], order, vocabulary)
    model.save(out / "ngram.safetensors", run.ancestry)
    return measured(model, ids, size) | {"order": order}


@stage(version=2)
def train_recurrent(
    *,
    corpus: Artifact,
    tokenizer: Artifact,
    plan: Artifact,
    cell: str = "gru",
    out: Path,
    run: Run,
) -> dict:
    """config.json and model.safetensors: a recurrent language model of the plan's width, with the
    passes its decoder would make."""
    settings = load_plan(plan)
    torch.set_num_threads(settings.threads)
    ids, size, vocabulary = read_splits(corpus, tokenizer)
    shape = RecurrentShape(vocabulary=vocabulary, width=settings.width, depth=1, cell=cell)
    model = RecurrentLM(shape).initialise(settings.seed)
    pieces = [
        p for document in ids["train"] for p in pieces_of([document[:-1]], PIECE, document[-1])
    ]
    bare = [document[:-1] for document in ids["train"]]
    owners = owners_of(load_corpus(corpus).train, bare, PIECE)
    sizes = [len(piece) for piece in pieces]
    steps = schedule(sizes, settings.batch_tokens, settings.decoder_epochs, settings.seed)

    def loss_of(k: int):
        return model.loss([pieces[i] for i in steps[k]])

    parameters = dict(model.named_parameters())
    loop = train(
        parameters,
        loss_of,
        len(steps),
        rate_of(settings, shape.width),
        run.scratch,
        names_of=lambda k: [owners[i] for i in steps[k]],
        data=digest_of(corpus.digest, tokenizer.digest, plan.digest),
    )
    total = sum(sizes) * settings.decoder_epochs
    for _ in report_progress(
        loop,
        len(steps),
        run.say,
        say(f"Pretraining {cell.upper()}", f"{cell.upper()} 사전학습"),
        total,
    ):
        pass
    model.save(out, run.ancestry)
    return measured(model, ids, size) | {"cell": cell, "steps": len(steps)}
