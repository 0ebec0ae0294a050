"""The plan: everything that decides the bytes of a run, settled before it starts.

A measured speed decides only the plan; training takes the plan as an input artefact. So a slow
machine makes a smaller plan, and two machines with the same plan make the same model. What was
found bit-stable here (docs/log.md, "spike") is what a plan may ask for: bf16 where the processor
has it, two threads, no compiled code.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from onsil.corpus import document_text, load_corpus
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, stage
from onsil.tokenizer import load_tokenizer
from onsil.training.base import shape_in

# Shares of the budget; the rest is reading, evaluation and slack.
SHARES = {"decoder": 0.2, "encoder": 0.15, "reader": 0.4, "generator": 0.1}
# Speed of each part against the decoder step that is measured: the decoder also scores held-out
# text, the other two meet the vocabulary for few rows or none (docs/log.md, "speed").
RELATIVE_SPEED = {"decoder": 0.75, "encoder": 1.5, "reader": 1.6, "generator": 1.5}
MOST_EPOCHS = {"decoder": 12, "encoder": 40, "reader": 12}
FEWEST_LESSONS = 256
# (width, depth) by tokens of text: the larger the corpus, the larger the model it can fill.
SIZES = ((200_000, 128, 4), (2_000_000, 192, 4), (20_000_000, 256, 6), (10**12, 384, 8))


@dataclass(frozen=True)
class Plan:
    """One run. Epochs of zero skip a part; `reader_lessons` of the lessons, evenly spread, are
    read in each, `generator_lessons` once by the generating reader. `tokens_per_second` is what
    was measured, `predicted_*` what follows from it. `base` is the digest of the weights the run
    starts from, empty when it starts from noise."""

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


def load_plan(folder: Artifact | Path) -> Plan:
    return parse_plan((folder / "plan.json").read_text(encoding="utf-8"))


def parse_plan(text: str) -> Plan:
    """A plan from JSON. Raises OnsilError for unknown, missing or mistyped fields."""
    known = {f.name: f.type for f in fields(Plan)}
    try:
        row = json.loads(text)
        wrong = sorted((set(row) ^ set(known)) - {"base"})
        if wrong:
            raise ValueError(f"fields unknown or missing: {', '.join(wrong)}")
        if row["compute"] not in ("fp32", "bf16") or row["compiled"]:
            raise ValueError("compute must be fp32 or bf16, compiled must be false")
        return Plan(**row)
    except (ValueError, TypeError, AttributeError) as e:
        raise OnsilError(
            en=(
                f"This is not a plan: {e}.",
                "A run follows its plan to the letter, so half a plan is none.",
                "Start from the plan.json of a grown model: onsil lineage NAME",
            ),
            ko=(
                f"계획으로 읽을 수 없습니다: {e}.",
                "실행은 계획을 그대로 따르므로 일부만 맞는 계획은 쓸 수 없습니다.",
                "이미 만든 모델의 plan.json에서 시작해 주세요: onsil lineage 이름",
            ),
        ) from e


def processor_has_bf16() -> bool:
    """Whether bf16 matrix products run in hardware (AVX512-BF16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def measure_speed(plan: Plan, vocabulary: int, seconds: float = 3.0) -> int:
    """Training tokens per second of the plan's decoder on this machine, now."""
    import torch

    from onsil.models.shape import decoder_shape
    from onsil.models.transformer import Transformer
    from onsil.training.objectives import causal_batch, token_loss

    torch.set_num_threads(plan.threads)
    model = Transformer(decoder_shape(vocabulary, plan.width, plan.depth), plan.compute)
    model.initialise(0)
    pieces = [list(range(5, 5 + 256)) for _ in range(max(1, plan.batch_tokens // 256))]
    batch = causal_batch(pieces)
    done, start = -1, time.monotonic()
    while time.monotonic() - start < seconds or done < 1:
        loss, _ = token_loss(model, batch)
        loss.backward()
        done += 1
        if done == 0:  # the first step warms up
            start = time.monotonic()
    return round(done * sum(batch.lengths) / (time.monotonic() - start))


def plan_for(
    text_tokens: int,
    lessons: int,
    reading_tokens: int,
    minutes: float,
    seed: int,
    speed_of: Any,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    most: Mapping[str, int] = MOST_EPOCHS,
) -> Plan:
    """The plan for so much text and so many minutes; `speed_of(plan)` measures tokens/s.

    The largest model the text can fill that reads all of it once within its share. No text is left
    out, so a corpus too large for the smallest model makes a plan longer than the budget; lessons
    are, since they repeat one another.
    """
    plan, speed = _largest(text_tokens, minutes, seed, speed_of, sizes)
    epochs, seconds = {}, 0.0
    for part in ("decoder", "encoder"):
        pass_seconds = max(1, text_tokens) / (speed * RELATIVE_SPEED[part])
        epochs[f"{part}_epochs"] = _whole(SHARES[part] * minutes * 60 / pass_seconds, most[part])
        seconds += epochs[f"{part}_epochs"] * pass_seconds
    pass_seconds = max(1, reading_tokens) / (speed * RELATIVE_SPEED["reader"])
    passes = SHARES["reader"] * minutes * 60 / pass_seconds
    read = lessons if passes >= 1 else max(FEWEST_LESSONS, round(lessons * passes))
    read = min(lessons, read)
    epochs["reader_epochs"] = _whole(passes, most["reader"])
    seconds += epochs["reader_epochs"] * pass_seconds * read / max(1, lessons)
    once = max(1, reading_tokens) / (speed * RELATIVE_SPEED["generator"])
    told = min(lessons, round(lessons * SHARES["generator"] * minutes * 60 / once))
    seconds += once * told / max(1, lessons)
    return replace(
        plan,
        **epochs,
        reader_lessons=read,
        generator_lessons=told,
        tokens_per_second=speed,
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
) -> tuple[Plan, int]:
    """The size for a text, made smaller until one pass over it fits; and its measured speed."""
    share = (SHARES["decoder"] + SHARES["encoder"]) * minutes * 60
    passes = 1 / RELATIVE_SPEED["decoder"] + 1 / RELATIVE_SPEED["encoder"]
    last = next(n for n, (most, _, _) in enumerate(sizes) if text_tokens <= most)
    for n in range(last, -1, -1):
        _, width, depth = sizes[n]
        plan = Plan(
            width=width,
            depth=depth,
            context=512,
            batch_tokens=2048 if text_tokens < 2_000_000 else 4096,
            learning_rate=0.002 if width <= 192 else 0.001,
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
        speed = speed_of(plan)
        if n == 0 or text_tokens * passes / speed <= share:
            return plan, speed
    raise AssertionError("the smallest size ends the loop")


@stage(version=6)
def make_plan(
    *,
    corpus: Artifact,
    tokenizer: Artifact,
    lessons: Artifact,
    minutes: float = 6.0,
    seed: int = 0,
    base: Artifact | None = None,
    out: Path,
    run: Run,
) -> dict:
    """plan.json for a corpus, its lessons and a budget in minutes of this machine; a base fixes
    the model's size."""
    encoder = load_tokenizer(tokenizer.path)
    texts = [document_text(d) for d in load_corpus(corpus).train]
    text_tokens = sum(len(e.ids) for e in encoder.encode_batch(texts))
    reading_tokens = count = 0
    with (lessons / "lessons.jsonl").open(encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            if row["split"] == "train":
                count += 1
                reading_tokens += 3 + len(encoder.encode(row["question"] + row["passage"]).ids)
    vocabulary = encoder.get_vocab_size()
    shape = shape_in(base, "encoder") or shape_in(base, "decoder")
    sizes = SIZES if shape is None else ((10**12, shape.width, shape.depth),)

    def speed_of(plan: Plan) -> int:
        return measure_speed(plan, vocabulary)

    # An encoder that can read already forgets more from hidden words than it learns.
    most = MOST_EPOCHS | ({"encoder": 1} if shape_in(base, "encoder") else {})
    plan = plan_for(text_tokens, count, reading_tokens, minutes, seed, speed_of, sizes, most)
    plan = replace(plan, base=base.digest if base else "")
    (out / "plan.json").write_text(json.dumps(asdict(plan), indent=2) + "\n")
    return {"text_tokens": text_tokens, "reading_tokens": reading_tokens} | asdict(plan)


@stage(version=4)
def adopt_plan(*, text: str, out: Path, run: Run) -> dict:
    """A plan given as text: for repeating a run exactly."""
    plan = parse_plan(text)
    (out / "plan.json").write_text(json.dumps(asdict(plan), indent=2) + "\n")
    return asdict(plan)
