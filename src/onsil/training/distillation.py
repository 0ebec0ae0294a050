"""Teacher to student: three stages, by what the student is shown.

    distill   level="token"  what the teacher thinks of every next (or hidden) word
              level="span"   how likely it finds each stretch of text, across tokenizers
    teach     its k likeliest words for a corpus, written down; `distill` takes that folder as the
              teacher, and the teacher itself need not be in memory
    compose   texts the teacher writes, as a corpus: `pretrain` on it is distillation by sequences
              (Kim & Rush 2016), whatever the two vocabularies are

What a teacher may do is asked first (`permission`), then whether both mean the same words: token by
token, one id must be one word. The student has the plan's size and starts from noise, or goes on
from a model. Losses: `soft_targets`, `alignment`. Left out: layers as targets (a loss,
`soft_targets.hidden_loss`, not yet a stage) and teachers that are encoder-decoders.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from onsil.corpus import document_text, load_corpus
from onsil.documents.types import Block, Document, write_documents
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, stage
from onsil.models.checkpoint import load, save
from onsil.models.transformer import Transformer
from onsil.models.weights import read_json, stable_bytes
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import specials_of
from onsil.training.alignment import span_loss, span_pieces
from onsil.training.finetuning import note_point
from onsil.training.loop import digest_of, report_progress, train
from onsil.training.objectives import causal_batch, masked_batch, pieces_of, schedule
from onsil.training.permission import check_teacher
from onsil.training.plan import Plan, load_plan, rate_of
from onsil.training.pretraining import beginning, bits_per_byte, kept_curve, owners_of
from onsil.training.prompted import refuse_prompted
from onsil.training.soft_targets import Kept, kept_loss, kept_of, soft_loss

Level = Literal["token", "span"]
TAUGHT, WORDS = "taught.json", "tokenizer.json"
SHARD = 4_000_000  # kept words a file
STEP = 4_096  # tokens the teacher reads at once


class Course(NamedTuple):
    """What a run goes through: the tokens of each piece and what it is called, and the loss of step
    k's pieces."""

    sizes: list[int]
    names: list[str]
    loss_of: Callable[[int, list[int]], tuple[Tensor, int]]


@stage(version=5)
def distill(
    *,
    teacher: Artifact,
    corpus: Artifact,
    tokenizer: Artifact,
    plan: Artifact,
    student: Artifact | None = None,
    teacher_tokenizer: Artifact | None = None,
    level: Level = "token",
    temperature: float = 1.0,
    hard: float = 0.0,
    permission: str = "",
    out: Path,
    run: Run,
) -> dict:
    """A student of the teacher's kind and curve.json, trained on (1 − hard) · the teacher + hard ·
    the text. `teacher`: a checkpoint, or what `teach` wrote; `student`: a checkpoint to go on from,
    else one of the plan's size from noise. Notes: licence of the teacher, parameters, steps and,
    of a decoder, held-out bits per byte.

    Raises OnsilError when the teacher may not teach, when one of the two has a learnt prompt before
    it, or when level is "token" and they do not have the same words.
    """
    settings, words = load_plan(plan), load_tokenizer(tokenizer.path)
    torch.set_num_threads(settings.threads)
    for given in filter(None, (teacher, student)):
        refuse_prompted(given.path)
    told: Any = read_json(teacher / TAUGHT) if (teacher / TAUGHT).is_file() else None
    allowed = told["teacher"] if told else check_teacher(teacher.path, permission)
    theirs: Any = None if told else load(teacher.path, settings.compute)[0].eval()
    other_words = words_of_teacher(teacher, teacher_tokenizer)
    if level == "token":
        check_words(words, other_words, told["vocabulary"] if told else theirs.shape.vocabulary)
    elif told or other_words is None:
        raise _no_spans(teacher)
    model, extra = student_for(student, settings, words, told is not None or theirs.shape.causal)
    held = load_corpus(corpus)
    if told:
        course = by_what_was_written(model, teacher.path, settings, told["temperature"], hard)
    elif level == "span":
        course = by_spans(model, theirs, held.train, (words, other_words), temperature, hard)
    else:
        course = by_words(model, theirs, held.train, words, settings, temperature, hard)
    data = digest_of(teacher.digest, corpus.digest, tokenizer.digest, plan.digest)
    numbers, curve = follow(course, model, settings, run, data)
    notes: dict[str, Any] = {"teacher": allowed} | numbers
    save(model, out, run.ancestry, extra)
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    if model.shape.causal:
        heldout = [document_text(d) for d in held.heldout]
        ids = [e.ids for e in words.encode_batch(heldout)]
        pieces = pieces_of(ids, model.shape.context, specials_of(words).end)
        size = sum(len(text.encode()) for text in heldout)
        notes["heldout_bits_per_byte"] = bits_per_byte(model, pieces, size, len(ids))
    return notes


