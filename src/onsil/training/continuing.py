"""A base goes on with texts of its owner: continued pretraining, with or without new words.

Three things go wrong when it is done by hand. New tokens get rows that mean nothing, and the first
hundred steps tear at everything else to make up for it: here a new row is the mean of what spelled
the token, and for the first steps only new rows learn, every other bit staying. The model forgets
what it could before: a share of every batch is general text again (replay), unless told otherwise,
and the notes say what the held-out text of both kinds cost before and after, in bits per byte, so
that a new tokenizer cannot flatter itself. And a run that was killed continues to the same bits:
which pieces a step has is a pure function of the seed and the step.

With the objective "ul2r" the same pieces are denoised instead (UL2R, Tay et al. 2022, "Transcending
Scaling Laws with 0.1% Extra Compute"): half of them cut in two (S), a quarter with few short spans
taken out (R), a quarter with many or long ones (X). The model stays causal, in what it reads too,
so that whatever generates with it goes on doing so; marks that the tokenizer lacks become special
tokens with rows of their own. Left out: bidirectional reading of the prefix.
"""

import json
import random
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from onsil.corpus import Corpus, document_text, load_corpus
from onsil.errors import OnsilError, say
from onsil.lineage import Artifact, Run, stage
from onsil.models.checkpoint import load, save
from onsil.models.new_rows import tables_of, with_new_rows
from onsil.models.transformer import Transformer
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.expansion import BASE, load_expansion
from onsil.tokenizer.template import NO_TARGET
from onsil.tokenizer.train import specials_of
from onsil.training.loop import Step, digest_of, report_progress, train
from onsil.training.objectives import (
    Batch,
    causal_batch,
    pieces_of,
    schedule,
    token_loss,
)
from onsil.training.optim import Recipe
from onsil.training.pretraining import bits_per_byte
from onsil.training.samplers import TAGS, UL2R, denoise
from onsil.training.supervised import decoder_in

SENTINELS = tuple(f"<extra_id_{i}>" for i in range(100))  # as T5 calls them


@dataclass(frozen=True)
class Continuation:
    """How to go on. `batch_tokens` a step, of which the share `replayed` is general text; `rate` at
    its peak; in the share `new_rows` of the steps only rows of new tokens learn."""

    epochs: int = 1
    rate: float = 5e-4
    batch_tokens: int = 4096
    context: int = 512
    replayed: float = 0.25
    new_rows: float = 0.1
    objective: Literal["causal", "ul2r"] = "causal"
    seed: int = 0
    compute: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


def mixture(
    domain: Sequence[int], general: Sequence[int], how: Continuation
) -> list[tuple[list[int], list[int]]]:
    """For each step which pieces of the new domain and which of general text it has, from their
    sizes. The domain is read `epochs` times whole; general text as far as it is needed, again from
    the start when it is short."""
    room = round(how.batch_tokens * (1 - how.replayed)) if general else how.batch_tokens
    steps = schedule(list(domain), room, how.epochs, how.seed)
    again = how.batch_tokens - room
    if not again:
        return [(step, []) for step in steps]
    epochs, replay = 1, schedule(list(general), again, 1, how.seed)
    while len(replay) < len(steps):  # orders differ in how many steps they make
        epochs *= 2
        replay = schedule(list(general), again, epochs, how.seed)
    return list(zip(steps, replay[: len(steps)], strict=True))


class Marks(NamedTuple):
    """Ids of UL2's mode tags, by mode, and of its sentinels."""

    tags: dict[str, int]
    sentinels: list[int]


def know_marks(tokenizer) -> tuple[Marks, dict[int, list[int]]]:
    """UL2's marks in a tokenizer, as special tokens; and, for those that were added, their new ids
    with the ids that had spelled them."""
    names = [*TAGS.values(), *SENTINELS]
    missing = [name for name in names if tokenizer.token_to_id(name) is None]
    spelled = [tokenizer.encode(name, add_special_tokens=False).ids for name in missing]
    tokenizer.add_special_tokens(missing)
    tags = {mode: tokenizer.token_to_id(name) for mode, name in TAGS.items()}
    marks = Marks(tags, [tokenizer.token_to_id(name) for name in SENTINELS])
    added = {tokenizer.token_to_id(name): ids for name, ids in zip(missing, spelled, strict=True)}
    return marks, added


def denoising_batch(pieces: Sequence[list[int]], marks: Marks, seed: str) -> Batch:
    """Each piece under one draw from UL2R's mixture: the mode's tag and what is left are read, in
    order, what was taken out is written. A model that reads in order is asked for what it reads,
    too, but for the marks, which nobody could have known."""
    draw, hidden = random.Random(seed), {*marks.tags.values(), *marks.sentinels}
    pairs = [denoise(ids, UL2R, marks.tags, marks.sentinels, draw)[1] for ids in pieces]
    batch = causal_batch([[*source, *target] for source, target in pairs])
    asked = [
        token if at >= len(source) or token not in hidden else NO_TARGET
        for source, target in pairs
        for at, token in enumerate([*source, *target][1:], 1)
    ]
    return replace(batch, targets=torch.tensor([asked]))


