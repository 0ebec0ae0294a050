"""Well-read students learn better (Turc et al. 2019): pre-train the small model first, then let a
teacher judge unlabelled texts for it, then tune it on the few labelled ones.

Spoken Korean sentences, and what kind of sentence each is (3i4K, Cho et al. 2018; the four kinds of
`lora.py`). The teacher is the encoder that comes with onsil, read on in the sentences and tuned on
the labels; it is made once for all seeds, and it sees no more labels than the students. Arms, each
with the same labels at the end:

    pre-train, distil, tune    PD
    pre-train, tune            PF; it reads as many sentences more as PD distils
    distil, tune               KD from noise; it distils as many sentences more as PD reads

All have their answers from the mean of what every token says. Rates were chosen on other sentences
(docs/log.md); the tuning rate of each arm is its own best of three.

    python recipes/turc.py
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import torch
from lora import KINDS, sentences, split
from proving import learn, prove
from torch import Tensor

from onsil.models.checkpoint import load
from onsil.models.heads import Head, apart, new_head
from onsil.models.shape import encoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.train import load_tokenizer, specials_of
from onsil.training.base import shipped
from onsil.training.objectives import masked_batch, schedule, token_loss
from onsil.training.soft_targets import divergence

CONTEXT, BATCH, FEW = 64, 2_048, 512  # tokens of a step; of a step of tuning


@dataclass(frozen=True)
class Sizes:
    """Sentences: `reading` to pre-train on, `transfer` of them for the teacher to judge, `labels`
    and `items` of each kind to tune and to be judged by. Rates of hidden words, of distilling, of
    tuning the teacher and each arm."""

    student: tuple[int, int] = (64, 1)
    reading: int = 12_000
    transfer: int = 2_000
    labels: int = 100
    items: int = 500
    reading_passes: int = 8
    distil_passes: int = 12
    tuning_passes: int = 6
    teacher_reading: int = 12
    teacher_passes: int = 12
    read_rate: float = 4e-3
    distil_rate: float = 2e-3
    teacher_rate: float = 5e-4
    pd_rate: float = 3e-4
    pf_rate: float = 1e-3
    kd_rate: float = 3e-4
    temperature: float = 1.0
    compute: str = "fp32"


@dataclass(frozen=True)
class Known:
    """Ids of sentences: to read, to be judged by the teacher, labelled ones, those of the test."""

    reading: list[list[int]]
    transfer: list[list[int]]
    labelled: list[list[int]]
    labels: list[int]
    test: list[list[int]]
    answers: list[int]


def sentences_of(sizes: Sizes, test: bool = True) -> Known:
    """Sentences of the test, of choosing (`test` False) and of learning do not overlap; as many of
    each kind in the first three groups, in what is read as they come."""
    words = load_tokenizer(shipped())
    special = specials_of(words)

    def ids(texts: list[str]) -> list[list[int]]:
        told = words.encode_batch(texts)
        return [[special.cls, *e.ids[: CONTEXT - 2], special.sep] for e in told]

    kinds, (rest, dev, judged) = list(KINDS), split(sentences(), sizes.items, sizes.items)
    draw, labelled = random.Random("labels"), []
    for kind in kinds:
        labelled += draw.sample([pair for pair in rest if pair[1] == kind], sizes.labels)
    spoken_for, scored = set(labelled), judged if test else dev
    unread = [text for text, kind in rest if (text, kind) not in spoken_for]
    draw.shuffle(unread)
    return Known(
        ids(unread[: sizes.reading]),
        ids(unread[: sizes.transfer]),
        ids([text for text, _ in labelled]),
        [kinds.index(kind) for _, kind in labelled],
        ids([text for text, _ in scored]),
        [kinds.index(kind) for _, kind in scored],
    )


def read(model: Transformer, texts: list[list[int]], passes: int, rate: float, seed: int) -> None:
    """Hidden words."""
    special = specials_of(load_tokenizer(shipped()))
    steps = schedule([len(t) for t in texts], BATCH, passes, seed)

    def loss_of(k: int):
        some = [texts[i] for i in steps[k]]
        seeded = f"{seed}-{k}"
        return token_loss(model, masked_batch(some, model.shape.vocabulary, seeded, special.mask))

    learn(dict(model.named_parameters()), loss_of, len(steps), rate)


def scores(model: Transformer, head: Head, texts: list[list[int]]) -> Tensor:
    """N × kinds: the mean of what the tokens say."""
    lengths = [len(text) for text in texts]
    x_1TD = model.encode(torch.tensor([[t for text in texts for t in text]]), lengths=lengths)
    x_BTD, keep_BT = apart(x_1TD, lengths)
    weight_BT = keep_BT / keep_BT.sum(1, keepdim=True)
    return (head(x_BTD, keep_BT) * weight_BT[..., None]).sum(1)


@torch.no_grad()
def all_scores(model: Transformer, head: Head, texts: list[list[int]]) -> Tensor:
    parts = [scores(model, head, texts[i : i + 64]) for i in range(0, len(texts), 64)]
    return torch.cat(parts)


Judge = tuple[Transformer, Head]


def taught(
    judge: Judge,
    texts: list[list[int]],
    loss: Callable[[Tensor, list[int]], tuple[Tensor, int]],
    passes: int,
    rate: float,
    seed: int,
    batch: int = BATCH,
) -> None:
    """Train stack and head on `loss(scores, which texts)`."""
    model, head = judge
    steps = schedule([len(t) for t in texts], batch, passes, seed)
    parts = (("model", model), ("head", head))
    named = {f"{part}.{n}": p for part, m in parts for n, p in m.named_parameters()}
    learn(
        named,
        lambda k: loss(scores(model, head, [texts[i] for i in steps[k]]), steps[k]),
        len(steps),
        rate,
    )


def distil(judge: Judge, texts: list[list[int]], told_NK: Tensor, sizes: Sizes, passes, seed):
    """Soft cross-entropy to the teacher's scores (its entropy does not matter)."""

    def loss(said_BK: Tensor, which: list[int]):
        return divergence(said_BK, told_NK[which], sizes.temperature), len(which)

    taught(judge, texts, loss, passes, sizes.distil_rate, seed)


