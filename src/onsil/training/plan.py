"""The plan: everything that decides the bytes of a run, settled before it starts.

A measured speed decides only the plan; training takes the plan as an input artefact. So a slow
machine makes a smaller plan, and two machines with the same plan make the same model. What was
found bit-stable here (docs/log.md, "spike") is what a plan may ask for: bf16 where the processor
has it, two threads, and compiled stretches where a C++ compiler is and the decoder's training is
long enough to pay for it.

Beside what it decides, a plan says what it expects: seconds, steps, memory, energy, and bits per
byte where earlier runs allow a forecast (`scaling`). The report puts what came of it beside that.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from onsil.corpus import Corpus, document_text, load_corpus
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, stage
from onsil.models.shape import Shape, hybrid_shape
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import specials_of
from onsil.training.base import shape_in
from onsil.training.energy import Meter, watts_per_core
from onsil.training.memory import (
    machine_memory,
    nearest_shape,
    processor_flags,
    refuse_beyond,
    resident,
    training_memory,
    weights_in,
)
from onsil.training.request import MINUTES, too_few
from onsil.training.speed import faster, measure_speed

# Shares of the budget; the rest is reading, evaluation and slack.
SHARES = {"decoder": 0.2, "encoder": 0.15, "reader": 0.4, "generator": 0.1}
# Speed of each part against the step that is measured, a decoder's of its size: the decoder also
# scores held-out text, the others meet the vocabulary for few rows or none (docs/log.md, "speed").
RELATIVE_SPEED = {"decoder": 0.75, "encoder": 1.5, "reader": 1.2, "generator": 0.8}
MOST_EPOCHS = {"decoder": 12, "encoder": 40, "reader": 12}
# An encoder that can read forgets more from hidden words than it learns; a decoder that can write
# learns a small text by heart after four passes (docs/log.md, "Base as the start").
MOST_FROM_BASE = {"decoder": 4, "encoder": 1}
FEWEST_LESSONS, FEEDBACK = 256, "feedback"  # the kind of lesson that every reader reads
# (width, depth) by tokens of text: the larger the corpus, the larger the model it can fill.
SIZES = ((200_000, 128, 4), (2_000_000, 192, 4), (20_000_000, 256, 6), (10**12, 384, 8))
CONTEXT = 512
ABOVE_ZERO = ("width", "depth", "context", "batch_tokens", "learning_rate", "threads")
LEAST, LARGEST_SEED = {"context": 8}, 2**63
LARGEST_BATCH = 2  # the readers' batches are so many times the plan's
FEW_PASSES = 2  # so many that a decoder from noise does not learn the text by heart
WORDS = {"compute": ("fp32", "bf16"), "decoder_recipe": ("adamw", "muon")}


@dataclass(frozen=True)
class Plan:
    """One run. Epochs of zero skip a part; `reader_lessons` of the lessons, evenly spread, are
    read in each, `generator_lessons` once by the generating reader; those of adopted feedback are
    always among them. `tokens_per_second` is what
    was measured, `predicted_*` what follows from it. `base` is the digest of the weights the run
    starts from, empty when it starts from noise. `learning_rate` is AdamW's peak at this width,
    from which the other parts take their share; the decoder is pretrained by `decoder_recipe`
    (`optim.RECIPES`) at `decoder_rate`, or, where a plan by hand or an older one does not say, by
    AdamW at the learning rate, as its own width wants it.

    From `parameters` (weights of the decoder) on nothing decides anything: 0 or empty is what an
    older plan did not say. Bits per byte are of held-out text; `no_forecast` tells why there are
    none. Memory is the process's peak while training; `watts` is what the processor was measured
    or is modelled (`energy_source`) to draw meanwhile."""

    width: int
    depth: int
    context: int
    batch_tokens: int
    learning_rate: float
    decoder_epochs: int
    encoder_epochs: int
    reader_epochs: int
    reader_lessons: int
    generator_lessons: int
    compute: str
    threads: int
    compiled: bool
    seed: int
    minutes: float
    tokens_per_second: int
    predicted_seconds: int
    base: str = ""
    decoder_recipe: str = "adamw"
    decoder_rate: float = 0.0
    parameters: int = 0
    decoder_tokens: int = 0
    decoder_steps: int = 0
    encoder_steps: int = 0
    trigram_bits_per_byte: float = 0.0
    predicted_bits_per_byte: float = 0.0
    bits_low: float = 0.0
    bits_high: float = 0.0
    no_forecast: str = ""
    predicted_memory_mb: int = 0
    watts: float = 0.0
    predicted_watt_hours: float = 0.0
    energy_source: str = ""


def load_plan(folder: Artifact | Path) -> Plan:
    return parse_plan((folder / "plan.json").read_text(encoding="utf-8"))


def parse_plan(text: str) -> Plan:
    """A plan from JSON. Raises OnsilError for unknown or missing fields and impossible values."""
    known = {f.name: f for f in fields(Plan)}
    needed = {name for name, f in known.items() if f.default is MISSING}
    try:
        row = json.loads(text)
    except ValueError as e:
        raise _no_plan(f"JSON, {e}", f"JSON, {e}") from e
    if not isinstance(row, dict):
        raise _no_plan(f"{row!r} has no fields", f"{row!r}에는 항목이 없습니다")
    if wrong := ", ".join(sorted((set(row) - set(known)) | (needed - set(row)))):
        raise _no_plan(f"fields unknown or missing: {wrong}", f"모르거나 빠진 항목: {wrong}")
    for name, value in row.items():
        if not _possible(name, known[name].type, value):
            raise _no_plan(f"{name} is {value!r}", f"{name} 값 {value!r}")
    return Plan(**row)


def spelling_of(plan: Plan) -> str:
    """The one text of a plan that training adopts: however it was spelled, it is the same run."""
    return json.dumps(asdict(plan), indent=2) + "\n"


def rate_for(width: int) -> float:
    """Peak rate of AdamW: larger models take smaller steps."""
    return 0.002 if width <= 192 else 0.001


def rate_of(plan: Plan, width: int) -> float:
    """The plan's rate for a model so wide, which is what all training by a plan takes: what goes on
    from a base or another model may be of another width than the plan's."""
    return plan.learning_rate * rate_for(width) / rate_for(plan.width)


