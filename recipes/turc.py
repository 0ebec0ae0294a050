"""Well-read students learn better (Turc et al. 2019): pre-train the small model first, then let a
teacher judge unlabelled texts for it, then tune it on the few labelled ones.

Korean film reviews, good or bad (NSMC, split by film). The teacher is the encoder that comes with
onsil, read on in the reviews and tuned on the labels; it is made once for all seeds, and it sees no
more labels than the students. Arms, each with the same labels at the end:

    pre-train, distil, tune    PD
    pre-train, tune            PF; its pre-training goes on for as many passes as the others distil
    distil, tune               KD from noise; as many passes of distilling as PD has of both

    python recipes/turc.py
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from proving import prove
from torch import Tensor

from onsil.models.checkpoint import load
from onsil.models.heads import Head, apart, new_head
from onsil.models.shape import encoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.train import load_tokenizer, specials_of
from onsil.training.base import shipped
from onsil.training.loop import train
from onsil.training.objectives import masked_batch, schedule, token_loss
from onsil.training.soft_targets import divergence

DATA = Path(os.environ.get("ONSIL_DATA", "../shared/data"))
CONTEXT, BATCH = 64, 2_048
KINDS = ("나쁨", "좋음")


@dataclass(frozen=True)
class Sizes:
    """`reading`: texts to pre-train on; `transfer`: those the teacher judges; rates of hidden
    words, of distilling and of tuning."""

    student: tuple[int, int] = (128, 2)
    reading: int = 16_000
    transfer: int = 8_000
    labels: int = 1_000
    items: int = 2_000
    reading_passes: int = 3
    distil_passes: int = 4
    tuning_passes: int = 4
    teacher_reading: int = 3
    read_rate: float = 2e-3
    distil_rate: float = 1e-3
    tune_rate: float = 3e-4
    temperature: float = 1.0
    compute: str = "bf16"


@dataclass(frozen=True)
class Reviews:
    """Ids of texts: to read, to be judged by the teacher, labelled ones, those of the test."""

    reading: list[list[int]]
    transfer: list[list[int]]
    labelled: list[list[int]]
    labels: list[int]
    test: list[list[int]]
    answers: list[int]


def rows_of(name: str) -> list[dict]:
    import zstandard

    with zstandard.open(DATA / "nsmc" / f"{name}.jsonl.zst", "rt", encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    random.Random(name).shuffle(rows)
    return rows


def reviews(sizes: Sizes, test: str = "test") -> Reviews:
    """Labelled texts, texts to transfer on and texts to read do not overlap with the test's."""
    words = load_tokenizer(shipped())
    special = specials_of(words)

    def ids(rows: list[dict]) -> list[list[int]]:
        told = words.encode_batch([row["document"] for row in rows])
        return [[special.cls, *e.ids[: CONTEXT - 2], special.sep] for e in told]

    rows, judged = rows_of("train"), rows_of(test)[: sizes.items]
    labelled, rest = rows[: sizes.labels], rows[sizes.labels :]
    return Reviews(
        ids(rest[: sizes.reading]),
        ids(rest[: sizes.transfer]),
        ids(labelled),
        [row["label"] for row in labelled],
        ids(judged),
        [row["label"] for row in judged],
    )


