"""CTC: frames to symbols where nobody said which frame is which symbol (Graves et al. 2006).

A recording has many frames and few symbols. The loss is −log of the probability that the frames,
read without repeats and without blanks, give the symbols: the sum over every alignment that does,
which a forward pass over the symbols adds up in time frames × symbols
(torch.nn.functional.ctc_loss; the tests add the alignments up one by one). The number that goes
with it is the number of symbols, so a step is Σ −log p ÷ Σ symbols over all its recordings, taken
in one part or in ten.

The head is the vocabulary of the stack: one score a symbol and one for the blank. A stack that is
not causal can read vectors or ids, `SpeechEncoder` reads waves; `models.heads.new_symbols` gives a
published speech encoder an alphabet of one's own.

Between two equal symbols an alignment needs a blank, so a recording carries its symbols when it has
at least as many frames as symbols and repeats together. One that does not has probability zero and
an infinite loss; it is refused before the run, by name, and so is a symbol that the head has not.

Left out: frames or spans hidden in training (do it to the inputs), label smoothing, transducers.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.inference.ctc import scores_of
from onsil.models.speech_encoder import SpeechEncoder
from onsil.models.transformer import Transformer
from onsil.training.loop import Step, digest_of, train
from onsil.training.objectives import steps_by_length
from onsil.training.optim import Recipe

PLAIN = Recipe()


class Recording(NamedTuple):
    """What is heard, as `scores_of` reads it (a wave N, vectors T D, ids T), and what it says."""

    name: str
    heard: Tensor
    symbols: list[int]


@dataclass(frozen=True)
class Listening:
    """How a listener is tuned. `batch_inputs`: so many samples, vectors or ids a step at most;
    `rate` at its peak; `blank`: the score that stands for no symbol."""

    epochs: int
    rate: float
    batch_inputs: int
    seed: int = 0
    blank: int = 0
    recipe: Recipe = PLAIN


def ctc_loss(
    scores_BTV: Tensor, frames: Sequence[int], symbols: Sequence[Sequence[int]], blank: int = 0
) -> tuple[Tensor, int]:
    """(Σ −log p(symbols | frames) in nats, number of symbols), as the loop takes it.

    `frames[i]` of row i count, the rest is padding. A row without symbols adds the loss of staying
    silent and no symbol. Infinite where a row cannot carry its symbols: see `needed`.
    """
    logp_TBV = scores_BTV.log_softmax(-1).transpose(0, 1)
    told = torch.tensor([s for row in symbols for s in row], device=scores_BTV.device).long()
    heard, said = torch.tensor(list(frames)), torch.tensor([len(row) for row in symbols])
    total = F.ctc_loss(logp_TBV, told, heard, said, blank, reduction="sum")
    return total, len(told)


def needed(symbols: Sequence[int]) -> int:
    """The fewest frames that can say it: the symbols, and a blank between equal neighbours."""
    repeats = sum(a == b for a, b in pairwise(symbols))
    return max(1, len(symbols) + repeats)


def tune(
    model: Transformer | SpeechEncoder,
    recordings: Sequence[Recording],
    listening: Listening,
    scratch: Path,
) -> tuple[Iterator[Step], int]:
    """The steps of the loop that tunes the model on the recordings, and how many there are; they go
    on from `scratch`. Raises OnsilError, before the first step, with the names of recordings that
    cannot carry their symbols, have symbols the head has not, or are a whole step of silence."""
    sizes = [len(one.heard) for one in recordings]
    steps = steps_by_length(sizes, listening.batch_inputs, listening.epochs, listening.seed)
    _check(model, recordings, steps, listening.blank)

    def loss_of(k: int) -> tuple[Tensor, int]:
        some = [recordings[i] for i in steps[k]]
        scores, frames = scores_of(model, [one.heard for one in some])
        return ctc_loss(scores, frames, [one.symbols for one in some], listening.blank)

    loop = train(
        dict(model.named_parameters()),
        loss_of,
        len(steps),
        listening.rate,
        scratch,
        recipe=listening.recipe,
        names_of=lambda k: [recordings[i].name for i in steps[k]],
        data=digest_of([(r.name, _heard(r), r.symbols) for r in recordings], listening),
    )
    return loop, len(steps)


def _heard(recording: Recording) -> str:
    """A digest of what is heard."""
    return hashlib.sha256(recording.heard.contiguous().numpy().tobytes()).hexdigest()


def _check(
    model: Transformer | SpeechEncoder,
    recordings: Sequence[Recording],
    steps: Sequence[Sequence[int]],
    blank: int,
) -> None:
    speech = isinstance(model, SpeechEncoder)
    vocabulary = (model.stack if speech else model).shape.vocabulary
    known, short = set(range(vocabulary)) - {blank}, []
    for name, heard, symbols in recordings:
        if strange := sorted(set(symbols) - known):
            raise _strange(name, strange[0], vocabulary, blank)
        frames = int(model.frames(torch.tensor(len(heard)))) if speech else len(heard)
        if frames < needed(symbols):
            short.append(f"{name} ({max(0, frames)} < {needed(symbols)})")
    if short:
        raise _too_short(short)
    for step in steps or [[]]:
        if not any(recordings[i].symbols for i in step):
            raise _silent([recordings[i].name for i in step])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _too_short(names: Sequence[str]) -> OnsilError:
    return OnsilError(
        en=(
            f"{len(names)} recordings have fewer frames than their symbols need: {_some(names)}.",
            "No alignment gives such a transcript: the loss would be infinite.",
            "Look whether sound and transcript belong together, or read more frames a second.",
        ),
        ko=(
            f"녹음 {len(names)}개의 프레임이 받아쓴 기호를 담기에 모자랍니다: {_some(names)}.",
            "어떻게 정렬해도 그 기호열이 나올 수 없어 손실이 무한대가 됩니다.",
            "소리와 받아쓴 글이 서로 맞는지 확인하거나, 초당 프레임 수를 늘려 주세요.",
        ),
    )


def _strange(name: str, symbol: int, vocabulary: int, blank: int) -> OnsilError:
    return OnsilError(
        en=(
            f"The transcript of {name} has the symbol {symbol}; the head has 0 to "
            f"{vocabulary - 1}, of which {blank} is the blank.",
            "It could never be said.",
            "Number the symbols anew, or give the model a head with more (heads.new_symbols).",
        ),
        ko=(
            f"{name}의 받아쓴 글에 기호 {symbol}이(가) 있습니다. 헤드에는 0부터 "
            f"{vocabulary - 1}까지 있고 그중 {blank}은(는) 빈칸(blank)입니다.",
            "그 기호는 결코 말할 수 없습니다.",
            "기호 번호를 다시 매기거나 heads.new_symbols로 더 큰 헤드를 달아 주세요.",
        ),
    )


def _silent(names: Sequence[str]) -> OnsilError:
    return OnsilError(
        en=(
            f"A step would have silence alone, not one symbol: "
            f"{_some(names) or 'there are no recordings'}.",
            "The loss is counted a symbol, and there is none to count by.",
            "Raise batch_inputs, so that silence stands beside speech, or leave some of it out.",
        ),
        ko=(
            f"기호가 하나도 없는 녹음만으로 한 걸음이 채워집니다: "
            f"{_some(names) or '녹음이 없습니다'}.",
            "손실은 기호당으로 세는데 셀 기호가 없습니다.",
            "batch_inputs를 늘려 말소리와 함께 담거나, 말이 없는 녹음을 줄여 주세요.",
        ),
    )