def with_recipe(plan: Plan, own: Shape | None) -> Plan:
    """The plan with how its decoder is pretrained; `own`: the base's decoder, if it has one. One
    that starts from noise and has so much text that it reads it once or twice takes the recipe
    measured for that; many passes over a small folder overfit under it (docs/log.md, "Training
    against nanochat")."""
    from onsil.training.optim import FAST_PEAK

    if own is None and plan.decoder_epochs <= FEW_PASSES:
        return replace(plan, decoder_recipe="muon", decoder_rate=FAST_PEAK)
    rate = rate_of(plan, own.width if own else plan.width)
    return replace(plan, decoder_recipe="adamw", decoder_rate=rate)


def _possible(name: str, kind: Any, value: Any) -> bool:
    if type(value) is not kind and not (kind is float and type(value) is int):
        return False
    if kind is str:
        return name not in WORDS or value in WORDS[name]
    if kind is bool:
        return True
    if name == "width" and value > 0:  # heads are equally wide, and rotation turns pairs
        return value % (2 * max(2, value // 64)) == 0
    most = LARGEST_SEED if name == "seed" else math.inf
    return LEAST.get(name, 0) <= value < most and (value > 0 or name not in ABOVE_ZERO)


def _no_plan(en: str, ko: str) -> OnsilError:
    return OnsilError(
        en=(
            f"This is not a plan: {en}.",
            "A run follows its plan to the letter, so half a plan is none.",
            "Start from the plan.json of a grown model: onsil lineage NAME",
        ),
        ko=(
            f"계획으로 읽을 수 없습니다: {ko}.",
            "실행은 계획을 그대로 따르므로 일부만 맞는 계획은 쓸 수 없습니다.",
            "이미 만든 모델의 plan.json에서 시작해 주세요: onsil lineage 이름",
        ),
    )


def processor_has_bf16() -> bool:
    """Whether bf16 matrix products run in hardware (AVX512-BF16 or AMX)."""
    flags = processor_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def plan_for(
    text_tokens: int,
    lessons: int,
    reading_tokens: int,
    minutes: float,
    seed: int,
    speed_of: Any,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    most: Mapping[str, int] = MOST_EPOCHS,
    passes_asked: int = 0,
) -> Plan:
    """The plan for so much text and so many minutes; `speed_of(plan)` measures tokens/s of the
    decoder, and of one in the size of the encoder.

    The largest model the text can fill that reads all of it once within its share. No text is left
    out, so a corpus too large for the smallest model makes a plan longer than the budget; lessons
    are, since they repeat one another. With `passes_asked` the decoder reads the text so often, in
    the largest model it can fill, and the minutes are those that this takes of its share.
    """
    plan, speeds = _largest(text_tokens, minutes or float("inf"), seed, speed_of, sizes)
    if passes_asked:
        decoding = passes_asked * max(1, text_tokens) / speeds["decoder"]
        minutes = decoding / SHARES["decoder"] / 60
        plan, most = replace(plan, minutes=round(minutes, 2)), {**most, "decoder": passes_asked}
    epochs, seconds = {}, 0.0
    for part in ("decoder", "encoder"):
        pass_seconds = max(1, text_tokens) / speeds[part]
        epochs[f"{part}_epochs"] = _whole(SHARES[part] * minutes * 60 / pass_seconds, most[part])
        seconds += epochs[f"{part}_epochs"] * pass_seconds
    pass_seconds = max(1, reading_tokens) / speeds["reader"]
    passes = SHARES["reader"] * minutes * 60 / pass_seconds
    read = lessons if passes >= 1 else max(FEWEST_LESSONS, round(lessons * passes))
    read = min(lessons, read)
    epochs["reader_epochs"] = _whole(passes, most["reader"])
    seconds += epochs["reader_epochs"] * pass_seconds * read / max(1, lessons)
    once = max(1, reading_tokens) / speeds["generator"]
    told = min(lessons, round(lessons * SHARES["generator"] * minutes * 60 / once))
    seconds += once * told / max(1, lessons)
    return replace(
        plan,
        **epochs,
        reader_lessons=read,
        generator_lessons=told,
        predicted_seconds=round(seconds),
    )


def _whole(wanted: float, most: int) -> int:
    return max(1, min(most, round(wanted)))


def _largest(
    text_tokens: int,
    minutes: float,
    seed: int,
    speed_of: Any,
    sizes: Sequence[tuple[int, int, int]],
) -> tuple[Plan, dict[str, float]]:
    """The size for a text, made smaller until one pass over it fits; and tokens/s of each part."""
    share = (SHARES["decoder"] + SHARES["encoder"]) * minutes * 60
    last = next(n for n, (most, _, _) in enumerate(sizes) if text_tokens <= most)
    for n in range(last, -1, -1):
        _, width, depth = sizes[n]
        plan = Plan(
            width=width,
            depth=depth,
            context=CONTEXT,
            batch_tokens=2048 if text_tokens < 2_000_000 else 4096,
            learning_rate=rate_for(width),
            decoder_epochs=0,
            encoder_epochs=0,
            reader_epochs=0,
            reader_lessons=0,
            generator_lessons=0,
            compute="bf16" if processor_has_bf16() else "fp32",
            threads=min(2, os.cpu_count() or 1),
            compiled=False,
            seed=seed,
            minutes=minutes,
            tokens_per_second=0,
            predicted_seconds=0,
        )
        writes, reads = speed_of(plan)
        plan = replace(plan, tokens_per_second=writes)
        speeds = {
            part: relative * (reads if part in ("encoder", "reader") else writes)
            for part, relative in RELATIVE_SPEED.items()
        }
        if n == 0 or text_tokens * (1 / speeds["decoder"] + 1 / speeds["encoder"]) <= share:
            return plan, speeds
    raise AssertionError("the smallest size ends the loop")


@dataclass(frozen=True)
class Text:
    """What a plan knows of the text: tokens of each document, bytes, the tokens' own bounds, and
    how many different lengths the documents and lessons have."""

    train: list[list[int]]
    heldout: list[list[int]]
    heldout_bytes: int
    bytes: int
    vocabulary: int
    end: int
    lengths: int = 1


def text_of(held: Corpus, words: Any) -> Text:
    """The corpus in tokens."""
    rendered = [[document_text(d) for d in part] for part in (held.train, held.heldout)]
    train, heldout = ([e.ids for e in words.encode_batch(part)] for part in rendered)
    sizes = [sum(len(text.encode()) for text in part) for part in rendered]
    end = specials_of(words).end
    return Text(train, heldout, sizes[1], sum(sizes), words.get_vocab_size(), end)


@stage(version=16)
def make_plan(
    *,
    corpus: Artifact,
    tokenizer: Artifact,
    lessons: Artifact,
    minutes: float = MINUTES,
    size: int = 0,
    tokens: int = 0,
    seed: int = 0,
    base: Artifact | None = None,
    out: Path,
    run: Run,
) -> dict:
    """plan.json for a corpus, its lessons and a budget in minutes of this machine; a base, or a
    `size` in weights, fixes the shape, and `tokens` of the decoder's training fix the minutes.
    Raises OnsilError when that is less than the text or more than the machine's memory."""
    from onsil.training.objectives import pieces_of

    words = load_tokenizer(tokenizer.path)
    text = text_of(load_corpus(corpus), words)
    text_tokens = sum(map(len, text.train))
    reading: list[int] = []
    with (lessons / "lessons.jsonl").open(encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            if row["split"] == "train":
                reading.append(3 + len(words.encode(row["question"] + row["passage"]).ids))
    own = shape_in(base, "decoder")
    shape = shape_in(base, "encoder") or own
    if size:
        shape, _ = nearest_shape(size, text.vocabulary, CONTEXT)
    sizes = SIZES if shape is None else ((10**12, shape.width, shape.depth),)
    context = min(CONTEXT, own.context) if own else CONTEXT
    pieces = [len(piece) for piece in pieces_of(text.train, context, text.end)]
    text = replace(text, lengths=len({*pieces, *(min(n, context) for n in reading)}))
    once = sum(pieces)
    if 0 < tokens < once:
        raise too_few(tokens, once)
    meter, drawn, reads = Meter(), {}, {}

    def writing(plan: Plan) -> int:
        return measure_speed(plan, text.vocabulary, text_tokens, own)

    def speed_of(plan: Plan) -> tuple[int, int]:
        refuse_beyond(peak_memory(plan, text.vocabulary, own, text.lengths), machine_memory())
        size = plan.width, plan.depth
        speed, drawn[size] = meter.watts(lambda: writing(plan))
        same = own is None or (own.width, own.depth) == size
        reads[size] = speed if same else measure_speed(plan, text.vocabulary, text_tokens)
        return speed, reads[size]

    grown = {part: n for part, n in MOST_FROM_BASE.items() if shape_in(base, part)}
    most = MOST_EPOCHS | grown
    passes = round(tokens / once) if tokens else 0
    figures = (text_tokens, len(reading), sum(reading))
    plan = plan_for(*figures, minutes, seed, speed_of, sizes, most, passes)
    decoding = plan.decoder_epochs * once / (plan.tokens_per_second * RELATIVE_SPEED["decoder"])
    if (found := faster(plan, decoding, writing, run.say)) is not None:
        speeds, pinned = (
            (found[0], reads[plan.width, plan.depth]),
            ((10**12, plan.width, plan.depth),),
        )
        plan = plan_for(*figures, minutes, seed, lambda _: speeds, pinned, most, passes)
        seconds = plan.predicted_seconds + round(found[1])
        plan = replace(plan, compiled=True, predicted_seconds=seconds)
    plan = with_recipe(replace(plan, base=base.digest if base else ""), own)
    plan = expected(plan, text, base, drawn[plan.width, plan.depth])
    (out / "plan.json").write_text(spelling_of(plan))
    return {"text_tokens": text_tokens, "reading_tokens": sum(reading)} | asdict(plan)


def peak_memory(plan: Plan, vocabulary: int, own: Shape | None, lengths: int = 1) -> int:
    """Bytes: what the process has held so far and the largest training step on top; `own`: the
    base's decoder, if it has one; `lengths`: how many different ones documents have."""
    shape = own or hybrid_shape(vocabulary, plan.width, plan.depth, plan.context)
    step = training_memory(shape, plan.compute, LARGEST_BATCH * plan.batch_tokens, lengths)
    return resident() + step.total


def expected(plan: Plan, text: Text, base: Artifact | None, drawn: float | None) -> Plan:
    """The plan with what it expects; `drawn` in watts, None where no counter could be read."""
    from onsil.training.objectives import pieces_of, schedule
    from onsil.training.pretraining import ngram_bits
    from onsil.training.scaling import forecast

    own = shape_in(base, "decoder")
    shape = own or hybrid_shape(text.vocabulary, plan.width, plan.depth, plan.context)
    epochs = {"decoder": plan.decoder_epochs, "encoder": plan.encoder_epochs}
    steps, tokens = {}, {}
    for part, passes in epochs.items():
        kept = shape_in(base, part) or own  # an encoder begins as the decoder
        context = min(plan.context, kept.context) if kept else plan.context
        sizes = [len(p) for p in pieces_of(text.train, context, text.end)]
        steps[f"{part}_steps"] = len(schedule(sizes, plan.batch_tokens, passes, plan.seed))
        tokens[part] = sum(sizes) * passes
    ids = {"train": text.train, "heldout": text.heldout}
    trigram = ngram_bits(ids, text.heldout_bytes, text.vocabulary, text.end)
    bits = forecast(trigram, text.bytes, plan.width, own is not None)
    watts = plan.threads * watts_per_core() if drawn is None else drawn
    return replace(
        plan,
        **steps,
        parameters=weights_in(shape),
        decoder_tokens=tokens["decoder"],
        trigram_bits_per_byte=trigram or 0.0,
        predicted_bits_per_byte=bits.bits,
        bits_low=bits.low,
        bits_high=bits.high,
        no_forecast=bits.why_not,
        predicted_memory_mb=round(peak_memory(plan, text.vocabulary, own, text.lengths) / 2**20),
        watts=round(watts, 2),
        predicted_watt_hours=round(watts * plan.predicted_seconds / 3600, 3),
        energy_source="modelled" if drawn is None else "measured",
    )


@stage(version=7)
def adopt_plan(*, text: str, out: Path, run: Run) -> dict:
    """A plan given as text: for repeating a run exactly."""
    plan = parse_plan(text)
    (out / "plan.json").write_text(spelling_of(plan))
    return asdict(plan)