def longest_piece(context: int, objective: str) -> int:
    """Tokens a piece may have: a denoised one grows by its tag and two marks a span, a third of its
    length when half of it goes in spans of three."""
    return context if objective == "causal" else 3 * (context - 3) // 4


# ── steps ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def only_rows(model: Transformer, rows: Collection[int]) -> Iterator[dict[str, Tensor]]:
    """The tables of a model while nothing of it learns but some rows: gradients of all other rows
    are nought, of all other weights not computed."""
    tables, hooks = tables_of(model), []
    model.requires_grad_(False)
    for table in tables.values():
        others = torch.ones(len(table), dtype=torch.bool)
        others[list(rows)] = False
        others = others.view(-1, *[1] * (table.dim() - 1))
        table.requires_grad_(True)
        hooks.append(table.register_hook(lambda g, m=others: g.masked_fill(m, 0.0)))
    try:
        yield tables
    finally:
        for hook in hooks:
            hook.remove()
        model.requires_grad_(True)


def row_steps(steps: int, rows: Collection[int], how: Continuation) -> int:
    """How many of the steps train new rows alone; all weights get at least one."""
    return min(steps - 1, round(how.new_rows * steps)) if rows else 0


def continued(
    model: Transformer,
    loss_of: Callable[[int], tuple[Tensor, int]],
    steps: int,
    rows: Collection[int],
    how: Continuation,
    scratch: Path,
    *,
    names_of: Callable[[int], list[str]],
    data: str,
) -> Iterator[Step]:
    """The steps of a continuation, first of the new rows alone, then of everything; from where a
    killed one stopped."""
    first = row_steps(steps, rows, how)
    alone, whole = scratch / "rows", scratch / "whole"
    alone.mkdir(exist_ok=True)
    whole.mkdir(exist_ok=True)
    if first and not (whole / "latest.json").exists():
        with only_rows(model, rows) as tables:
            # Weight decay would move rows that have no gradient.
            yield from train(
                tables,
                loss_of,
                first,
                how.rate,
                alone,
                recipe=Recipe(weight_decay=0.0),
                names_of=names_of,
                data=data,
            )
    weights = dict(model.named_parameters())
    for step in train(
        weights,
        lambda k: loss_of(first + k),
        steps - first,
        how.rate,
        whole,
        names_of=lambda k: names_of(first + k),
        data=data,
    ):
        yield replace(step, number=step.number + first)


# ── the stage ───────────────────────────────────────────────────────────────────────────────────


@stage(version=4)
def continue_pretraining(
    *,
    model: Artifact,
    tokenizer: Artifact,
    corpus: Artifact,
    replay: Artifact | None,
    how: Continuation,
    out: Path,
    run: Run,
) -> dict:
    """A model folder with its tokenizer.json and notes.json. `model`: a decoder, or a base that has
    one; `tokenizer`: its own, or what `expand_tokenizer` made of it; `replay`: a corpus of general
    text, to be read again and to measure forgetting on, or None for neither."""
    torch.set_num_threads(how.threads)
    words = load_tokenizer(tokenizer.path)
    decoder, extra = load(decoder_in(model), how.compute)
    fresh = rows_to_make(model, decoder.shape.vocabulary, words, load_expansion(tokenizer))
    corpora = {"domain": load_corpus(corpus)}
    corpora |= {"general": load_corpus(replay)} if replay is not None else {}
    context = min(how.context, decoder.shape.context)
    own = load_tokenizer(tokenizer / BASE) if fresh else words
    before = held_out_bits(decoder, own, corpora, context)
    marks, added = know_marks(words) if how.objective == "ul2r" else (None, {})
    rows = fresh | added
    decoder = with_new_rows(decoder, rows) if rows else decoder
    room = longest_piece(context, how.objective)
    (domain, mine), (general, theirs) = (
        training_pieces(words, corpora.get(name), room) for name in ("domain", "general")
    )
    general = general if how.replayed else []
    steps = mixture([len(p) for p in domain], [len(p) for p in general], how)
    read = {
        "domain": sum(len(domain[i]) for new, _ in steps for i in new),
        "general": sum(len(general[i]) for _, old in steps for i in old),
    }

    def loss_of(k: int) -> tuple[Tensor, int]:
        new, old = steps[k]
        chosen = [domain[i] for i in new] + [general[i] for i in old]
        if marks is None:
            return token_loss(decoder, causal_batch(chosen))
        return token_loss(decoder, denoising_batch(chosen, marks, f"{how.seed}-{k}"))

    def names_of(k: int) -> list[str]:
        new, old = steps[k]
        return [mine[i] for i in new] + [theirs[i] for i in old]

    told = [replay.digest] if replay is not None else []
    data = digest_of(corpus.digest, tokenizer.digest, told, how)
    loop = continued(
        decoder, loss_of, len(steps), rows, how, run.scratch, names_of=names_of, data=data
    )
    for _ in report_progress(
        loop, len(steps), run.say, say("Continued pretraining", "추가 사전학습"), sum(read.values())
    ):
        pass
    after = held_out_bits(decoder, words, corpora, context)
    seen = {i for piece in domain for i in piece}
    alone = row_steps(len(steps), rows, how)
    notes: dict[str, Any] = {
        "bits_per_byte": {name: [before[name], after[name]] for name in corpora},
        "steps": {"new_rows": alone, "everything": len(steps) - alone},
        "tokens": read,
        "new_rows": len(rows),
        "new_rows_never_seen": sum(i not in seen for i in fresh),
    }
    notes["warnings"] = list(warnings(notes))
    for warning in notes["warnings"]:
        run.say(warning)
    save(decoder, out, run.ancestry, extra)
    if added:
        words.save(str(out / "tokenizer.json"))
    else:
        shutil.copyfile(tokenizer / "tokenizer.json", out / "tokenizer.json")
    (out / "notes.json").write_text(json.dumps(notes, sort_keys=True, ensure_ascii=False) + "\n")
    return notes