def follow(
    course: Course, model: Transformer, settings: Plan, run: Run, data: str
) -> tuple[dict[str, int], list]:
    """Train the model on a course for the plan's epochs: what to note, and the curve."""
    epochs = settings.decoder_epochs if model.shape.causal else settings.encoder_epochs
    rate = rate_of(settings, model.shape.width) / (1 if model.shape.causal else 3)
    steps = schedule(course.sizes, settings.batch_tokens, epochs, settings.seed)
    tokens, curve = sum(course.sizes) * epochs, kept_curve(run.scratch)

    def loss_of(k: int) -> tuple[Tensor, int]:
        return course.loss_of(k, steps[k])

    loop = train(
        dict(model.named_parameters()),
        loss_of,
        len(steps),
        rate,
        run.scratch,
        names_of=lambda k: [course.names[i] for i in steps[k]],
        data=data,
    )
    for step in report_progress(loop, len(steps), run.say, "증류 학습", tokens):
        note_point(curve, step, len(steps), run.scratch)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "steps": len(steps), "tokens": tokens}, curve


def student_for(
    student: Artifact | None, settings: Plan, words, causal: bool
) -> tuple[Transformer, dict[str, Tensor]]:
    """The model that learns, and tensors of its task head. Raises OnsilError when it is not of the
    teacher's kind."""
    if student is None:
        kind = "decoder" if causal else "encoder"
        return beginning(None, kind, settings, words.get_vocab_size(), settings.compute)
    model, extra = load(student.path, settings.compute)
    if model.shape.causal != causal:
        kinds = ("encoder", "decoder")
        raise OnsilError(
            en=(
                f"The student is a {kinds[not causal]}, the teacher a {kinds[causal]}.",
                "One guesses hidden words, the other the next one: there is nothing to compare.",
                "Give a student of the teacher's kind, or none for one of the plan's size.",
            ),
            ko=(
                f"학생은 {kinds[not causal]}이고 교사는 {kinds[causal]}입니다.",
                "하나는 가린 낱말을, 하나는 다음 낱말을 맞히므로 서로 견줄 수 없습니다.",
                "교사와 같은 종류의 학생을 주거나, 비워 두고 계획의 크기로 만들어 주세요.",
            ),
        )
    return model, extra


# ── the three ways ──────────────────────────────────────────────────────────────────────────────


def by_words(
    model: Transformer,
    teacher: Transformer,
    documents: Sequence[Document],
    words,
    settings: Plan,
    temperature: float,
    hard: float,
) -> Course:
    """Every target of the pieces, judged against the teacher; an encoder's words are hidden anew
    in each step."""
    special = specials_of(words)
    context = min(settings.context, model.shape.context, teacher.shape.context)
    ids = [e.ids for e in words.encode_batch([document_text(d) for d in documents])]
    pieces = pieces_of(ids, context, special.end)

    def loss_of(k: int, chosen: list[int]) -> tuple[Tensor, int]:
        some = [pieces[i] for i in chosen]
        if model.shape.causal:
            batch = causal_batch(some)
        else:
            seed = f"{settings.seed}-{k}"
            batch = masked_batch(some, words.get_vocab_size(), seed, special.mask)
        return soft_loss(model, teacher, batch, temperature, hard)

    return Course([len(piece) for piece in pieces], owners_of(documents, ids, context), loss_of)


def by_what_was_written(
    model: Transformer, folder: Path, settings: Plan, temperature: float, hard: float
) -> Course:
    """The pieces and kept words of a `teach` folder, read from disk as they are needed; a piece
    that is longer than the student's context is cut as `pieces_of` cuts."""
    context = min(settings.context, model.shape.context)
    shards = [safe_open(file, framework="pt") for file in sorted(folder.glob("kept*.safetensors"))]
    pieces: list[list[int]] = []
    places: list[tuple[int, int]] = []  # shard, first row
    for number, shard in enumerate(shards):
        lengths = shard.get_tensor("lengths").tolist()
        at = 0
        for ids in shard.get_tensor("tokens").split(lengths):
            for start in range(0, len(ids) - 1, context - 1):
                pieces.append(ids[start : start + context].tolist())
                places.append((number, at + start))
            at += len(ids) - 1

    def kept(i: int) -> Kept:
        shard, start = places[i]
        end = start + len(pieces[i]) - 1
        ids, logs = (shards[shard].get_slice(name)[start:end] for name in ("ids", "logs"))
        return Kept(ids, logs)

    def loss_of(k: int, chosen: list[int]) -> tuple[Tensor, int]:
        batch = causal_batch([pieces[i] for i in chosen])
        told = Kept(*(torch.cat(parts) for parts in zip(*map(kept, chosen), strict=True)))
        return kept_loss(model, batch, told, temperature, hard)

    names = [f"kept-{shard:05} row {row}" for shard, row in places]
    return Course([len(piece) for piece in pieces], names, loss_of)


