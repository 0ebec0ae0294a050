"""Pre-training by distillation (Gemma 2, 2024 §3; Hinton et al. 2015): a student that is shown what
a larger teacher thinks of every next word models text better than one that is shown the words
alone, after the same tokens.

The teacher is two and a half times as wide, read the same documents twice as often, and is made
once for all seeds. Both students have one size, one rate, one order of batches. Score: −bits per
byte of each held-out document. A third student without a teacher reads twice as often, which takes
about the time that the teacher's opinions cost; it is reported, not claimed.

    python recipes/gemma.py
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256

import torch
from proving import learn, prove, rows_of
from torch import Tensor

from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.train import train
from onsil.training.objectives import causal_batch, pieces_of, schedule, token_loss
from onsil.training.soft_targets import soft_loss

CONTEXT, BATCH = 128, 2_048


@dataclass(frozen=True)
class Sizes:
    """Widths and depths, passes over the documents, learning rates; characters of text a document,
    documents to learn from and to be judged on."""

    student: tuple[int, int] = (64, 2)
    teacher: tuple[int, int] = (160, 3)
    passes: int = 2
    longer: int = 4
    teacher_passes: int = 4
    rate: float = 4e-3
    teacher_rate: float = 2e-3
    characters: int = 1_000
    documents: int = 400
    heldout: int = 200
    vocabulary: int = 1_000
    hard: float = 0.0
    temperature: float = 1.0
    compute: str = "bf16"


@dataclass(frozen=True)
class Text:
    """Pieces to learn from; for every held-out document its pieces and bytes."""

    pieces: list[list[int]]
    heldout: list[tuple[list[list[int]], int]]
    vocabulary: int


def documents(many: int, characters: int) -> list[str]:
    """Technical documentation in Korean, the beginning of each document, in an order that has
    nothing to do with where they are from."""

    def anywhere(row: dict) -> bytes:
        return sha256(f"judged {row['id']}".encode()).digest()

    rows = sorted(rows_of("text-ko/tech-ko"), key=anywhere)
    texts = [row["text"][:characters] for row in rows]
    return [text for text in texts if len(text) >= characters // 2][:many]


def text_of(texts: list[str], heldout: int, vocabulary: int) -> Text:
    """The last `heldout` documents are judged, the others learnt from."""
    learnt, judged = texts[:-heldout], texts[-heldout:]
    words = train(learnt, vocabulary)
    words.encode_special_tokens = True
    own = [(pieces_of([words.encode(text).ids], CONTEXT), len(text.encode())) for text in judged]
    pieces = pieces_of([e.ids for e in words.encode_batch(learnt)], CONTEXT)
    return Text(pieces, own, words.get_vocab_size())


def trained(
    model: Transformer,
    text: Text,
    passes: int,
    rate: float,
    seed: int,
    loss_of: Callable[..., tuple[Tensor, int]],
) -> Transformer:
    steps = schedule([len(piece) for piece in text.pieces], BATCH, passes, seed)
    learn(
        dict(model.named_parameters()),
        lambda k: loss_of(model, causal_batch([text.pieces[i] for i in steps[k]])),
        len(steps),
        rate,
    )
    return model.eval()


@torch.no_grad()
def judged(model: Transformer, text: Text) -> list[float]:
    """−bits per byte of every held-out document."""
    scores = []
    for pieces, size in text.heldout:
        nats = float(token_loss(model, causal_batch(pieces))[0])
        scores.append(-nats / math.log(2) / size)
    return scores


def arms_of(text: Text, sizes: Sizes) -> dict[str, Callable[[int], list[float]]]:
    """Arm → seed → scores. The teacher is made when it is first asked for."""

    def fresh(size: tuple[int, int], seed: int) -> Transformer:
        shape = decoder_shape(text.vocabulary, *size, CONTEXT)
        return Transformer(shape, sizes.compute).initialise(seed)

    @cache
    def teacher() -> Transformer:
        model = fresh(sizes.teacher, 1_000)
        return trained(model, text, sizes.teacher_passes, sizes.teacher_rate, 1_000, token_loss)

    def alone(seed: int, passes: int = sizes.passes) -> list[float]:
        model = fresh(sizes.student, seed)
        return judged(trained(model, text, passes, sizes.rate, seed, token_loss), text)

    def distilled(seed: int) -> list[float]:
        def loss_of(model, batch):
            return soft_loss(model, teacher(), batch, sizes.temperature, sizes.hard)

        model = fresh(sizes.student, seed)
        return judged(trained(model, text, sizes.passes, sizes.rate, seed, loss_of), text)

    return {
        "distilled": distilled,
        "alone": alone,
        "alone, longer": lambda seed: alone(seed, sizes.longer),
        "teacher": lambda seed: judged(teacher(), text),
    }


def main(seeds: tuple[int, ...] = (0, 1, 2)) -> dict:
    torch.set_num_threads(1)
    sizes = Sizes()
    text = text_of(documents(sizes.documents, sizes.characters), sizes.heldout, sizes.vocabulary)
    arms = arms_of(text, sizes)
    arms["teacher"](0)  # so that no arm's time has it
    return prove(
        "gemma",
        "a student shown a larger teacher's soft targets has fewer bits a byte than one shown the "
        "text alone, after equal tokens",
        arms,
        [("distilled", "alone")],
        seeds,
        asdict(sizes) | {"data": "tech-ko", "tokens": sum(map(len, text.pieces)) * sizes.passes},
    )


if __name__ == "__main__":
    main()