def rows_to_make(
    model: Artifact, rows: int, words, spelled: Mapping[int, list[int]]
) -> dict[int, list[int]]:
    """What of an expansion the model has no row for yet: what its own tokenizer.json does not know
    or, where it has none, what lies behind its last row. Raises OnsilError when the tokenizer has
    other words than the model was trained with, or words that nothing spells."""
    vocabulary = words.get_vocab()
    fresh = {i: ids for i, ids in spelled.items() if i >= rows}
    if (model / "tokenizer.json").is_file():
        known = load_tokenizer(model.path).get_vocab()
        moved = next((t for t, i in known.items() if vocabulary.get(t) != i), None)
        if moved is not None:
            raise _other_words(moved, known[moved], vocabulary.get(moved))
        fresh = {i: ids for i, ids in spelled.items() if words.id_to_token(i) not in known}
    lost = next((t for t, i in vocabulary.items() if i >= rows and i not in fresh), None)
    if lost is not None:
        raise _other_words(lost, None, vocabulary[lost])
    return fresh


def held_out_bits(
    decoder: Transformer, words, corpora: Mapping[str, Corpus], context: int
) -> dict[str, float | None]:
    """Bits per byte of the held-out texts of each corpus, left to right."""
    found = {}
    for name, held in corpora.items():
        texts = [document_text(d) for d in held.heldout]
        size = sum(len(text.encode()) for text in texts)
        pieces = pieces_in(words, texts, context)
        found[name] = bits_per_byte(decoder, pieces, size, len(texts))
    return found


def training_pieces(
    words, corpus: Corpus | None, context: int
) -> tuple[list[list[int]], list[str]]:
    """The training texts of a corpus, cut, and the document of each piece; none of none."""
    pieces, owners = [], []
    for document in corpus.train if corpus else ():
        pieces += pieces_in(words, [document_text(document)], context)
        owners += [document.path] * (len(pieces) - len(owners))
    return pieces, owners


def pieces_in(words, texts: list[str], context: int) -> list[list[int]]:
    ids = [e.ids for e in words.encode_batch(texts, add_special_tokens=False)]
    return pieces_of(ids, context, specials_of(words).end)


def warnings(notes: Mapping[str, Any]) -> Iterator[str]:
    """What a person should look at before using the model."""
    if never := notes["new_rows_never_seen"]:
        yield (
            f"새 행 {never:,}개는 학습에 한 번도 나오지 않았습니다 · "
            f"{never:,} new rows never came up in training"
        )
    if not notes["tokens"]["general"]:
        yield (
            "일반 글을 다시 읽지 않았으므로 전에 알던 것을 잊을 수 있습니다 · "
            "no general text was replayed: what the model could before may be forgotten"
        )
    first, last = notes["bits_per_byte"].get("general") or (None, None)
    if first is not None and last is not None and last > first:
        yield (
            f"일반 글 바이트당 비트 {first} → {last}: 잊은 것이 있습니다 · "
            f"general text went from {first} to {last} bits per byte: some was forgotten"
        )


def _other_words(token: str, there: int | None, here: int | None) -> OnsilError:
    named = f"{token!r} ({there} → {here})"
    return OnsilError(
        en=(
            f"The tokenizer is not the model's, nor grown from it: {named}.",
            "Every row would stand for another word, and training would start from noise.",
            "Give the model's own tokenizer, or what expand_tokenizer made of it.",
        ),
        ko=(
            f"이 모델의 토크나이저도, 거기서 늘린 토크나이저도 아닙니다: {named}.",
            "행마다 다른 낱말을 뜻하게 되어 잡음에서 시작하는 것과 같습니다.",
            "모델의 토크나이저나 그것으로 expand_tokenizer가 만든 것을 주세요.",
        ),
    )
