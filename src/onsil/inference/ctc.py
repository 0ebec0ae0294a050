"""From frames to symbols: what a model trained with CTC says of a recording.

Such a model gives every frame a distribution over symbols and a blank. An alignment names one of
them a frame; read without repeats, then without blanks, it is a transcript, and the probability of
a transcript is the sum over all its alignments (Graves et al. 2006). Two ways to the symbols:

- `greedy` reads the likeliest alignment: one pass, and the transcript of the best alignment, which
  need not be the best transcript.
- `prefix_beam` (Hannun et al. 2014) adds alignments up by the transcript begun so far and keeps
  the `width` likeliest. With a width no smaller than the number of prefixes it is exact. A width of
  one is not `greedy`: it holds on to one prefix, but counts all alignments that lead to it.

Left out: language models and word lists beside the scores, timestamps, streaming.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onsil.models.speech_encoder import SpeechEncoder
from onsil.models.transformer import Transformer

NEVER = -math.inf


class Transcript(NamedTuple):
    """Symbols without blanks, and the log-probability of the alignments that were added up."""

    symbols: list[int]
    logp: float


def scores_of(
    model: Transformer | SpeechEncoder, inputs: Sequence[Tensor]
) -> tuple[Tensor, list[int]]:
    """Scores B T V of several recordings and how many frames each has; what follows is padding.

    An input is a wave N (`SpeechEncoder`), vectors T D or ids T (a stack that is not causal); the
    vocabulary of the stack, one score a symbol and one for the blank, is the CTC head.
    """
    x = pad_sequence(list(inputs), batch_first=True)
    sizes_B = torch.tensor([len(one) for one in inputs], device=x.device)
    keep = torch.arange(x.size(1), device=x.device) < sizes_B[:, None]
    if isinstance(model, SpeechEncoder):
        return model(x, keep), model.frames(sizes_B).tolist()
    if model.shape.reads == "tokens":
        return model(x, keep_BT=keep), sizes_B.tolist()
    return model(vectors_BTD=x, keep_BT=keep), sizes_B.tolist()


def collapsed(alignment: Sequence[int], blank: int = 0) -> list[int]:
    """The transcript of an alignment: runs become one, blanks go."""
    before = [blank, *alignment]
    return [b for a, b in zip(before, alignment, strict=False) if b not in (a, blank)]


def greedy(scores_TV: Tensor, blank: int = 0) -> list[int]:
    """The transcript of the likeliest alignment."""
    return collapsed(scores_TV.argmax(-1).tolist(), blank)


def prefix_beam(scores_TV: Tensor, width: int, blank: int = 0) -> Transcript:
    """The likeliest transcript found with `width` prefixes kept after every frame."""
    # A prefix → log-probability of its alignments that end in a blank, and in its last symbol
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}
    for frame in scores_TV.double().log_softmax(-1).tolist():
        found: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (rested, spoken) in kept.items():
            whole, last = _sum(rested, spoken), prefix[-1] if prefix else blank
            stays = (whole + frame[blank], spoken + frame[last] if prefix else NEVER)
            found[prefix] = _both(found.get(prefix), stays)
            for symbol, likely in enumerate(frame):
                if symbol != blank:  # after itself a symbol is new only once it has rested
                    come = rested if symbol == last else whole
                    longer = (*prefix, symbol)
                    found[longer] = _both(found.get(longer), (NEVER, come + likely))
        best = sorted(found, key=lambda prefix: -_sum(*found[prefix]))[:width]
        kept = {prefix: found[prefix] for prefix in best}
    best = max(kept, key=lambda prefix: _sum(*kept[prefix]))
    return Transcript(list(best), _sum(*kept[best]))


def _both(one: tuple[float, float] | None, other: tuple[float, float]) -> tuple[float, float]:
    return other if one is None else (_sum(one[0], other[0]), _sum(one[1], other[1]))


def _sum(a: float, b: float) -> float:
    """log(eᵃ + eᵇ)."""
    high, low = (a, b) if a > b else (b, a)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))