def followed(parameters: dict[str, Tensor], loss_of: Callable, steps: int, rate: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for step in train(parameters, loss_of, steps, rate, Path(scratch), checkpoints=1):
            if step.number % 100 == 0:
                print(f"  {step.number}/{steps} {step.loss:.3f}", file=sys.stderr)


def read(model: Transformer, texts: list[list[int]], passes: int, rate: float, seed: int) -> None:
    """Hidden words."""
    special = specials_of(load_tokenizer(shipped()))
    steps = schedule([len(t) for t in texts], BATCH, passes, seed)

    def loss_of(k: int):
        some = [texts[i] for i in steps[k]]
        seeded = f"{seed}-{k}"
        return token_loss(model, masked_batch(some, model.shape.vocabulary, seeded, special.mask))

    if passes:
        followed(dict(model.named_parameters()), loss_of, len(steps), rate)


def scores(model: Transformer, head: Head, texts: list[list[int]]) -> Tensor:
    """N × kinds."""
    lengths = [len(text) for text in texts]
    x_1TD = model.encode(torch.tensor([[t for text in texts for t in text]]), lengths=lengths)
    return head(*apart(x_1TD, lengths))


@torch.no_grad()
def all_scores(model: Transformer, head: Head, texts: list[list[int]]) -> Tensor:
    parts = [scores(model, head, texts[i : i + 64]) for i in range(0, len(texts), 64)]
    return torch.cat(parts)


Judge = tuple[Transformer, Head]


def learn(
    judge: Judge,
    texts: list[list[int]],
    loss: Callable[[Tensor, list[int]], tuple[Tensor, int]],
    passes: int,
    rate: float,
    seed: int,
) -> None:
    """Train stack and head on `loss(scores, which texts)`."""
    model, head = judge
    steps = schedule([len(t) for t in texts], BATCH, passes, seed)
    parts = (("model", model), ("head", head))
    named = {f"{part}.{n}": p for part, m in parts for n, p in m.named_parameters()}
    if passes:
        followed(
            named,
            lambda k: loss(scores(model, head, [texts[i] for i in steps[k]]), steps[k]),
            len(steps),
            rate,
        )


def distil(judge: Judge, texts: list[list[int]], told_NK: Tensor, sizes: Sizes, passes, seed):
    """Soft cross-entropy to the teacher's scores (its entropy does not matter)."""

    def loss(said_BK: Tensor, which: list[int]):
        return divergence(said_BK, told_NK[which], sizes.temperature), len(which)

    learn(judge, texts, loss, passes, sizes.distil_rate, seed)


def tune(judge: Judge, known: Reviews, sizes: Sizes, seed: int) -> None:
    labels = torch.tensor(known.labels)

    def loss(said_BK: Tensor, which: list[int]):
        return judge[1].loss(said_BK, labels[which])

    learn(judge, known.labelled, loss, sizes.tuning_passes, sizes.tune_rate, seed)


def right(judge: Judge, known: Reviews) -> list[float]:
    told = all_scores(*judge, known.test).argmax(1)
    return (told == torch.tensor(known.answers)).float().tolist()


def arms_of(known: Reviews, sizes: Sizes) -> dict[str, Callable[[int], list[float]]]:
    @cache
    def teacher() -> Judge:
        model = load(shipped() / "encoder", sizes.compute)[0]
        read(model, known.reading, sizes.teacher_reading, sizes.read_rate / 4, 1_000)
        judge = new_head(model, "sequence", KINDS, seed=1_000)
        tune(judge, known, sizes, 1_000)
        return judge

    @cache
    def told() -> Tensor:
        return all_scores(*teacher(), known.transfer)

    def student(seed: int, reading: int, distilling: int) -> list[float]:
        words = load_tokenizer(shipped()).get_vocab_size()
        shape = encoder_shape(words, *sizes.student, CONTEXT)
        model = Transformer(shape, sizes.compute).initialise(seed)
        read(model, known.reading, reading, sizes.read_rate, seed)
        judge = new_head(model, "sequence", KINDS, seed=seed)
        if distilling:
            distil(judge, known.transfer, told(), sizes, distilling, seed)
        tune(judge, known, sizes, seed)
        return right(judge, known)

    both = sizes.reading_passes + sizes.distil_passes
    return {
        "PD": lambda seed: student(seed, sizes.reading_passes, sizes.distil_passes),
        "PF": lambda seed: student(seed, both, 0),
        "KD from noise": lambda seed: student(seed, 0, both),
        "teacher": lambda seed: right(teacher(), known),
    }


def main(seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    torch.set_num_threads(1)
    sizes = Sizes()
    arms = arms_of(reviews(sizes), sizes)
    arms["teacher"](0)  # so that no arm's time has it
    return prove(
        "turc",
        "pre-train, distil, tune > pre-train, tune; and > distil from noise, tune",
        arms,
        [("PD", "PF"), ("PD", "KD from noise")],
        seeds,
        asdict(sizes) | {"data": "nsmc"},
    )


if __name__ == "__main__":
    main()