def tune(judge: Judge, known: Known, passes: int, rate: float, seed: int) -> None:
    labels = torch.tensor(known.labels)

    def loss(said_BK: Tensor, which: list[int]):
        return judge[1].loss(said_BK, labels[which])

    taught(judge, known.labelled, loss, passes, rate, seed, FEW)


def right(judge: Judge, known: Known) -> list[float]:
    told = all_scores(*judge, known.test).argmax(1)
    return (told == torch.tensor(known.answers)).float().tolist()


def arms_of(known: Known, sizes: Sizes) -> dict[str, Callable[[int], list[float]]]:
    @cache
    def teacher() -> Judge:
        model = load(shipped() / "encoder", sizes.compute)[0]
        read(model, known.reading, sizes.teacher_reading, sizes.read_rate / 4, 1_000)
        judge = new_head(model, "token", tuple(KINDS), seed=1_000)
        tune(judge, known, sizes.teacher_passes, sizes.teacher_rate, 1_000)
        return judge

    @cache
    def told() -> Tensor:
        return all_scores(*teacher(), known.transfer)

    def student(seed: int, reading: int, distilling: int, rate: float) -> list[float]:
        words = load_tokenizer(shipped()).get_vocab_size()
        shape = encoder_shape(words, *sizes.student, CONTEXT)
        model = Transformer(shape, sizes.compute).initialise(seed)
        read(model, known.reading, reading, sizes.read_rate, seed)
        judge = new_head(model, "token", tuple(KINDS), seed=seed)
        if distilling:
            distil(judge, known.transfer, told(), sizes, distilling, seed)
        tune(judge, known, sizes.tuning_passes, rate, seed)
        return right(judge, known)

    share = sizes.reading / sizes.transfer
    more_reading = sizes.reading_passes + round(sizes.distil_passes / share)
    more_distilling = sizes.distil_passes + round(sizes.reading_passes * share)
    return {
        "PD": lambda seed: student(seed, sizes.reading_passes, sizes.distil_passes, sizes.pd_rate),
        "PF": lambda seed: student(seed, more_reading, 0, sizes.pf_rate),
        "KD from noise": lambda seed: student(seed, 0, more_distilling, sizes.kd_rate),
        "teacher": lambda seed: right(teacher(), known),
    }


def main(seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    torch.set_num_threads(1)
    sizes = Sizes()
    arms = arms_of(sentences_of(sizes), sizes)
    arms["teacher"](0)  # so that no arm's time has it
    return prove(
        "turc",
        "pre-train, distil, tune > pre-train, tune; and > distil from noise, tune",
        arms,
        [("PD", "PF"), ("PD", "KD from noise")],
        seeds,
        asdict(sizes) | {"data": "3i4K, 4 kinds"},
    )


if __name__ == "__main__":
    main()