def by_spans(
    model: Transformer,
    teacher: Transformer,
    documents: Sequence[Document],
    words: tuple[Any, Any],
    temperature: float,
    hard: float,
) -> Course:
    """The stretches of text that both tokenizations can speak of."""
    contexts = (model.shape.context, teacher.shape.context)
    pieces, names = [], []
    for document in documents:
        pieces += span_pieces(document_text(document), *words, contexts)
        names += [document.path] * (len(pieces) - len(names))

    def loss_of(k: int, chosen: list[int]) -> tuple[Tensor, int]:
        return span_loss(model, teacher, [pieces[i] for i in chosen], temperature, hard)

    return Course([len(piece.student) for piece in pieces], names, loss_of)


# ── one id, one word ────────────────────────────────────────────────────────────────────────────


def words_of_teacher(teacher: Artifact, given: Artifact | None):
    """The teacher's tokenizer: the one given, else the one in its folder, else None (a model grown
    here has the run's)."""
    home = given or teacher
    return load_tokenizer(home.path) if (home / WORDS).is_file() else None


def check_words(words, other_words, rows: int) -> None:
    """Raises OnsilError unless every id of the teacher's vocabulary is the same word to the
    student. Rows a table has beyond its tokenizer's words do not matter; without a tokenizer the
    sizes must agree."""
    own, size = words.get_vocab(), words.get_vocab_size()
    if other_words is None:
        if rows == size:
            return
        theirs, differing = rows, abs(rows - size)
    else:
        other = other_words.get_vocab()
        theirs = len(other)
        differing = sum(own.get(word) != i for word, i in other.items())
        if not differing:
            return
    raise OnsilError(
        en=(
            f"The teacher has {theirs:,} words and the student {size:,}; {differing:,} ids differ.",
            "Word by word, one id must be the same word to both, or the student learns nonsense.",
            'Use level="span", which compares stretches of text, or let the teacher write texts '
            "(compose) and pretrain on them.",
        ),
        ko=(
            f"교사의 어휘는 {theirs:,}개, 학생의 어휘는 {size:,}개이고, "
            f"{differing:,}개 번호가 서로 다릅니다.",
            "토큰 단위로 배우려면 같은 번호가 같은 낱말이어야 합니다. 아니면 엉뚱한 것을 배웁니다.",
            'level="span"으로 글의 구간을 견주거나, 교사가 쓴 글(compose)로 pretrain해 주세요.',
        ),
    )


def _no_spans(teacher: Artifact) -> OnsilError:
    return OnsilError(
        en=(
            f"{teacher.path.name[:12]} has no tokenizer.json or no weights to read a text with.",
            "Spans need the teacher itself and its own tokens of the text.",
            "Give teacher_tokenizer=..., and a model rather than its kept words.",
        ),
        ko=(
            f"{teacher.path.name[:12]}에 글을 읽을 tokenizer.json이나 가중치가 없습니다.",
            "구간을 견주려면 교사 모델과 그 토크나이저가 있어야 합니다.",
            "teacher_tokenizer=...를 주고, 적어 둔 낱말이 아니라 모델을 교사로 써 주세요.",
        ),
    )


# ── what a teacher leaves behind ────────────────────────────────────────────────────────────────


