"""From scores to the next token: greedy or drawn, with penalties, biases and log probabilities.

Order: bias and penalties are added to the scores, a grammar's mask forbids, temperature divides,
`top_k` and `top_p` (nucleus sampling, Holtzman et al. 2020) cut the tail, and one number from the
request's own generator picks. The generator belongs to the request: what others draw, and when,
changes nothing. Penalties count what was written, not the prompt (as OpenAI defines them).

Log probabilities are the model's own: of the scores before all of this.

The tail is cut without sorting the vocabulary: the likeliest 64 tokens are looked at, and only if
they hold less than `top_p` of the chance, all of them. V is the vocabulary.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

FIRST_LOOK = 64
BITS = 15  # of a float32 that do not choose its bin


class Sampling(NamedTuple):
    """`temperature` 0 is greedy; `top_p` keeps the likeliest tokens that make up that share,
    `top_k` so many of them (0: all). `logit_bias`: (token, what is added to its score)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def shifts(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)


def likeliest(scores_V: Tensor) -> int:
    """The first of the largest scores. (numpy finds it in a tenth of torch's time.)"""
    return int(scores_V.numpy().argmax())


def picked(scores_V: Tensor, how: Sampling, generator: torch.Generator) -> int:
    """The next token; bias and penalties are not looked at."""
    if how.temperature == 0.0:
        return likeliest(scores_V)
    chances = ((scores_V - scores_V.max()) / how.temperature).softmax(-1)
    drawn = torch.rand(1, generator=generator, dtype=torch.float64)
    if how.top_p >= 1.0 and not how.top_k:
        return _at(chances.cumsum(0, dtype=torch.float64), drawn)
    best, order = chances.topk(min(len(chances), how.top_k or FIRST_LOOK))
    sums = best.cumsum(0, dtype=torch.float64)
    if how.top_p >= 1.0:
        return int(order[_at(sums, drawn)])
    if how.top_k or sums[-1] >= how.top_p:
        kept = int((sums < how.top_p).sum()) + 1
        return int(order[_at(sums[:kept], drawn)])
    return _at((chances * _nucleus(chances, how.top_p)).cumsum(0, dtype=torch.float64), drawn)


def _at(sums: Tensor, drawn: Tensor) -> int:
    """Where the drawn share of the last sum falls."""
    return min(int(torch.searchsorted(sums, drawn * sums[-1], right=True)), len(sums) - 1)


def _nucleus(chances_V: Tensor, top_p: float) -> Tensor:
    """Which tokens are the likeliest that make up `top_p`. Chances fall into bins by their leading
    bits, and only the bin in which the border lies is sorted."""
    bin_V = chances_V.view(torch.int32) >> BITS
    held = torch.bincount(bin_V, weights=chances_V)
    above = held.flip(0).cumsum(0).flip(0)  # what lies in a bin and all larger ones
    border = max(0, int((above >= top_p).sum()) - 1)
    kept_V = bin_V > border
    some = (bin_V == border).nonzero()[:, 0]
    parts, order = chances_V[some].sort(descending=True, stable=True)
    sums = above[border] - held[border] + parts.cumsum(0, dtype=torch.float64)
    kept_V[some[order[: int((sums < top_p).sum()) + 1]]] = True
    return kept_V


class Sampler:
    """What one request draws, and what it remembers of it."""

    def __init__(self, how: Sampling, vocabulary: int):
        self.how = how
        self.generator = torch.Generator().manual_seed(how.seed) if how.temperature else None
        self.shift_V = torch.zeros(vocabulary) if how.shifts else None
        self.seen: set[int] = set()
        if self.shift_V is not None:
            for token, by in how.logit_bias:
                self.shift_V[token] += by

    def shifted(self, scores_V: Tensor) -> Tensor:
        """The scores with bias and penalties."""
        return scores_V if self.shift_V is None else scores_V + self.shift_V

    def pick(self, scores_V: Tensor) -> int:
        """The next token of scores that are shifted and masked; remembered for the penalties."""
        if self.generator is None:
            token = likeliest(scores_V)
        else:
            token = picked(scores_V, self.how, self.generator)
        self.remember(token)
        return token

    def remember(self, token: int) -> None:
        if self.shift_V is not None:
            first = 0.0 if token in self.seen else self.how.presence_penalty
            self.shift_V[token] -= first + self.how.frequency_penalty
            self.seen.add(token)


def log_chances(
    scores_V: Tensor, token: int, many: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """log P(token), and the `many` likeliest tokens with theirs."""
    total = float(scores_V.logsumexp(-1))
    own = float(scores_V[token]) - total
    if not many:
        return own, ()
    best, order = scores_V.topk(min(many, len(scores_V)))
    pairs = zip(order.tolist(), best.tolist(), strict=True)
    return own, tuple((other, score - total) for other, score in pairs)


def is_sound(how: Sampling) -> bool:
    """Whether the numbers mean something: finite, not negative, a share above 0."""
    numbers = (how.temperature, how.top_p, how.presence_penalty, how.frequency_penalty)
    biases = [by for _, by in how.logit_bias]
    finite = all(map(math.isfinite, (*numbers, *biases)))
    return finite and how.temperature >= 0 and 0 < how.top_p <= 1 and how.top_k >= 0