@stage(version=1)
def teach(
    *,
    teacher: Artifact,
    corpus: Artifact,
    tokenizer: Artifact,
    top: int = 32,
    context: int = 512,
    temperature: float = 1.0,
    permission: str = "",
    out: Path,
    run: Run,
) -> dict:
    """A decoder's `top` likeliest words for every token of a corpus: kept-NNNNN.safetensors
    (`tokens` and `lengths` of the pieces, `ids` and `logs` of the words: 8 · top bytes a token),
    taught.json and tokenizer.json. Raises OnsilError as `distill` does, and for an encoder: what it
    says depends on what is hidden, which changes with every step."""
    words = load_tokenizer(tokenizer.path)
    refuse_prompted(teacher.path)
    allowed = check_teacher(teacher.path, permission)
    model = load(teacher.path)[0].eval()
    check_words(words, words_of_teacher(teacher, None), model.shape.vocabulary)
    if not model.shape.causal:
        raise OnsilError(
            en=(
                f"{teacher.path.name[:12]} is an encoder: its words cannot be kept.",
                "What it says depends on which words are hidden, and each step hides others.",
                "Give it to distill itself.",
            ),
            ko=(
                f"{teacher.path.name[:12]}은 인코더라서 낱말을 적어 둘 수 없습니다.",
                "어느 낱말을 가리느냐에 따라 답이 달라지는데, 걸음마다 다른 낱말을 가립니다.",
                "distill에 모델을 그대로 주세요.",
            ),
        )
    texts = [document_text(d) for d in load_corpus(corpus).train]
    ids = [e.ids for e in words.encode_batch(texts)]
    context = min(context, model.shape.context)
    pieces = [p for p in pieces_of(ids, context, specials_of(words).end) if len(p) > 1]
    room = max(context, SHARD // top)
    shards = schedule_in_order(pieces, room)
    for number, shard in enumerate(shards):
        parts = [
            kept_of(model, causal_batch(some), top, temperature, words.get_vocab_size())
            for some in schedule_in_order(shard, STEP)
        ]
        tensors = {
            "tokens": torch.tensor([t for piece in shard for t in piece], dtype=torch.int32),
            "lengths": torch.tensor([len(piece) for piece in shard], dtype=torch.int32),
            "ids": torch.cat([part.ids_NK for part in parts]).int(),
            "logs": torch.cat([part.logs_NK for part in parts]),
        }
        (out / f"kept-{number:05}.safetensors").write_bytes(stable_bytes(tensors, {}))
        run.say(f"{100 * (number + 1) // len(shards):3d} %")
    (out / WORDS).write_bytes((tokenizer / WORDS).read_bytes())
    told = {
        "teacher": allowed,
        "vocabulary": model.shape.vocabulary,
        "top": top,
        "temperature": temperature,
    }
    (out / TAUGHT).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    return told | {"tokens": sum(len(piece) - 1 for piece in pieces)}


def schedule_in_order(pieces: list[list[int]], room: int) -> list[list[list[int]]]:
    """Runs of neighbouring pieces of about `room` tokens."""
    runs: list[list[list[int]]] = []
    size = math.inf
    for piece in pieces:
        if size + len(piece) > room:
            runs.append([])
            size = 0
        runs[-1].append(piece)
        size += len(piece)
    return runs


@stage(version=1)
def compose(
    *,
    teacher: Artifact,
    tokenizer: Artifact,
    corpus: Artifact,
    texts: int,
    opening: int = 16,
    length: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    permission: str = "",
    out: Path,
    run: Run,
) -> dict:
    """A corpus of texts the teacher wrote, one for each of `texts` documents spread over the
    training split: their first `opening` tokens and up to `length` of its own, drawn at the
    temperature (0: the likeliest). The held-out documents stay what they are."""
    from onsil.inference.generation import Sampling, load_writer, written

    refuse_prompted(teacher.path)
    allowed = check_teacher(teacher.path, permission)
    writer = load_writer(teacher.path, tokenizer.path, load)
    held = load_corpus(corpus)
    chosen = [held.train[i * len(held.train) // texts] for i in range(texts)] if held.train else []
    made: list[Document] = []
    for n, document in enumerate(chosen):
        begun = writer.tokenizer.encode(document_text(document)).ids[:opening]
        if not begun:
            continue
        how = Sampling(temperature, seed=seed + n)
        said = written(writer.model, begun, writer.stop, length, how, writer.start)
        text = writer.tokenizer.decode([*begun, *said])
        path, digest = f"composed/{n:06}", hashlib.sha256(text.encode()).hexdigest()
        blocks = tuple(Block("paragraph", line) for line in text.splitlines() if line.strip())
        made.append(Document(path, digest, "text", "", blocks))
        if n % 100 == 0:
            run.say(f"{100 * n // texts:3d} %")
    split = dict.fromkeys((d.path for d in made), "train")
    split |= dict.fromkeys((d.path for d in held.heldout), "heldout")
    write_documents([*made, *held.heldout], out / "documents.jsonl")
    (out / "split.json").write_text(
        json.dumps(split, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    return {"teacher": allowed, "texts": len(made)}
